"""Predicted steps beside measured ones on a terminal."""

from __future__ import annotations

from functools import partial

from rich.console import Console

from netsim_ddp.report.labels import DASH, milliseconds
from netsim_ddp.report.tables import Column, table_of
from netsim_ddp.report.terminal.printing import print_line, print_table
from netsim_ddp.results.labels import clean
from netsim_ddp.results.validation import ValidatedCell, Validation, typical
from netsim_ddp.units import counted, format_duration, format_rate

_DROPS = ("how", "model", "delay", "workers")
MANY = 20
"""Of fewer cells the 95th percentile is the largest."""


def render_validation(validation: Validation, console: Console) -> None:
    """Print ``validation`` to ``console``: a row for each cell, then how large the errors are."""
    line = partial(print_line, console)
    columns = _columns()
    rows = sorted(validation.cells, key=lambda cell: not cell.counts)
    print_table(
        console,
        (
            table_of([column for column in columns if column.name not in _DROPS[:count]], rows)
            for count in range(len(_DROPS) + 1)
        ),
    )
    line("")
    line(verdict(validation))
    for cell in validation.cells:
        if cell.reason is not None:
            line(f"{cell.id}: not predicted: {cell.reason}", "dim")


def verdict(validation: Validation) -> str:
    """How far predictions are from what was measured, in a sentence."""
    found = typical(validation.cells)
    limited = sum(cell.host_limited for cell in validation.cells)
    left = (
        f"; {limited} more {'is' if limited == 1 else 'are'} host-limited and not counted" if limited else ""
    )
    if found is None:
        return f"no cell can be held against its prediction{left}"
    count = sum(cell.counts for cell in validation.cells)
    if count < MANY:
        return (
            f"{counted(count, 'cell')}: the median error is {found[0]:.1%}, the largest {found[1]:.1%}{left}"
        )
    return f"{count} cells: the median error is {found[0]:.1%}, 95% of them are within {found[1]:.1%}{left}"


def _columns() -> list[Column[ValidatedCell]]:
    return [
        Column("model", "model", lambda cell: clean(cell.model), "left"),
        Column("cell", "method", _method, "left"),
        Column("workers", "P", lambda cell: str(cell.workers)),
        Column("rate", "rate", lambda cell: format_rate(cell.bandwidth_bps) if cell.bandwidth_bps else DASH),
        Column("delay", "delay", lambda cell: format_duration(cell.delay_s) if cell.delay_s else DASH),
        Column("how", "measured on", lambda cell: f"{cell.mechanism}, {cell.execution}", "left"),
        Column("measured", "measured\nms", lambda cell: milliseconds(cell.measured_s)),
        Column(
            "predicted",
            "predicted\nms",
            lambda cell: DASH if cell.predicted_s is None else f"{cell.predicted_s * 1e3:.4g}",
        ),
        Column("error", "error", _error),
    ]


def _method(cell: ValidatedCell) -> str:
    return clean(cell.id.rpartition("/")[2])


def _error(cell: ValidatedCell) -> str:
    if cell.error is None:
        return DASH
    return f"({cell.error:+.1%})" if cell.host_limited else f"{cell.error:+.1%}"
