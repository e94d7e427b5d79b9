"""Intervals beside the bootstrap of one median (:mod:`netsim_ddp.results.stats`): of a mean and of paired differences
by Student's t, of a ratio of two medians by the bootstrap. A sample is one repeat, or one seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from netsim_ddp.results.stats import REPEATS_FOR_95, median, widened_tail
from netsim_ddp.results.student import student_t

_RESAMPLES = 4_000


@dataclass(frozen=True)
class Estimate:
    """A value and the interval that holds the true one with probability ``level``, all in one unit.

    From a single sample nothing is known but the value: ``low`` is minus infinity and ``high`` infinity.
    """

    value: float
    low: float
    high: float
    level: float
    count: int
    """Samples (of a ratio: of the smaller side) behind it."""

    @property
    def half_width(self) -> float:
        """The larger side: what stands behind the ±."""
        return max(self.high - self.value, self.value - self.low)

    def holds(self, value: float) -> bool:
        """Whether ``value`` cannot be told from the estimate."""
        return self.low <= value <= self.high


def mean_interval(samples: Sequence[float], *, level: float = 0.95) -> Estimate:
    """The mean with its t-interval: mean ± t(n-1) · s / sqrt(n), in the unit of ``samples``.

    Exact for normal samples. ``samples``: at least one, finite.

    Raises:
        ValueError: no samples, one that is not finite, or a ``level`` outside (0, 1).
    """
    if not samples or not all(math.isfinite(value) for value in samples):
        raise ValueError("a mean needs samples, all of them finite")
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    mean, count = fmean(samples), len(samples)
    if count == 1:
        return Estimate(mean, -math.inf, math.inf, level, count)
    half = student_t((1 + level) / 2, count - 1) * stdev(samples) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, level, count)


def paired_interval(ours: Sequence[float], theirs: Sequence[float], *, level: float = 0.95) -> Estimate:
    """The mean of ``ours[i] - theirs[i]`` with its t-interval; i is one seed, so what both share cancels.

    Raises:
        ValueError: the sequences differ in length, and as :func:`mean_interval`.
    """
    return mean_interval([a - b for a, b in zip(ours, theirs, strict=True)], level=level)


def ratio_interval(base: Sequence[float], new: Sequence[float], *, seed: int = 0) -> Estimate:
    """median(new) / median(base) with an interval; both samples positive and independent of each other.

    From ``REPEATS_FOR_95`` samples on either side on it is the bootstrap's 95% interval, both sides resampled, its
    percentiles widened as in :func:`netsim_ddp.results.stats.interval`. Below that it is [min(new) / max(base),
    max(new) / min(base)]: where one side is a multiple of the other in distribution it misses only if all of one
    side lie above all of the other, which gives the ``level`` 1 - 2 / C(n + m, n), capped at 0.95.
    The same samples give the same interval.

    Raises:
        ValueError: a side without samples, or one that is not positive.
    """
    ours, theirs = np.asarray(new, dtype=np.float64), np.asarray(base, dtype=np.float64)
    if not (len(ours) and len(theirs) and ours.min() > 0 and theirs.min() > 0):
        raise ValueError("a ratio of medians needs positive samples on both sides")
    ratio = median(new) / median(base)
    fewer = min(len(ours), len(theirs))
    if fewer < REPEATS_FOR_95:
        level = min(0.95, 1 - 2 / math.comb(len(ours) + len(theirs), len(ours)))
        low, high = float(ours.min() / theirs.max()), float(ours.max() / theirs.min())
        return Estimate(ratio, low, high, max(level, 0.0), fewer)
    generator = np.random.default_rng(seed)
    ratios = _resampled_medians(ours, generator) / _resampled_medians(theirs, generator)
    tail = widened_tail(fewer)
    low, high = (float(value) for value in np.quantile(ratios, [tail, 1 - tail]))
    return Estimate(ratio, min(low, ratio), max(high, ratio), 0.95, fewer)


def _resampled_medians(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """[resamples] medians of ``values`` drawn with replacement."""
    drawn: np.ndarray = generator.choice(values, size=(_RESAMPLES, len(values)))
    medians: np.ndarray = np.median(drawn, axis=1)
    return medians
