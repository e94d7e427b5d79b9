"""A sweep's result on a terminal or in a pipe: one table, grouped by the axes, then where each method breaks even.

A narrow terminal drops columns, the least telling first; nothing wraps.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from netsim_ddp.report.assumptions import UNSHAPED, assumptions, why_bucket
from netsim_ddp.report.crossover import render_break_evens
from netsim_ddp.report.labels import (
    DASH,
    basis,
    clean,
    encodable,
    groups,
    label,
    milliseconds,
    rounded,
    step_header,
    times,
)
from netsim_ddp.report.limits import bounded, named
from netsim_ddp.report.utilisation import NOTE, render_needs
from netsim_ddp.results.claims import claims, fastest
from netsim_ddp.results.identity import axes
from netsim_ddp.results.record import Cell, Interval, Result
from netsim_ddp.results.summary import Rival, held_against, speedup, speedup_bound
from netsim_ddp.results.verdicts import FLOOR, of_family, repeats_needed

DROPS = ("runs", "took", "elapsed", "compute", "codec", "eff", "comm", "overlapped", "sent", "speedup")
"""Dropped in this order until the table fits."""
MOST_WARNINGS = 4
_NARROW_LABEL = 24


def render_sweep(result: Result, console: Console) -> None:
    """Print ``result``, whose cells carry their summaries, to ``console``."""

    def line(text: str, style: str = "") -> None:
        wrapped = textwrap.fill(
            encodable(text, console), console.width, break_long_words=False, break_on_hyphens=False
        )
        console.print(Text(wrapped, style=style))

    scenario = result.scenario
    if title := clean(str(scenario.get("title", ""))):
        line(title, "bold")
    if question := clean(str(scenario.get("question", ""))):
        line(question, "dim")
    measured = [cell for cell in result.cells if cell.summary]
    if result.kind == "training":
        _trainings(result, console)
    else:
        for text in _header(result):
            line(text)
        for text in _links(result):
            line(text)
    if measured:
        line("")
        line(basis(measured), "dim")
        family = len(claims(measured))
        rows = [row for group in groups(measured) for row in _rows(group, family)]
        console.print(_table(measured, rows, console))
        if any(row.fastest for row in rows):
            line(f"* the fastest there, by {FLOOR:.0%} or more; {of_family(family)}", "dim")
        elif family and (needed := repeats_needed(family)) > min(len(cell.repeats) for cell in measured):
            line(f"none is called the fastest: a claim needs {needed} repeats ({of_family(family)})", "dim")
        render_break_evens(measured, console)
        if render_needs(measured, console):
            line(NOTE, "dim")
    sentences = _missing(result)
    if sentences:
        line("")
    for text in sentences:
        line(text)


def _trainings(result: Result, console: Console) -> None:
    """What ``netsim train`` prints, for each place by itself."""
    from netsim_ddp.report.terminal.training import render_training

    for group in groups(result.cells):
        console.print()
        render_training(result.model_copy(update={"cells": group}), console, warnings=False)


def _header(result: Result) -> list[str]:
    """What all cells share, and what the axes say of the rest; then what is assumed of them."""
    cells = result.cells
    parts = [_one_or(sorted({str(cell.model) for cell in cells}), "models")]
    parts.append(_one_or(sorted({cell.workers for cell in cells}), "workers", always=True))
    for key in ("steps", "repeats", "seed"):
        if isinstance(value := result.scenario.get(key), int):
            many = key if value != 1 else key.removesuffix("s")
            parts.append(f"seed {value}" if key == "seed" else f"{value} {many}")
    execution, *others = assumptions(cells, result, without=("link",)) or [""]
    lines = (parts, [execution.upper(), *others])
    return [clean(" | ".join(part for part in line if part)) for line in lines if any(line)]


def _one_or(values: Sequence[object], what: str, *, always: bool = False) -> str:
    shown = ", ".join(str(value) for value in values)
    return f"{shown} {what}" if always or len(values) > 1 else shown


def _links(result: Result) -> list[str]:
    """What was asked for and what was there, all links in one line for each mechanism."""
    found = []
    for mechanism in dict.fromkeys(cell.link.mechanism for cell in result.cells):
        cells = [cell for cell in result.cells if cell.link.mechanism == mechanism]
        links = [cell.link for cell in cells]
        text = (
            f"link not shaped: {UNSHAPED[mechanism]}"
            if mechanism in UNSHAPED
            else f"link {'/'.join(dict.fromkeys(link.how for link in links))}"
        )
        text += "/".join(dict.fromkeys(why_bucket(cell, result) for cell in cells))
        shares = [
            link.measured_bps / link.ceiling_bps for link in links if link.measured_bps and link.ceiling_bps
        ]
        if shares:
            span = " to ".join(dict.fromkeys(f"{share:.0%}" for share in (min(shares), max(shares))))
            text += f": measured at {span} of what the rates leave after headers"
        if mechanism == "tc":
            drops, retransmits = sum(link.drops for link in links), sum(link.retransmits for link in links)
            text += f"; {drops} drops, {retransmits} retransmits"
        elif mechanism == "bucket":
            text += "; bytes are charged, not measured"
        found.append(text)
    return found


@dataclass(frozen=True)
class _Row:
    cell: Cell
    group: Sequence[Cell]
    first: bool
    fastest: bool

    @property
    def method(self) -> str:
        return named(self.cell, label(self.cell, self.group))

    def milliseconds(self, *phases: str) -> str:
        assert self.cell.summary is not None
        value = sum(float(getattr(self.cell.summary, phase)) for phase in phases) * 1e3
        if value == 0:
            return DASH
        return rounded(value, 1.0 if value >= 100 else 0.1)

    def versus(self, rival: Rival) -> str:
        summary, dense = self.cell.summary, held_against(self.cell, self.group, rival)
        assert summary is not None
        factor = speedup(summary, rival)
        if factor is None or dense is None or dense.summary is None:
            return DASH
        if dense is self.cell:
            return "1.00"
        text = times(factor, dense.summary.step_s, summary.step_s).rstrip("x")
        return bounded(text, speedup_bound(summary, rival))


@dataclass(frozen=True)
class _Column:
    name: str
    header: str
    text: Callable[[_Row], str]
    justify: Literal["left", "right"] = "right"


def _columns(keys: Sequence[str], step_name: str) -> list[_Column]:
    def axis(key: str) -> _Column:
        def text(row: _Row) -> str:
            return clean(axes(row.cell).get(key, "")) if row.first else ""

        return _Column("axis", clean(key), text, "left")

    def step(row: _Row) -> Interval:
        assert row.cell.summary is not None
        return row.cell.summary.step_s

    def sent(row: _Row) -> str:
        assert row.cell.summary is not None
        value = row.cell.summary.tx_bytes_per_step / 1e6
        return DASH if value == 0 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"

    return [
        *(axis(key) for key in keys),
        _Column("method", "method", lambda row: row.method, "left"),
        _Column("compute", "compute", lambda row: row.milliseconds("compute_s")),
        _Column("codec", "codec", lambda row: row.milliseconds("compress_s", "decompress_s")),
        _Column("comm", "comm\n+wait", lambda row: row.milliseconds("communicate_s", "wait_s")),
        _Column("step", step_name, lambda row: milliseconds(step(row))),
        _Column("eff", "eff", lambda row: f"{row.cell.summary.efficiency if row.cell.summary else 0:.0%}"),
        _Column("sent", "sent\nMB", sent),
        _Column("dense16", "vs 16b\ndense", lambda row: row.versus("dense16")),
        _Column("overlapped", "vs ovl\ndense", lambda row: row.versus("overlapped")),
        _Column("speedup", "vs\ndense", lambda row: row.versus("plain")),
        _Column("runs", "runs", lambda row: str(len(row.cell.repeats))),
    ]


def _table(cells: Sequence[Cell], rows: Sequence[_Row], console: Console) -> Table:
    """The widest table that fits the console."""
    keys = _varying_axes(cells)
    columns = _columns(keys, step_header(cells))
    texts = {column: [encodable(column.text(row), console) for row in rows] for column in columns}
    method = columns[len(keys)]
    texts[method] = [_named(text, row, console) for text, row in zip(texts[method], rows, strict=True)]
    widths = {
        column: max(map(cell_len, [*column.header.splitlines(), *texts[column]])) + 1 for column in columns
    }
    for count in range(len(DROPS) + 1):
        shown = [column for column in columns if column.name not in DROPS[:count]]
        if sum(widths[column] for column in shown) - 1 <= console.width:
            break
    return _build(shown, rows, texts, console)


def _named(text: str, row: _Row, console: Console) -> str:
    """A method's label, short where there is little room; a star for the fastest."""
    if console.width < 120 and len(text) > _NARROW_LABEL:
        text = text[: _NARROW_LABEL - 2] + ".."
    return f"{text} *" if row.fastest else text


def _varying_axes(cells: Sequence[Cell]) -> list[str]:
    """The axes that tell the groups apart, in the order of the file."""
    values: dict[str, set[str]] = {}
    for key in dict.fromkeys(key for cell in cells for key in axes(cell)):
        values[key] = {axes(cell).get(key, "") for cell in cells}
    return [key for key, found in values.items() if len(found) > 1]


def _rows(group: Sequence[Cell], family: int) -> list[_Row]:
    winner = fastest(group, family)
    return [_Row(cell, group, cell is group[0], cell is winner) for cell in group]


def _build(
    columns: Sequence[_Column], rows: Sequence[_Row], texts: Mapping[_Column, Sequence[str]], console: Console
) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            Text(encodable(column.header, console)),
            justify=column.justify,
            no_wrap=True,
            overflow="ellipsis",
            vertical="bottom",
        )
    for index, row in enumerate(rows):
        cells = (Text(texts[column][index]) for column in columns)
        table.add_row(*cells, style="bold" if row.fastest else "")
    return table


def _missing(result: Result) -> list[str]:
    """Cells that failed or were not run, and what the samples warn of."""
    lines = []
    for cell in result.cells:
        if cell.error is not None and result.kind == "steps":  # a training's is among its own
            why = clean(next((text for text in cell.error.splitlines() if text.strip()), "")).rstrip(".")
            lines.append(f"Failed: {clean(cell.id)}: {why}.")
    sweep = result.scenario.get("sweep")
    planned = sweep.get("cells") if isinstance(sweep, dict) else None
    planned = planned if isinstance(planned, dict) else {}
    count = len(set(planned) - {cell.id for cell in result.cells})
    if count:
        lines.append(f"Not run: {count} of {len(planned)} cells.")
    asked = result.scenario.get("repeats")
    short = [cell for cell in result.cells if isinstance(asked, int) and 0 < len(cell.repeats) < asked]
    if short:
        lines.append(f"Not finished: {len(short)} cells have fewer than {asked} runs.")
    for text in result.warnings[:MOST_WARNINGS]:
        lines.append(f"warning: {clean(text)}")
    if (more := len(result.warnings) - MOST_WARNINGS) > 0:
        lines.append(f"{more} more warnings are in the file.")
    return lines
