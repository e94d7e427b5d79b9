"""Which bandwidth each method needs to keep the processors busy, as a table for every exporter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from netsim_ddp.report.labels import DASH, clean, encodable, label, two_digits
from netsim_ddp.results.break_even import FURTHEST
from netsim_ddp.results.identity import Setting, curve_setting
from netsim_ddp.results.labels import curve_label
from netsim_ddp.results.record import Cell
from netsim_ddp.results.utilisation import LEVELS, Needed, Utilisation, utilisations

NOTE = (
    "Utilisation is compute / step. <: the lowest rate measured is enough. ~: beyond the rates measured, the model's"
    " figure (a step stays a constant + bytes / rate); ~never: by the model, what is not the wire takes longer at any"
    " rate."
)


@dataclass(frozen=True)
class Needs:
    """Of one setting: a row per method, a column per level, in the unit that ``title`` names."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def needs(cells: Sequence[Cell]) -> list[Needs]:
    """A table for each setting whose methods were measured at two bandwidths or more."""
    plots: dict[Setting, list[Utilisation]] = {}
    for one in utilisations(cells):
        plots.setdefault(curve_setting(one.cell, "bandwidth"), []).append(one)
    return [_table_of(methods, cells) for methods in plots.values()]


def _table_of(methods: Sequence[Utilisation], cells: Sequence[Cell]) -> Needs:
    gigabit = any(one.points[-1][0] >= 10**9 for one in methods)
    unit, scale = ("Gbit/s", 1e9) if gigabit else ("Mbit/s", 1e6)
    first = methods[0].cell
    same = [cell for cell in cells if cell.workers == first.workers and cell.model == first.model]
    rows = []
    for one in methods:
        highest = one.points[-1][0] / scale
        rows.append((label(one.cell, same), *(_text(each, scale, highest) for each in one.needed)))
    return Needs(
        title=f"bandwidth for a utilisation, {first.workers} workers, {curve_label(first)}",
        headers=(f"needs, {unit}, for", *(f"{level:.0%}" for level in LEVELS)),
        rows=tuple(rows),
    )


def _text(needed: Needed, scale: float, highest: float) -> str:
    if needed.how == "none":
        return "~never"
    if needed.bps is None:
        return f"> {two_digits(highest)}"
    if needed.bps / scale > FURTHEST * highest:
        return f"~> {two_digits(FURTHEST * highest)}"
    sign = {"under": "< ", "model": "~", "measured": ""}[needed.how]
    return f"{sign}{two_digits(needed.bps / scale)}"


def render_needs(cells: Sequence[Cell], console: Console) -> bool:
    """Print every setting's table; whether there was one."""
    found = needs(cells)
    for one in found:
        console.print()
        if len(found) > 1:
            console.print(Text(encodable(clean(one.title), console)))
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
        table.add_column(one.headers[0], no_wrap=True, overflow="ellipsis")
        for header in one.headers[1:]:
            table.add_column(header, justify="right", no_wrap=True)
        for row in one.rows:
            table.add_row(*(Text(encodable(clean(text or DASH), console)) for text in row))
        console.print(table)
    return bool(found)
