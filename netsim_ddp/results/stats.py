"""Statistics of repeated runs: medians and means, how far to trust them, and what looks wrong with the samples.

The independent sample is one repeat (fresh processes), represented by its median step, or one seed of a training: steps
inside one process are correlated, so counting them as samples would promise a precision that nobody has. Nothing is
removed as an outlier; suspicious samples give a note instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median, stdev

import numpy as np
from numpy.typing import NDArray

from netsim_ddp.results.record import Interval

# Below this many repeats even the whole range covers the true median less than 95% of the time.
REPEATS_FOR_95 = 6
DRIFT_FLOOR = 0.10
NOISE_FLOOR = 0.10
_RESAMPLES = 10_000
_RATIO_RESAMPLES = 4_000


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


@functools.cache
def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t with ``freedom`` degrees, to ten digits, by bisection.

    Raises:
        ValueError: a probability outside (0, 1), fewer than one degree.
    """
    if not 0 < probability < 1 or freedom < 1:
        raise ValueError(f"no quantile of t at {probability} with {freedom} degrees of freedom")
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    low, high = 0.0, 1.0
    while _within(high, freedom) < 2 * probability - 1:
        low, high = high, high * 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 2 * probability - 1 else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| < t) for a whole number of degrees: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle, odd = math.atan2(t, math.sqrt(freedom)), freedom % 2
    each = np.arange(1 + odd, freedom - 2, 2)
    series = 1 + float(np.cumprod(each / (each + 1) * math.cos(angle) ** 2).sum())
    if not odd:
        return math.sin(angle) * series
    return 2 / math.pi * (angle + (math.sin(angle) * math.cos(angle) * series if freedom > 1 else 0.0))


def interval(samples: Sequence[float], *, seed: int = 0) -> Interval:
    """Median with its percentile-bootstrap 95% interval, in the unit of ``samples`` (one per repeat).

    The percentiles are widened for small samples, see :func:`widened_tail`. Below ``REPEATS_FOR_95`` samples the
    result is their range; ``coverage`` says what that is worth. A single sample has no interval:
    ``ci_low == ci_high == median``. The same samples give the same interval.
    """
    middle = float(median(samples))
    values = np.asarray(samples, dtype=np.float64)
    if len(values) < REPEATS_FOR_95:
        return Interval(median=middle, ci_low=float(values.min()), ci_high=float(values.max()))
    medians = _resampled_medians(values, _RESAMPLES, np.random.default_rng(seed))
    tail = widened_tail(len(values))
    low, high = np.quantile(medians, [tail, 1 - tail])
    # The resampled quantiles may miss the median itself by a rounding error when samples are equal.
    return Interval(median=middle, ci_low=min(float(low), middle), ci_high=max(float(high), middle))


def _resampled_medians(
    values: NDArray[np.float64], count: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """[count] medians of ``values`` drawn with replacement."""
    medians: NDArray[np.float64] = np.median(generator.choice(values, size=(count, len(values))), axis=1)
    return medians


@functools.cache
def widened_tail(count: int) -> float:
    """The percentile that stands for 2.5% in a bootstrap of ``count`` samples (at least two).

    Hesterberg's expanded percentile ("What Teachers Should Know About the Bootstrap", 2015): alpha' =
    Phi(-sqrt(n/(n-1)) t(alpha/2, n-1)). Without it seven repeats cover 87%, with it 98%.
    """
    return NormalDist().cdf(-math.sqrt(count / (count - 1)) * t_quantile(0.975, count - 1))


def coverage(repeats: int) -> float:
    """How often the interval of ``repeats`` samples holds the true median, as a fraction: at most 0.95.

    A range misses only when all samples fall on one side: 1 - 2^(1-n).
    """
    return min(0.95, 1 - 2.0 ** (1 - repeats)) if repeats > 0 else 0.0


def half_width(value: Interval) -> float:
    """The larger side of the interval: what stands behind the ±. Zero for a single repeat."""
    return max(value.ci_high - value.median, value.median - value.ci_low, 0.0)


def mean_interval(samples: Sequence[float]) -> Estimate:
    """The mean with its 95% t-interval: mean ± t(n-1) · s / sqrt(n), in the unit of ``samples``.

    Exact for normal samples. ``samples``: at least one, finite.

    Raises:
        ValueError: no samples, or one that is not finite.
    """
    if not samples or not all(math.isfinite(value) for value in samples):
        raise ValueError("a mean needs samples, all of them finite")
    mean, count = fmean(samples), len(samples)
    if count == 1:
        return Estimate(mean, -math.inf, math.inf, 0.95, count)
    half = t_quantile(0.975, count - 1) * stdev(samples) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, 0.95, count)


def ratio_interval(base: Sequence[float], new: Sequence[float], *, seed: int = 0) -> Estimate:
    """median(new) / median(base) with an interval; both samples positive and independent of each other.

    From ``REPEATS_FOR_95`` samples on either side on it is the bootstrap's 95% interval, both sides resampled, its
    percentiles widened as in :func:`interval`. Below that it is [min(new) / max(base), max(new) / min(base)]: where
    one side is a multiple of the other in distribution it misses only if all of one side lie above all of the other,
    which gives the ``level`` 1 - 2 / C(n + m, n), capped at 0.95. The same samples give the same interval.

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
    ratios = _resampled_medians(ours, _RATIO_RESAMPLES, generator) / _resampled_medians(
        theirs, _RATIO_RESAMPLES, generator
    )
    tail = widened_tail(fewer)
    low, high = (float(value) for value in np.quantile(ratios, [tail, 1 - tail]))
    return Estimate(ratio, min(low, ratio), max(high, ratio), 0.95, fewer)


def drift(steps: Sequence[float]) -> float | None:
    """Relative change from the first third of ``steps`` to the last: 0.2 means they end 20% slower.

    None where there is nothing to report: fewer than nine steps, a change below ``DRIFT_FLOOR``, or thirds
    whose samples overlap (a trend is then not told from noise).
    """
    third = len(steps) // 3
    first, last = steps[:third], steps[len(steps) - third :]
    if third < 3 or (max(first) >= min(last) and max(last) >= min(first)) or median(first) <= 0:
        return None
    change = median(last) / median(first) - 1
    return change if abs(change) > DRIFT_FLOOR else None


def noise(samples: Sequence[float]) -> float | None:
    """(max - min) / median over repeats where it exceeds ``NOISE_FLOOR``, else None."""
    if len(samples) < 2 or (middle := median(samples)) <= 0:
        return None
    spread = (max(samples) - min(samples)) / middle
    return spread if spread > NOISE_FLOOR else None
