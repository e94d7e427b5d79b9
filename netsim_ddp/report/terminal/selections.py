"""The table of ``--statistics``: what each method's selection sent and kept back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from rich.console import Console

from netsim_ddp.report.labels import DASH
from netsim_ddp.report.tables import Table
from netsim_ddp.report.terminal.printing import print_line, print_table
from netsim_ddp.results.record import Cell, Result, SelectedStep

_NAME = 34
_HEADERS = ("selected, mean per step", "entries", "ratio", "energy kept", "residual")


def render_selections(result: Result, console: Console) -> None:
    """Print nothing unless the run recorded statistics."""
    rows = [_texts(cell.id, steps) for cell in result.cells if (steps := _steps(cell))]
    if rows:
        console.print()
        print_table(console, [Table(_HEADERS, rows)])
        print_line(console, "energy kept: |sent|^2 / |gradient + residual|^2. residual: its norm afterwards.")


def _texts(name: str, steps: Sequence[SelectedStep]) -> tuple[str, ...]:
    kept, norm = _mean(step.energy_kept for step in steps), _mean(step.residual_norm for step in steps)
    return (
        name if len(name) <= _NAME else name[: _NAME - 2] + "..",
        f"{fmean(step.entries for step in steps):.0f}",
        f"{fmean(step.ratio for step in steps):.3%}",
        DASH if kept is None else f"{kept:.1%}",
        DASH if norm is None else f"{norm:.3g}",
    )


def _steps(cell: Cell) -> list[SelectedStep]:
    ranks = [rank for repeat in cell.repeats for rank in repeat.ranks]
    return [step for rank in ranks if rank.selection is not None for step in rank.selection.steps]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
