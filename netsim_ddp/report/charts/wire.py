"""How the bytes of a step grow with the workers, as measured and by formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from netsim_ddp.methods import entry_of
from netsim_ddp.methods.entry import Growth, ring
from netsim_ddp.report.charts.shapes import (
    Chart,
    Point,
    Series,
    by_label,
    charged,
    panel_title,
    panels_of,
    series,
)
from netsim_ddp.report.collection import Collection, Entry
from netsim_ddp.results.labels import link_label
from netsim_ddp.results.record import Cell

# Two links whose methods send the same within this share one plot of bytes.
SAME_BYTES = 0.02
GROWTH: dict[Growth, tuple[str, Callable[[float], float]]] = {
    "ring": ("2(P-1)/P", ring),
    "gather": ("P-1", lambda ranks: ranks - 1),
}
"""How a rank's bytes grow with the number of ranks, by the formula of the scheme."""


def growth_of(cell: Cell) -> Growth | None:
    """The formula of a method's scheme; None for a user's own method, whose scheme nobody told."""
    return entry_of(cell.method).growth(cell.params)


def bytes_over_workers(collection: Collection) -> list[Chart]:
    """Bytes sent per rank and step against workers, and by the formulas beyond what was measured."""
    charts: list[tuple[list[str], Chart]] = []
    for panel in panels_of(collection, without="workers"):
        series = [one for entries in by_label(panel) if (one := _bytes_series(entries)) is not None]
        counts = sorted({point.x for one in series for point in one.points})
        if len(counts) < 2:
            continue
        link = link_label(panel[0].cell)
        twin = next((known for known, chart in charts if _same_bytes(chart.series, series)), None)
        if twin is not None:
            twin.append(link)
            continue
        most = _formula_end(counts)
        ticks = tuple((float(count), f"{count:g}") for count in (*counts, *_powers(counts[-1], most)))
        gathers = any(growth_of(entry.cell) == "gather" for entry in panel)
        notes = [f"Dotted: by the formula, up to {most} workers; {GROWTH['ring'][0]} x what was measured"]
        notes[0] += f", all-gathers {GROWTH['gather'][0]} x." if gathers else "."
        if charged(panel):
            notes.append("Bytes are charged by the bucket, not measured.")
        charts.append(
            (
                [link],
                Chart(
                    key="bytes",
                    kind="bytes against workers",
                    title=panel_title(panel[0], workers=False),
                    x_label="workers",
                    y_label="MB sent per rank and step",
                    series=tuple(series),
                    x_log=True,
                    y_log=True,
                    notes=tuple(notes),
                    x_ticks=ticks,
                ),
            )
        )
    return [_titled(chart, links) for links, chart in charts]


def _titled(chart: Chart, links: Sequence[str]) -> Chart:
    names = ", ".join(dict.fromkeys(links))
    same = f" (the same within {SAME_BYTES:.0%})" if len(links) > 1 else ""
    return replace(chart, title=f"{chart.title}, {names}{same}")


def _bytes_series(entries: Sequence[Entry]) -> Series | None:
    points = [
        Point(float(entry.cell.workers), value, value, value)
        for entry in entries
        if entry.cell.summary and (value := entry.cell.summary.tx_bytes_per_step / 1e6) > 0
    ]
    if not points:
        return None
    one = series(entries[0], points)
    growth = {growth_of(entry.cell) for entry in entries}
    kind = (
        growth.pop() if len(growth) == 1 else None
    )  # a collective that changes with P follows no one formula
    last = one.points[-1]
    if kind is None or last.x < 2:
        return one
    factor = GROWTH[kind][1]
    scale = last.y / factor(last.x)
    ends = [last.x, *(float(count) for count in _powers(last.x, _formula_end([last.x])))]
    beyond = tuple((count, scale * factor(count)) for count in ends)
    return Series(one.label, one.colour, one.dashed, one.points, formula=beyond)


def _formula_end(counts: Sequence[float]) -> int:
    """Four times the workers that were measured, and at least 32."""
    return max(32, int(2 ** math.ceil(math.log2(4 * max(counts)))))


def _powers(above: float, most: int) -> list[int]:
    return [count for power in range(1, 20) if above < (count := 2**power) <= most]


def _same_bytes(known: Sequence[Series], new: Sequence[Series]) -> bool:
    if [(one.label, len(one.points)) for one in known] != [(one.label, len(one.points)) for one in new]:
        return False
    points = ([point for one in each for point in one.points] for each in (known, new))
    return all(
        a.x == b.x and abs(a.y - b.y) <= SAME_BYTES * max(a.y, b.y) for a, b in zip(*points, strict=True)
    )
