"""A sweep while it goes on: a table that fits the terminal, or a line for every repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from netsim_ddp.report.labels import DASH, milliseconds, times
from netsim_ddp.report.limits import bounded
from netsim_ddp.results.labels import clean, label
from netsim_ddp.results.record import Cell
from netsim_ddp.results.summary import is_dense

OTHER_LINES = 6
"""Of the screen: what is not a row of the table."""


def cell_line(cell: Cell) -> str:
    """What is known of ``cell``: ``22±2 ms, 3.2x dense``, or the accuracy that its last training reached."""
    if cell.summary is not None:
        text = f"{milliseconds(cell.summary.step_s)} ms"
        if cell.summary.speedup is not None and not is_dense(cell):
            text += f", {bounded(times(cell.summary.speedup), cell.summary.speedup_bound)} dense"
        return text
    epochs = cell.repeats[-1].epochs if cell.repeats else []
    if epochs and epochs[-1].validation_accuracy is not None:
        return f"accuracy {epochs[-1].validation_accuracy:.2%}"
    return "done"


def remaining(seconds: float) -> str:
    """``about 4 min left``."""
    return f"about {rough(seconds)} left" if seconds > 0 else "nothing left"


def rough(seconds: float) -> str:
    """An estimate, with no more digits than it deserves."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


@dataclass
class _Line:
    planned: int
    done: int = 0
    cells: dict[str, Cell] = field(default_factory=dict)
    failed: int = 0


class SweepTable:
    """The table: one row for each place in the matrix, filled as repeats come in.

    Args:
        planned: each place in words, and how many repeats it still needs.
    """

    def __init__(self, planned: Sequence[tuple[str, int]]) -> None:
        self._lines = {place: _Line(count) for place, count in planned}
        self._at, self._doing = "", "starting"
        self._done, self._total, self._remaining_s = 0, 0, 0.0

    def start(self, place: str, doing: str, done: int, total: int, remaining_s: float) -> None:
        self._at, self._doing = place, doing
        self._done, self._total, self._remaining_s = done, total, remaining_s

    def end(
        self, place: str, cell: Cell | None, done: int, total: int, remaining_s: float, *, failed: bool
    ) -> None:
        line = self._lines[place]
        line.done += 1
        line.failed += failed
        if cell is not None:
            line.cells[cell.id] = cell
        self._done, self._total, self._remaining_s = done, total, remaining_s

    def render(self, width: int, height: int) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
        for header in ("place", "repeats", "fastest so far"):
            table.add_column(header, justify="right" if header == "repeats" else "left", no_wrap=True)
        for place, line in self._visible(max(1, height - OTHER_LINES)):
            told = f"{line.failed} FAILED" if line.failed else _fastest(line)
            style = "bold" if place == self._at else "red" if line.failed else ""
            texts = (clean(place) or DASH, f"{line.done}/{line.planned}", clean(told))
            table.add_row(*map(Text, texts), style=style)
        bar = Table.grid(padding=(0, 2, 0, 0))
        told = f"{self._done}/{self._total}  {remaining(self._remaining_s)}"
        bar.add_row(
            ProgressBar(total=max(1, self._total), completed=self._done, width=min(36, width // 2)), told
        )
        return Group(table, Text(""), bar, Text(clean(self._doing), overflow="ellipsis", no_wrap=True))

    def _visible(self, count: int) -> list[tuple[str, _Line]]:
        """As many rows as there is room for, around the one that is being measured."""
        rows = list(self._lines.items())
        at = next((i for i, (place, _) in enumerate(rows) if place == self._at), 0)
        first = max(0, min(at - count // 2, len(rows) - count))
        return rows[first : first + count]


def _fastest(line: _Line) -> str:
    cells = [cell for cell in line.cells.values() if cell.summary is not None]
    if not cells:
        cells = [cell for cell in line.cells.values() if cell.repeats]
        return f"{label(cells[-1], cells)} {cell_line(cells[-1])}" if cells else ""
    best = min(cells, key=lambda cell: cell.summary.step_s.median if cell.summary else 0.0)
    return f"{label(best, cells)} {cell_line(best)}"
