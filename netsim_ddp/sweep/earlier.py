"""What an earlier result of the same sweep is still worth: finished cells, and repeats of those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from netsim_ddp.errors import UsageError
from netsim_ddp.results.files import load
from netsim_ddp.results.identity import outdated, rules, same_machine
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.steps.environment import environment
from netsim_ddp.sweep.plan import Run, trains
from netsim_ddp.units import counted


def read_earlier(path: Path, *, unless: bool = False) -> Result | None:
    """The result at ``path``, or None where there is nothing.

    Args:
        unless: whatever else is there may be written over: None for it.

    Raises:
        UsageError: something else is there, or a result that was not a sweep's.
    """
    if not path.exists():
        return None
    try:
        result = load(path)
        if not isinstance(result.scenario.get("sweep"), dict):
            raise UsageError(f"{path} holds no sweep")
    except UsageError as error:
        if unless:
            return None
        raise UsageError(error.message, hint="name another file, or --fresh writes over it") from None
    return result


def still_valid(earlier: Result, runs: Sequence[Run]) -> dict[str, Cell]:
    """The cells of ``earlier`` that measured what ``runs`` would, by the rules that hold now, by id; those that failed
    are not among them."""
    sweep = earlier.scenario["sweep"]
    digests = sweep.get("cells") if isinstance(sweep, dict) else None
    if not isinstance(digests, dict) or not same_machine(earlier.environment, environment()):
        return {}
    measured = {cell.id: cell for cell in earlier.cells if cell.error is None and not outdated(cell, earlier)}
    return {
        cell.id: measured[cell.id]
        for run in runs
        for cell in run.cells
        if cell.id in measured and digests.get(cell.id) == cell.identity
    }


def measured_again(path: Path, earlier: Result, runs: Sequence[Run]) -> str:
    """Why cells of ``earlier`` that ``runs`` ask for are measured again though they are there; empty if none is."""
    wanted = {cell.id for run in runs for cell in run.cells}
    old = [cell for cell in earlier.cells if cell.id in wanted and cell.repeats and outdated(cell, earlier)]
    if not old:
        return ""
    why = " and ".join(
        dict.fromkeys(f"{about} {rule}" for cell in old for about, rule in rules(cell, earlier).items())
    )
    return (
        f"{counted(len(old), 'cell')} of {path} must be measured again: in those of netsim before 0.2, {why}"
    )


def missing_repeats(run: Run, kept: Cell | None) -> list[int]:
    """The numbers of the repeats that a cell of ``run`` needs beside those that are ``kept``."""
    settings: Any = run.settings
    wanted = range(settings.repeats)
    if kept is None:
        return list(wanted)
    if trains(settings):
        seeds = {repeat.seed for repeat in kept.repeats}
        return [number for number in wanted if settings.seed + number not in seeds]
    return list(wanted[len(kept.repeats) :])
