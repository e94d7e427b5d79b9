"""Axes: where a value stands and which ticks are worth a label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Of the digits of a tick label, in units of its font's size; a little too wide rather than too narrow.
CHARACTER = 0.6


@dataclass(frozen=True)
class Scale:
    """From ``low``..``high`` to ``start``..``end`` in the drawing, straight or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, 1e-300))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def around(values: Sequence[float], *, log: bool, zero: bool = False) -> tuple[float, float]:
    """A range with a little room at both ends; ``zero``: it starts there."""
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** 0.06, 1.08)
        return low / room, high * room
    if zero:
        return 0.0, high * 1.04 if high > 0 else 1.0
    room = max((high - low) * 0.06, abs(high) * 1e-3, 1e-9)
    return low - room, high + room


def ticks(low: float, high: float, *, log: bool, most: int = 6) -> list[float]:
    """Round values in ``low``..``high``: 1, 2 or 5 times a power of ten, about ``most`` at most."""
    if log and high / low > 8:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = [
                digit * 10.0**power
                for power in range(first, last + 1)
                for digit in digits
                if low <= digit * 10.0**power <= high
            ]
            if len(found) <= most + 1 or digits == (1,):
                return found
    rough = (high - low) / max(most - 1, 1)
    if rough <= 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [
        index * step
        for index in range(first, first + 2 * most + 2)
        if index * step <= high * (1 + 1e-9) and (not log or index > 0)
    ]


def tick_text(value: float) -> str:
    """``0.05``, ``1000``, ``2.5e+06`` only where nothing shorter is right."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}" if value < 1e6 else f"{value:.3g}"


def width(text: str, size: float) -> float:
    """About how wide ``text`` is in a sans-serif font of ``size``."""
    return len(text) * CHARACTER * size


def fitted(text: str, room: float, size: float) -> str:
    """``text``, its middle left out where it would need more than ``room``: methods differ at both ends."""
    most = max(int(room / (CHARACTER * size)), 3)
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def apart(places: Sequence[tuple[float, str]], size: float) -> list[tuple[float, str]]:
    """Those labels that do not run into the one before them."""
    kept: list[tuple[float, str]] = []
    for place, text in places:
        if not kept or place - width(text, size) / 2 > kept[-1][0] + width(kept[-1][1], size) / 2 + size / 2:
            kept.append((place, text))
    return kept
