"""Where each method breaks even, as a table below a sweep's own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from rich.console import Console

from netsim_ddp.report.labels import DASH, outwards, two_digits
from netsim_ddp.report.tables import Table
from netsim_ddp.report.terminal.printing import print_line, print_table
from netsim_ddp.results.break_even import FURTHEST
from netsim_ddp.results.crossover import BreakEven, break_evens
from netsim_ddp.results.identity import curve_setting, line
from netsim_ddp.results.labels import curve_label, label
from netsim_ddp.results.record import Cell
from netsim_ddp.results.summary import RIVALS
from netsim_ddp.units import counted, format_rate

_UNIT = re.compile(r" \S?bit/s$")
_CODEC_FACTORS = (0.25, 0.5, 2.0, 4.0)


def render_break_evens(cells: Sequence[Cell], console: Console) -> None:
    """Below which bandwidth each method pays, against every rival that was measured; nothing without such an axis."""
    by_rival = {
        name: ends
        for rival, name in RIVALS.items()
        if (
            ends := {
                (curve_setting(one.cell, "bandwidth"), line(one.cell)): one
                for one in break_evens(cells, rival)
            }
        )
    }
    if not by_rival:
        return
    found = {key: one for ends in by_rival.values() for key, one in ends.items()}
    plots = dict.fromkeys(plot for plot, _ in found)
    for plot in plots:
        keys = [key for key in found if key[0] == plot]
        console.print()
        cell = found[keys[0]].cell
        if len(plots) > 1:
            models = {other.cell.model for other in found.values()}
            model = f"{cell.model}, " if len(models) > 1 else ""
            print_line(console, f"{model}{counted(cell.workers, 'worker')}, {curve_label(cell)}")
        same = [other for other in cells if other.workers == cell.workers and other.model == cell.model]
        names = {key: label(found[key].cell, same) for key in keys}
        rows = [(names[key], [ends.get(key) for ends in by_rival.values()]) for key in keys]
        print_table(console, [_table(list(by_rival), rows)])
        first, ends = next(iter(by_rival.items()))
        compared = [(names[key], ends[key]) for key in keys if key in ends]
        if (codec := _codec_table(first, compared)) is not None:
            console.print()
            print_table(console, [codec])
    every = [one for ends in by_rival.values() for one in ends.values()]
    spans = dict.fromkeys((one.lowest_bps, one.highest_bps) for one in every if one.model_bps is not None)
    if spans:
        span = " or ".join(f"{format_rate(low)} to {format_rate(high)}" for low, high in spans)
        print_line(
            console,
            f"~ faster at every rate measured ({span}). Beyond, the model's figure: a step stays a constant +"
            " bytes / rate. It has no interval.",
        )
    if left_out := sorted({rate for one in every for rate in one.left_out}):
        print_line(console, left_out_words(left_out))


def left_out_words(rates_bps: Iterable[float]) -> str:
    """Why some rates have no part in any break-even."""
    rates = ", ".join(map(format_rate, rates_bps))
    return f"Left out, since there this host and not the link sets a pace: {rates}."


def _table(rivals: Sequence[str], rows: Sequence[tuple[str, Sequence[BreakEven | None]]]) -> Table:
    ends = [[pays_below(one) for one in found] for _, found in rows]
    shared = {match[0] for texts in ends for text in texts if (match := _UNIT.search(text))}
    unit = shared.pop() if len(shared) == 1 else ""
    # One unit for all stands above them: with it in every cell, 80 columns would cut it off.
    interval = "\n(95% interval)" if any("(" in text for texts in ends for text in texts) else ""
    first = f"pays below,{unit}{interval}" if unit else f"pays below{interval}"
    texts = [
        (name, *(text.removesuffix(unit) for text in found))
        for (name, _), found in zip(rows, ends, strict=True)
    ]
    headers = (first, *(f"than {rival}" for rival in rivals))
    return Table(headers, texts, left=range(len(headers)))


def pays_below(one: BreakEven | None) -> str:
    """``780 (650 to 900) Mbit/s`` with its 95% interval; ``~6.5 Gbit/s``, without one, where only the model reaches."""
    if one is None:
        return DASH
    lowest, highest = format_rate(one.lowest_bps), format_rate(one.highest_bps)
    if one.kind == "never pays in range":
        return f"nowhere from {lowest} on"
    if one.bps is not None:
        low = "..." if one.low_bps == one.lowest_bps else one.low_bps
        high = "..." if one.high_bps == one.highest_bps else one.high_bps
        return _span(one.bps, low, high)
    if one.model_bps is None:
        return f"over {highest}"
    if math.isinf(one.model_bps):
        return "~any"
    if one.model_bps > FURTHEST * one.highest_bps:
        return f"~over {format_rate(FURTHEST * one.highest_bps)}"
    return "~" + _span(one.model_bps, None, None)


def _codec_table(rival: str, named: Sequence[tuple[str, BreakEven]]) -> Table | None:
    """The codec's time that each break-even rests on, and the break-even with a faster or a slower one: another
    machine's codec moves it further than any repeat does."""
    known = [
        (name, one)
        for name, one in named
        if one.codec_s > 0 and (one.bps is not None or one.model_bps is not None)
    ]
    if not known:
        return None
    unit, scale = ("Gbit/s", 1e9) if any(one.highest_bps >= 1e9 for _, one in known) else ("Mbit/s", 1e6)
    headers = (
        f"than {rival}, by codec, {unit}",
        "codec, ms",
        *(f"x {factor:g}" for factor in _CODEC_FACTORS),
    )
    rows = [
        (
            name,
            two_digits(one.codec_s * 1e3),
            *(_at(one, one.codec_s * factor, scale) for factor in _CODEC_FACTORS),
        )
        for name, one in known
    ]
    return Table(headers, rows)


def _at(one: BreakEven, codec_s: float, scale: float) -> str:
    bps, measured = one.at_codec(codec_s)
    if bps is None:
        return f"over {two_digits(one.highest_bps / scale)}"
    if bps == 0:
        return f"under {two_digits(one.lowest_bps / scale)}"
    if math.isinf(bps):
        return "any"
    if not measured and bps > FURTHEST * one.highest_bps:
        return f"~over {two_digits(FURTHEST * one.highest_bps / scale)}"
    return ("" if measured else "~") + two_digits(bps / scale)


def _span(bps: float, low: float | str | None, high: float | str | None) -> str:
    """``780 (650 to 900) Mbit/s``, all in the unit of the first; ``...`` where an interval has no end in sight."""
    _, _, unit = format_rate(bps).partition(" ")
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(unit[0], 1.0)

    if low is None or high is None:
        return f"{two_digits(bps / scale)} {unit}"
    ends = outwards(*(1.0 if isinstance(rate, str) else rate / scale for rate in (low, high)))
    texts = [
        rate if isinstance(rate, str) else f"{end:g}" for rate, end in zip((low, high), ends, strict=True)
    ]
    return f"{two_digits(bps / scale)} ({texts[0]} to {texts[1]}) {unit}"
