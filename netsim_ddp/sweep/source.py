"""Reads a matrix, a file, a built-in scenario by its name, or the result of an earlier sweep; and says what its
command is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from netsim_ddp.errors import UsageError
from netsim_ddp.ranks.pool import Pool
from netsim_ddp.reading import parse_yaml
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.results.summary import summarise
from netsim_ddp.scenario import Scenario, Settings, TrainScenario
from netsim_ddp.scenario.files import find, read_text
from netsim_ddp.scenario.matrix import Matrix, expand, override, parse, parse_set
from netsim_ddp.scenario.predict import PredictScenario
from netsim_ddp.steps.experiment import Report, Save
from netsim_ddp.steps.runner import run
from netsim_ddp.sweep.plan import Run, plan


class Execute(Protocol):
    """Carries out resolved ``settings`` on ``pool``; see :func:`netsim_ddp.steps.runner.run`."""

    def __call__(
        self, settings: Any, /, *, command: Sequence[str], report: Report, save: Save, pool: Pool
    ) -> Result: ...


@dataclass(frozen=True)
class Command:
    """What ``command:`` of a matrix names: its settings, what carries them out, what computes the summaries."""

    kind: type[Settings]
    execute: Execute
    summarise: Callable[[Sequence[Cell]], list[Cell]]


def command_of(name: str) -> Command:
    """The command that is called ``name``; what only one of them needs is imported when it is chosen."""
    if name == "train":
        from netsim_ddp.results.training import summarise_training
        from netsim_ddp.training.runner import train

        return Command(TrainScenario, train, summarise_training)
    if name == "predict":
        from netsim_ddp.predict.runner import predict

        return Command(PredictScenario, predict, summarise)
    return Command(Scenario, run, summarise)


def read_matrix(what: str, sets: Sequence[str] = ()) -> tuple[str, Matrix]:
    """The name of a sweep, and its matrix with ``--set`` carried out.

    Raises:
        UsageError: neither a scenario nor a result of a sweep, or a key that cannot be set.
    """
    path = find(what)
    data = read_text(path)
    name = path.stem
    if isinstance(data, Mapping) and "schema_version" in data:
        name, data = _of_result(path, data)
    return name, override(parse(data, str(path)), parse_set(sets, _load))


def _of_result(path: Path, data: Mapping[Any, Any]) -> tuple[str, Any]:
    scenario = data.get("scenario")
    sweep = scenario.get("sweep") if isinstance(scenario, Mapping) else None
    if not isinstance(sweep, Mapping) or not isinstance(sweep.get("file"), Mapping):
        raise UsageError(f"{path} is no result of a sweep", hint=f"netsim run --config {path} repeats a run")
    # A name from elsewhere becomes part of a file's.
    return re.sub(r"[^\w.-]+", "-", str(sweep.get("name", path.stem))).strip(".-") or "sweep", sweep["file"]


def _load(text: str) -> Any:
    return parse_yaml(text, source=f"--set: {text!r}", hint="write for example workers=[2, 4]")


def read_plan(what: str, sets: Sequence[str] = ()) -> tuple[str, Matrix, Command, list[Run]]:
    """:func:`read_matrix`, what its command is, and the runs that it makes."""
    name, matrix = read_matrix(what, sets)
    return name, matrix, *plan_of(matrix)


def plan_of(matrix: Matrix) -> tuple[Command, list[Run]]:
    """The command of ``matrix``, and the runs that it makes."""
    command = command_of(matrix.command)
    return command, plan(expand(matrix, command.kind))
