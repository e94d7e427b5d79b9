"""The table of ``--statistics``: what each method's selection sent and kept back."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from rich.console import Console
from rich.text import Text

from netsim_ddp.report.labels import DASH, clean
from netsim_ddp.results.record import Cell, Result, SelectedStep

_NAME = 34


def render_selections(result: Result, console: Console) -> None:
    """Print nothing unless the run recorded statistics."""
    rows = [(cell.id, steps) for cell in result.cells if (steps := _steps(cell))]
    if not rows:
        return
    console.print(
        Text(f"\n{'selected, mean per step':{_NAME}}  entries   ratio  energy kept  residual", style="bold")
    )
    for name, steps in rows:
        short = name if len(name) <= _NAME else name[: _NAME - 2] + ".."
        kept, norm = _mean(step.energy_kept for step in steps), _mean(step.residual_norm for step in steps)
        entries, ratio = fmean(step.entries for step in steps), fmean(step.ratio for step in steps)
        cells = (
            f"{entries:9.0f}",
            f"{ratio:8.3%}",
            f"{DASH if kept is None else format(kept, '.1%'):>13}",
            f"{DASH if norm is None else format(norm, '.3g'):>10}",
        )
        console.print(Text(clean(f"{short:{_NAME}}" + "".join(cells))))
    console.print(Text("energy kept: |sent|^2 / |gradient + residual|^2. residual: its norm afterwards."))


def _steps(cell: Cell) -> list[SelectedStep]:
    ranks = [rank for repeat in cell.repeats for rank in repeat.ranks]
    return [step for rank in ranks if rank.selection is not None for step in rank.selection.steps]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
