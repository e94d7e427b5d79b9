"""Which bandwidth each method needs to keep the processors busy, as a table for every exporter."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from netsim_ddp.report.collection import grouped
from netsim_ddp.report.labels import two_digits
from netsim_ddp.report.tables import Table
from netsim_ddp.report.terminal.printing import print_line, print_table
from netsim_ddp.results.break_even import FURTHEST
from netsim_ddp.results.identity import curve_setting
from netsim_ddp.results.labels import curve_label, label
from netsim_ddp.results.record import Cell
from netsim_ddp.results.utilisation import LEVELS, Needed, Utilisation, utilisations
from netsim_ddp.units import counted

NOTE = (
    "Utilisation is compute / step. <: the lowest rate measured is enough. ~: beyond the rates measured, the model's"
    " figure (a step stays a constant + bytes / rate); ~never: by the model, what is not the wire takes longer at any"
    " rate."
)


def needs(cells: Sequence[Cell]) -> list[Table]:
    """A table for each setting whose methods were measured at two bandwidths or more."""
    plots = grouped(utilisations(cells), lambda one: curve_setting(one.cell, "bandwidth"))
    return [_table_of(methods, cells) for methods in plots]


def _table_of(methods: Sequence[Utilisation], cells: Sequence[Cell]) -> Table:
    gigabit = any(one.points[-1][0] >= 10**9 for one in methods)
    unit, scale = ("Gbit/s", 1e9) if gigabit else ("Mbit/s", 1e6)
    first = methods[0].cell
    same = [cell for cell in cells if cell.workers == first.workers and cell.model == first.model]
    rows = [
        (label(one.cell, same), *(_text(each, scale, one.points[-1][0] / scale) for each in one.needed))
        for one in methods
    ]
    return Table(
        title=f"bandwidth for a utilisation, {counted(first.workers, 'worker')}, {curve_label(first)}",
        headers=(f"needs, {unit}, for", *(f"{level:.0%}" for level in LEVELS)),
        rows=rows,
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
            print_line(console, one.title)
        print_table(console, [one])
    return bool(found)
