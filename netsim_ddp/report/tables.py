"""The one table that every command and every exporter writes: on a terminal, as Markdown, HTML or LaTeX.

A :class:`Table` is text already. :func:`table_of` makes one from columns and rows; :func:`columns_without` has the
columns of measured cells, of which a terminal drops some and a page shows all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from netsim_ddp.report.collection import Block
from netsim_ddp.report.labels import DASH, basis, milliseconds, resolution, rounded, step_header, times
from netsim_ddp.report.limits import bounded
from netsim_ddp.results.record import Cell, Interval, Summary
from netsim_ddp.results.summary import RIVALS, Rival, elapsed_step_s, held_against, speedup, speedup_bound

RowType = TypeVar("RowType")


@dataclass(frozen=True)
class Table:
    """Rows of text below their headers. ``left`` numbers the columns that are aligned to the left; a header's line
    break is one on a terminal and a space elsewhere."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    left: Collection[int] = (0,)


@dataclass(frozen=True)
class Column(Generic[RowType]):
    """One column: the name by which it is dropped, its header, and what it says of a row."""

    name: str
    header: str
    text: Callable[[RowType], str]
    justify: Literal["left", "right"] = "right"


def table_of(columns: Sequence[Column[RowType]], rows: Iterable[RowType], title: str = "") -> Table:
    """Returns the table that ``columns`` make of ``rows``."""
    return Table(
        [column.header for column in columns],
        [[column.text(row) for column in columns] for row in rows],
        title,
        [number for number, column in enumerate(columns) if column.justify == "left"],
    )


@dataclass(frozen=True)
class Row:
    """One measured cell, and ``name``, which stands in the column of methods."""

    cell: Cell
    summary: Summary
    name: str
    rivals: Mapping[Rival, Interval]
    """The steps of what the row is held against, as far as it was measured."""

    def phase(self, *names: str) -> str:
        """The sum of some phases, ms, with one digit more than the step's interval supports, three at most.

        A phase of exactly zero does not apply to the method: a dash.
        """
        value = sum(float(getattr(self.summary, name)) for name in names) * 1e3
        if value == 0:
            return DASH
        step = self.summary.step_s
        scaled = Interval(median=step.median * 1e3, ci_low=step.ci_low * 1e3, ci_high=step.ci_high * 1e3)
        third = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
        return rounded(value, min(max(resolution(scaled) / 10, third, 1e-3), 1.0))

    def versus(self, rival: Rival) -> str:
        factor, other = speedup(self.summary, rival), self.rivals.get(rival)
        if factor is None or other is None:
            return DASH
        if other is self.summary.step_s:
            return "1.00"
        text = times(factor, other, self.summary.step_s).rstrip("x")
        return bounded(text, speedup_bound(self.summary, rival))


def columns_without(dropped: frozenset[str], step_header: str, *, replayed: bool) -> list[Column[Row]]:
    """The columns that are left; a phase whose own column is dropped joins a neighbour: rows still add up."""

    def phases(name: str, header: str, *fields: str) -> Column[Row]:
        return Column(name, header, lambda row: row.phase(*fields))

    joined = {
        "compr": ("codec", "compress_s", "decompress_s") if "decmp" in dropped else ("compr", "compress_s"),
        "comm": ("comm\n+wait", "communicate_s", "wait_s")
        if "wait" in dropped
        else ("comm", "communicate_s"),
        "other": ("opt\n+oth", "optimizer_s", "other_s") if "opt" in dropped else ("other", "other_s"),
    }
    columns = [
        Column("method", "method", lambda row: row.name, "left"),
        phases("compute", "compute", "compute_s"),
        phases("compr", *joined["compr"]),
        phases("comm", *joined["comm"]),
        phases("wait", "wait", "wait_s"),
        phases("decmp", "decmp", "decompress_s"),
        phases("opt", "opt", "optimizer_s"),
        phases("other", *joined["other"]),
        Column("step", step_header, lambda row: milliseconds(row.summary.step_s)),
        phases("hidden", "hidden\ncomm", "hidden_s"),
        Column("elapsed", "serial\nhere", _elapsed),
        Column("eff", "eff", lambda row: f"{row.summary.efficiency:.0%}"),
        Column("sent", "sent\nMB", lambda row: _megabytes(row.summary.tx_bytes_per_step)),
        Column("payload", "payload\nMB", lambda row: _megabytes(row.summary.payload_bytes_per_step)),
        Column(
            "reduction",
            "fewer\nbytes",
            lambda row: times(row.summary.wire_reduction) if row.summary.wire_reduction else DASH,
        ),
        Column("dense16", "vs 16b\ndense", lambda row: row.versus("dense16")),
        Column("overlapped", "vs ovl\ndense", lambda row: row.versus("overlapped")),
        Column("speedup", "vs\ndense", lambda row: row.versus("plain")),
        Column("loss", "loss\nfirst->last", lambda row: _loss(row.summary)),
    ]
    return [
        column for column in columns if column.name not in dropped and (replayed or column.name != "elapsed")
    ]


def _elapsed(row: Row) -> str:
    elapsed = elapsed_step_s(row.cell)
    return DASH if elapsed is None else f"{elapsed * 1e3:.0f}"


def _megabytes(count: float) -> str:
    """Three or four digits of MB; small messages keep theirs."""
    value = count / 1e6
    if value == 0:
        return DASH
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}" if value < 1 else f"{value:.2f}"


def _loss(summary: Summary) -> str:
    if summary.first_loss is None or summary.last_loss is None:
        return DASH
    return f"{summary.first_loss:.3g}->{summary.last_loss:.3g}"


def rows_of(cells: Sequence[Cell], name: Callable[[Cell], str]) -> list[Row]:
    """Returns a row for each of ``cells`` that was measured; they may be compared with each other."""
    rows = []
    for cell in cells:
        if cell.summary is None:
            continue
        rivals = {
            rival: other.summary.step_s
            for rival in RIVALS
            if (other := held_against(cell, cells, rival)) and other.summary
        }
        rows.append(Row(cell, cell.summary, name(cell), rivals))
    return rows


def block_table(block: Block, dropped: frozenset[str], *, replayed: bool, note: str = "") -> Table:
    """Returns the table of a block's measured cells, as a page or a paper shows it."""
    cells = block.cells
    names = {id(entry.cell): entry.label for entry in block.entries}
    return table_of(
        columns_without(dropped, step_header(cells), replayed=replayed and cells[0].execution == "replayed"),
        rows_of(cells, lambda cell: names[id(cell)]),
        f"{block.heading}: {basis(cells)}{note}",
    )


def measured_blocks(blocks: Iterable[Block]) -> list[Block]:
    """Returns those of ``blocks`` that have a measured cell."""
    return [block for block in blocks if any(cell.summary for cell in block.cells)]
