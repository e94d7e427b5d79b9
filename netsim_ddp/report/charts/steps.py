"""Where a step's time goes, and at which bandwidth it pays: bars of phases, speedups with their break-evens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from netsim_ddp.report.charts.shapes import (
    Bar,
    Bars,
    Chart,
    Mark,
    Point,
    Series,
    by_label,
    panel_title,
    panels_of,
    series,
)
from netsim_ddp.report.collection import Collection, Entry
from netsim_ddp.report.crossover import left_out_words, pays_below
from netsim_ddp.report.labels import two_digits
from netsim_ddp.results.break_even import FURTHEST, continued, curve
from netsim_ddp.results.crossover import BreakEven, break_evens
from netsim_ddp.results.identity import line
from netsim_ddp.results.record import Cell
from netsim_ddp.results.stats import ratio_interval
from netsim_ddp.results.summary import (
    PHASES,
    RIVALS,
    Rival,
    held_against,
    repeat_medians,
    speedup,
    speedup_bound,
)

# Of each cell, by its identity: the median step of every repeat, in seconds.
Medians = Mapping[int, Sequence[float]]


def phase_bars(collection: Collection) -> list[Bars]:
    """One plot per block with measured steps."""
    plots = []
    for block in collection.blocks:
        bars = tuple(
            Bar(
                entry.label,
                entry.colour,
                entry.cell.overlap,
                tuple(max(getattr(entry.cell.summary, name), 0.0) * 1e3 for name in PHASES),
                entry.cell.summary.step_s,
            )
            for entry in block.entries
            if entry.cell.summary
        )
        if bars:
            plots.append(Bars("phases", block.heading, bars))
    return plots


def speedups(collection: Collection) -> list[Chart]:
    """Speedup against bandwidth, over every rival that was measured, with the break-evens."""
    charts: list[Chart] = []
    for panel in panels_of(collection, without="bandwidth"):
        if len({entry.cell.bandwidth_bps for entry in panel} - {None}) < 2:
            continue
        medians = {id(entry.cell): repeat_medians(entry.cell) for entry in panel}
        charts += [chart for rival in RIVALS if (chart := _speedup(panel, medians, rival)) is not None]
    return charts


def _speedup(panel: Sequence[Entry], medians: Medians, rival: Rival) -> Chart | None:
    cells = [entry.cell for entry in panel]
    found = break_evens(cells, rival)
    by_line = {line(one.cell): one for one in found}
    drawn = []
    for entries in by_label(panel):
        first = entries[0]
        if all(held_against(entry.cell, cells, rival) is entry.cell for entry in entries):
            continue  # the reference line
        points = [
            point for entry in entries if (point := _speedup_point(entry, cells, medians, rival)) is not None
        ]
        if points:
            drawn.append(_curved(series(first, points), by_line.get(line(first.cell))))
    rates = {point.x for one in drawn for point in one.points}
    if len(rates) < 2:
        return None
    entries_of = {line(entry.cell): entry for entry in panel}
    marks = tuple(
        Mark(
            entries_of[line(one.cell)].colour,
            one.bps / 1e6,
            one.low_bps / 1e6 if one.low_bps else None,
            one.high_bps / 1e6 if one.high_bps else None,
        )
        for one in found
        if one.bps is not None
    )
    named = [(one, entries_of[line(one.cell)].label) for one in found]
    return Chart(
        key="speedup" if rival == "plain" else f"speedup-over-{rival}",
        kind=f"speedup over {RIVALS[rival]} against bandwidth",
        title=panel_title(panel[0], workers=True),
        x_label="bandwidth, Mbit/s",
        y_label=f"speedup over {RIVALS[rival]}",
        series=tuple(drawn),
        x_log=True,
        y_log=True,
        reference=1.0,
        marks=marks,
        notes=_notes(found, marks),
        x_ticks=_rate_ticks(drawn, rates),
        ends=tuple((label, pays_below(one)) for one, label in named),
    )


def _curved(one: Series, found: BreakEven | None) -> Series:
    """The method's points with the curve that its break-even is read from."""
    if found is None:
        return one
    furthest = FURTHEST * found.highest_bps
    model = [] if found.model_bps is None else continued(found.steps, min(1.2 * found.model_bps, furthest))
    inside, beyond = (
        tuple((rate / 1e6, value) for rate, value in each if value > 0)
        for each in (curve(found.steps), model)
    )
    return replace(one, curve=inside, model=beyond)


def _rate_ticks(drawn: Sequence[Series], rates: set[float]) -> tuple[tuple[float, str], ...]:
    """The rates measured, and how far the model's curves go."""
    ends = {float(two_digits(max(x for x, _ in one.model))) for one in drawn if one.model}
    return tuple((rate, f"{rate:g}") for rate in sorted({*rates, max(ends, default=max(rates))}))


def utilisation_curves(collection: Collection) -> list[Chart]:
    """Compute / step over bandwidth, in percent: what share of the time the processors work."""
    charts = []
    for panel in panels_of(collection, without="bandwidth"):
        drawn = []
        for entries in by_label(panel):
            points = [
                Point(cell.bandwidth_bps / 1e6, value, value, value)
                for entry in entries
                if (cell := entry.cell).summary
                and cell.bandwidth_bps
                and not cell.link.host_limited
                and (value := 100 * cell.summary.efficiency) > 0
            ]
            if len({point.x for point in points}) > 1:
                drawn.append(series(entries[0], points))
        if not drawn:
            continue
        rates = sorted({point.x for one in drawn for point in one.points})
        charts.append(
            Chart(
                key="utilisation",
                kind="utilisation against bandwidth",
                title=panel_title(panel[0], workers=True),
                x_label="bandwidth, Mbit/s",
                y_label="compute / step, %",
                series=tuple(drawn),
                x_log=True,
                x_ticks=tuple((rate, f"{rate:g}") for rate in rates),
            )
        )
    return charts


def _speedup_point(entry: Entry, cells: Sequence[Cell], medians: Medians, rival: Rival) -> Point | None:
    summary, rate = entry.cell.summary, entry.cell.bandwidth_bps
    if summary is None or not rate:
        return None
    value = speedup(summary, rival)
    # A bound is no point of a curve.
    if speedup_bound(summary, rival) or value is None or value <= 0 or not math.isfinite(value):
        return None
    dense = held_against(entry.cell, cells, rival)
    ours, theirs = medians[id(entry.cell)], medians[id(dense)] if dense else []
    low = high = value
    if min(len(ours), len(theirs)) > 1 and min(*ours, *theirs) > 0:
        ratio = ratio_interval(ours, theirs)
        low, high = min(ratio.low, value), max(ratio.high, value)
    return Point(rate / 1e6, value, low, high)


def _notes(found: Sequence[BreakEven], marks: Sequence[Mark]) -> tuple[str, ...]:
    left_out = sorted({rate for one in found for rate in one.left_out})
    notes = {
        "Triangles: where a method and the baseline take equally long, with the 95% interval.": marks,
        "Curves: between two rates each step is a constant + bytes / rate, as the break-even is read.": found,
        "~ and dotted: pays at every bandwidth measured; beyond, where nothing was measured, the model's figure,"
        " without an interval: a step stays a constant + bytes / rate.": [
            one for one in found if one.model_bps is not None
        ],
        left_out_words(left_out): left_out,
    }
    return tuple(note for note, about in notes.items() if about)
