"""Words and figures that every report shares: groups of cells, their labels, and roundings.

A figure never has more digits than its interval supports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from netsim_ddp.results import stats
from netsim_ddp.results.record import Cell, Interval
from netsim_ddp.results.training_record import MeanInterval

if TYPE_CHECKING:
    from rich.console import Console

DASH = "–"


def resolution(value: Interval) -> float:
    """The last digit worth printing of ``value``, in its own unit: the first digit of its half width.

    Without an interval it is the third significant digit.
    """
    half = stats.half_width(value)
    if half > 0:
        return 10.0 ** math.floor(math.log10(half))
    return 10.0 ** (math.floor(math.log10(value.median)) - 2) if value.median > 0 else 1.0


def rounded(value: float, step: float) -> str:
    """``value`` to a multiple of ``step``, a power of ten: ``rounded(1553.7, 10) == "1550"``."""
    decimals = max(0, -round(math.log10(step)))
    return f"{round(value / step) * step:.{decimals}f}"


def two_digits(value: float) -> str:
    """``0.65``, ``110``: what a figure read off a curve is worth."""
    return f"{float(f'{value:.2g}'):g}"


def outwards(low: float, high: float) -> tuple[float, float]:
    """An interval's ends at two digits, rounded so that it still holds what it held."""
    ends = []
    for value, way in ((low, math.floor), (high, math.ceil)):
        last = 10.0 ** (math.floor(math.log10(value)) - 1) if value > 0 and math.isfinite(value) else 0.0
        # A value that has two digits already stays, whatever its last bit says.
        count = value / last if last else 0.0
        whole = round(count) if abs(count - round(count)) < 1e-9 else way(count)
        ends.append(float(f"{whole * last:.2g}") if last else value)
    return ends[0], ends[1]


def milliseconds(value: Interval) -> str:
    """``1554±6``; without an interval ``1550``. ``value`` is in seconds."""
    scaled = Interval(median=value.median * 1e3, ci_low=value.ci_low * 1e3, ci_high=value.ci_high * 1e3)
    # Finer than a microsecond is the clock's own noise.
    last = max(resolution(scaled), 1e-3)
    half = stats.half_width(scaled)
    if half <= 0:
        return rounded(scaled.median, last)
    # Rounded up from the middle that is printed, so that what is printed holds the whole interval.
    middle = round(scaled.median / last) * last
    half = max(scaled.ci_high - middle, middle - scaled.ci_low)
    return f"{rounded(middle, last)}±{rounded(math.ceil(round(half / last, 9)) * last, last)}"


def basis(cells: Sequence[Cell]) -> str:
    """What the times of ``cells`` are, and what their ± is worth: ``ms per step, slowest rank, median of 3 runs ± range
    (a 75% interval)``."""
    if all(cell.execution == "predicted" for cell in cells):
        known = any(cell.prediction_error is not None for cell in cells)
        return f"ms per step, predicted{' ± how far such predictions were off' if known else ''}"
    runs = sorted({len(cell.repeats) for cell in cells if cell.repeats}) or [0]
    count = (
        f"{runs[0]} run"
        if runs == [1]
        else " to ".join(str(each) for each in dict.fromkeys((runs[0], runs[-1])))
    )
    text = f"ms per step, slowest rank, median of {count}{'' if runs == [1] else ' runs'}"
    if runs[0] >= stats.REPEATS_FOR_95:
        return f"{text} ± a 95% interval"
    if runs[-1] == 1:
        return text
    least = f"{'a' if len(runs) == 1 else 'at least a'} {stats.coverage(max(runs[0], 2)):.0%} interval"
    return f"{text} ± range ({least}{', none of one run' if runs[0] == 1 else ''})"


def step_header(cells: Sequence[Cell]) -> str:
    """``step±95%`` where the interval is one."""
    if any(cell.prediction_error is not None for cell in cells):
        return "step±"
    runs = [len(cell.repeats) for cell in cells if cell.repeats] or [1]
    return "step" if max(runs) == 1 else "step±95%" if min(runs) >= stats.REPEATS_FOR_95 else "step±"


def count_of(parameters: int) -> str:
    """``25557032`` -> ``25.6M``."""
    for scale, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if parameters >= scale:
            return f"{parameters / scale:.3g}{letter}"
    return str(parameters)


def points(difference: MeanInterval | None) -> str:
    """``-0.11±0.58``: percentage points, with half the interval."""
    return with_half(difference, ".2f", sign="+")


def with_half(value: MeanInterval | None, digits: str, *, sign: str = "", scale: float = 1.0) -> str:
    """``value`` times ``scale`` with half its interval, both with as many ``digits`` as this format gives them."""
    if value is None:
        return DASH
    text = f"{scale * value.mean:{sign}{digits}}"
    return text if value.ci_high is None else f"{text}±{scale * (value.ci_high - value.mean):{digits}}"


def times(value: float, *intervals: Interval) -> str:
    """A ratio of the medians of ``intervals``, as ``14.8x``: three digits at most, two for single runs."""
    if value <= 0 or not math.isfinite(value):
        return DASH
    digits = 10.0 ** math.floor(math.log10(value))
    errors = [stats.half_width(part) / part.median if part.median > 0 else 0.0 for part in intervals]
    error = value * sum(errors)
    last = digits / 10 if intervals and 0.0 in errors else digits / 100
    if error > 0:
        last = max(last, 10.0 ** math.floor(math.log10(error)))
    # A ratio that rounds to nothing would read as infinitely slow.
    return rounded(value, min(last, digits)) + "x"


def encodable(text: str, console: Console) -> str:
    """``text`` without the signs that an ASCII pipe cannot carry."""
    # As console.options decides, which asks for the size every time.
    if console.encoding.lower().startswith("utf"):
        return text
    return text.replace("±", "+-").replace(DASH, "-").encode("ascii", "replace").decode("ascii")
