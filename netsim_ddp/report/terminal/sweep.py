"""A sweep's result on a terminal or in a pipe: one table, grouped by the axes, then where each method breaks even.

A narrow terminal drops columns, the least telling first; nothing wraps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from rich.console import Console

from netsim_ddp.report.assumptions import UNSHAPED, assumptions, why_bucket
from netsim_ddp.report.choices import choices
from netsim_ddp.report.costs import epoch_table
from netsim_ddp.report.crossover import render_break_evens
from netsim_ddp.report.labels import DASH, basis, milliseconds, rounded, step_header
from netsim_ddp.report.limits import named
from netsim_ddp.report.tables import Column, Row, rows_of, table_of
from netsim_ddp.report.terminal.printing import print_block, print_line, print_table, shortened
from netsim_ddp.report.terminal.training import render_training
from netsim_ddp.report.utilisation import NOTE, render_needs
from netsim_ddp.report.verdict import reason
from netsim_ddp.results.claims import claims, fastest
from netsim_ddp.results.identity import axes, groups, link_description
from netsim_ddp.results.labels import clean, label, workers_label
from netsim_ddp.results.record import Cell, Result, Summary
from netsim_ddp.results.verdicts import FLOOR, of_family, repeats_needed
from netsim_ddp.units import counted

DROPS = ("runs", "compute", "codec", "eff", "comm", "overlapped", "sent", "speedup")
"""Dropped in this order until the table fits."""
MOST_WARNINGS = 4
_NARROW_LABEL = 24


def render_sweep(result: Result, console: Console) -> None:
    """Print ``result``, whose cells carry their summaries, to ``console``."""

    line = partial(print_line, console)
    scenario = result.scenario
    for key, style in (("title", "bold"), ("question", "dim")):
        if text := clean(str(scenario.get(key, ""))):
            line(text, style)
    measured = [cell for cell in result.cells if cell.summary]
    if result.kind == "training":
        for group in groups(result.cells):
            console.print()
            render_training(result.model_copy(update={"cells": group}), console, warnings=False)
    else:
        for text in (*_header(result), *_links(result)):
            line(text)
    if measured:
        line("")
        line(basis(measured), "dim")
        family = len(claims(measured))
        if _print_table(measured, family, console):
            line(f"* the fastest there, by {FLOOR:.0%} or more; {of_family(family)}", "dim")
        elif family and (needed := repeats_needed(family)) > min(len(cell.repeats) for cell in measured):
            line(f"none is called the fastest: a claim needs {needed} repeats ({of_family(family)})", "dim")
        render_break_evens(measured, console)
        if render_needs(measured, console):
            line(NOTE, "dim")
        if (epoch := epoch_table(result)) is not None:
            line("")
            line(epoch.title, "dim")
            print_table(console, [epoch])
        print_block(console, choices(result))
    print_block(console, _missing(result))


def _header(result: Result) -> list[str]:
    """What all cells share, and what the axes say of the rest; then what is assumed of them."""
    cells = result.cells
    parts = [
        _one_or(sorted({str(cell.model) for cell in cells}), "models"),
        workers_label(*sorted({cell.workers for cell in cells})),
    ]
    for key in ("steps", "repeats", "seed"):
        if isinstance(value := result.scenario.get(key), int):
            parts.append(f"seed {value}" if key == "seed" else counted(value, key.removesuffix("s")))
    execution, *others = assumptions(cells, result, without=("link",)) or [""]
    lines = (parts, [execution.upper(), *others])
    return [clean(" | ".join(part for part in line if part)) for line in lines if any(line)]


def _one_or(values: Sequence[object], what: str) -> str:
    shown = ", ".join(str(value) for value in values)
    return f"{shown} {what}" if len(values) > 1 else shown


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
            text += f"; {counted(drops, 'drop')}, {counted(retransmits, 'retransmit')}"
        elif mechanism == "bucket":
            text += "; bytes are charged, not measured"
        elif mechanism == "model":
            text += f": {', '.join(dict.fromkeys(link_description(cell) for cell in cells))}"
        found.append(text)
    return found


def _columns(keys: Sequence[str], step_name: str, firsts: Collection[int]) -> list[Column[Row]]:
    """The columns of a sweep; the axes ``keys`` are told in the rows of the cells ``firsts`` alone."""

    def axis(key: str) -> Column[Row]:
        def text(row: Row) -> str:
            return clean(axes(row.cell).get(key, "")) if id(row.cell) in firsts else ""

        return Column("axis", clean(key), text, "left")

    def phases(name: str, header: str, *fields: str) -> Column[Row]:
        return Column(name, header, lambda row: _milliseconds(row.summary, fields))

    return [
        *(axis(key) for key in keys),
        Column("method", "method", lambda row: row.name, "left"),
        phases("compute", "compute", "compute_s"),
        phases("codec", "codec", "compress_s", "decompress_s"),
        phases("comm", "comm\n+wait", "communicate_s", "wait_s"),
        Column("step", step_name, lambda row: milliseconds(row.summary.step_s)),
        Column("eff", "eff", lambda row: f"{row.summary.efficiency:.0%}"),
        Column("sent", "sent\nMB", lambda row: _megabytes(row.summary.tx_bytes_per_step)),
        Column("dense16", "vs 16b\ndense", lambda row: row.versus("dense16")),
        Column("overlapped", "vs ovl\ndense", lambda row: row.versus("overlapped")),
        Column("speedup", "vs\ndense", lambda row: row.versus("plain")),
        Column("runs", "runs", lambda row: str(len(row.cell.repeats))),
    ]


def _milliseconds(summary: Summary, phases: Sequence[str]) -> str:
    value = sum(float(getattr(summary, phase)) for phase in phases) * 1e3
    if value == 0:
        return DASH
    return rounded(value, 1.0 if value >= 100 else 0.1)


def _megabytes(count: float) -> str:
    value = count / 1e6
    return DASH if value == 0 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _print_table(cells: Sequence[Cell], family: int, console: Console) -> bool:
    """Print the widest table that fits the console. Returns whether a cell is called the fastest of its group."""
    parts = groups(cells)
    winners = {id(cell) for group in parts if (cell := fastest(group, family)) is not None}

    def rows(group: Sequence[Cell]) -> list[Row]:
        def name(cell: Cell) -> str:
            text = shortened(named(cell, label(cell, group)), console, _NARROW_LABEL)
            return f"{text} *" if id(cell) in winners else text

        return rows_of(group, name)

    shown = [row for group in parts for row in rows(group)]
    columns = _columns(_varying_axes(cells), step_header(cells), {id(group[0]) for group in parts})
    variants = (
        table_of([column for column in columns if column.name not in DROPS[:count]], shown)
        for count in range(len(DROPS) + 1)
    )
    print_table(console, variants, gap=1, bold=[id(row.cell) in winners for row in shown])
    return bool(winners)


def _varying_axes(cells: Sequence[Cell]) -> list[str]:
    """The axes that tell the groups apart, in the order of the file."""
    keys = dict.fromkeys(key for cell in cells for key in axes(cell))
    return [key for key in keys if len({axes(cell).get(key, "") for cell in cells}) > 1]


def _missing(result: Result) -> list[str]:
    """Cells that failed or were not run, and what the samples warn of."""
    lines = [
        f"Failed: {clean(cell.id)}: {reason(cell)}."
        for cell in result.cells
        if cell.error is not None and result.kind == "steps"  # a training's is among its own
    ]
    sweep = result.scenario.get("sweep")
    planned = sweep.get("cells") if isinstance(sweep, dict) else None
    planned = planned if isinstance(planned, dict) else {}
    if count := len(set(planned) - {cell.id for cell in result.cells}):
        lines.append(f"Not run: {count} of {counted(len(planned), 'cell')}.")
    asked = result.scenario.get("repeats")
    short = [cell for cell in result.cells if isinstance(asked, int) and 0 < len(cell.repeats) < asked]
    if short:
        lines.append(f"Not finished: {counted(len(short), 'cell')} with fewer than {asked} runs.")
    lines += [f"warning: {clean(text)}" for text in result.warnings[:MOST_WARNINGS]]
    if (more := len(result.warnings) - MOST_WARNINGS) > 0:
        lines.append(f"{counted(more, 'more warning')} in the file.")
    return lines
