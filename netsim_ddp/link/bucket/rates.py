"""How fast one side of an emulated link works: at one rate, at rates that change in time, or on credit.

A service rate turns work, in bits, into time, in seconds of the caller's clock.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class ServiceRate(Protocol):
    """What a side can do from a moment on."""

    def end(self, start: float, work: float) -> float:
        """When ``work`` that begins at ``start`` is done, if nothing interrupts it."""

    def within(self, start: float, end: float) -> float:
        """How much work is done from ``start`` to ``end``."""


@dataclass
class ConstantRate:
    """One rate for ever."""

    rate: float

    def end(self, start: float, work: float) -> float:
        return start + work / self.rate

    def within(self, start: float, end: float) -> float:
        return (end - start) * self.rate


class VaryingRate:
    """Rates that change at given moments, and begin anew after ``period`` where there is one.

    Args:
        times: when each rate begins, ascending, the first at 0.
        rates: bits per second.
        offset: what ``times`` say when the caller's clock says 0.
    """

    def __init__(
        self, times: Sequence[float], rates: Sequence[float], period: float | None, offset: float
    ) -> None:
        self._times, self._rates, self._period, self._offset = times, rates, period, offset

    def _at(self, moment: float) -> tuple[float, float]:
        """The rate at ``moment`` and for how long it lasts."""
        moment = max(0.0, moment + self._offset)
        lap = math.fmod(moment, self._period) if self._period else moment
        index = bisect_right(self._times, lap) - 1
        until = (self._period or math.inf) if index + 1 == len(self._times) else self._times[index + 1]
        # Rounding must not leave a stretch of no length, in which nothing would ever get done.
        return self._rates[index], max(until - lap, 1e-9)

    def end(self, start: float, work: float) -> float:
        while work > 0:
            rate, lasts = self._at(start)
            if work <= rate * lasts:
                return start + work / rate
            work -= rate * lasts
            start += lasts
        return start

    def within(self, start: float, end: float) -> float:
        done = 0.0
        while start < end:
            rate, lasts = self._at(start)
            step = min(lasts, end - start)
            done += rate * step
            start += step
        return done


class CreditRate:
    """A cloud's token bucket: ``peak_bps`` while there is credit, ``base_bps`` after it. Credit comes in at the
    base rate whenever less is sent.

    Args:
        spent: bits of credit that are gone at ``since``.
    """

    def __init__(self, base_bps: float, peak_bps: float, credit: float, spent: float, since: float) -> None:
        self._base, self._peak, self._credit = base_bps, peak_bps, credit
        self.spent, self.since = spent, since

    def _spent_at(self, start: float) -> float:
        """Bits of credit that are still gone at ``start``."""
        return max(0.0, self.spent - self._base * max(0.0, start - self.since))

    def _peak_seconds(self, start: float) -> float:
        """How long the peak can be held from ``start`` on."""
        return (self._credit - self._spent_at(start)) / (self._peak - self._base)

    def _send(self, start: float, seconds: float) -> None:
        """Note that the side worked for ``seconds``: the peak spends what it takes beyond the base."""
        fast = min(seconds, self._peak_seconds(start))
        self.spent = self._spent_at(start) + fast * (self._peak - self._base)
        self.since = max(self.since, start + seconds)

    def end(self, start: float, work: float) -> float:
        fast = self._peak_seconds(start)
        seconds = work / self._peak
        if seconds > fast:
            seconds = fast + (work - fast * self._peak) / self._base
        self._send(start, seconds)
        return start + seconds

    def within(self, start: float, end: float) -> float:
        fast = min(end - start, self._peak_seconds(start))
        self._send(start, end - start)
        return fast * self._peak + (end - start - fast) * self._base


SECONDS = ConstantRate(1.0)
"""For work that is given as the time it takes."""
