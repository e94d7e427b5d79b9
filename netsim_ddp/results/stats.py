"""Statistics of repeated runs: a median, how far to trust it, and what looks wrong with the samples.

The independent sample is one repeat (fresh processes), represented by its median step: steps inside one
process are correlated, so counting them as samples would promise a precision that nobody has. Nothing is
removed as an outlier; suspicious samples give a note instead.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from netsim_ddp.results.record import Interval
from netsim_ddp.results.student import student_t

# Below this many repeats even the whole range covers the true median less than 95% of the time.
REPEATS_FOR_95 = 6
DRIFT_FLOOR = 0.10
NOISE_FLOOR = 0.10
_RESAMPLES = 10_000


def median(samples: Sequence[float]) -> float:
    """The middle sample, or the mean of the two middle ones. ``samples``: at least one, finite."""
    if not samples:
        raise ValueError("the median of no samples")
    return float(statistics.median(samples))


def interval(samples: Sequence[float], *, seed: int = 0) -> Interval:
    """Median with its percentile-bootstrap 95% interval, in the unit of ``samples`` (one per repeat).

    The percentiles are widened for small samples, see :func:`widened_tail`. Below ``REPEATS_FOR_95`` samples the
    result is their range; ``coverage`` says what that is worth. A single sample has no interval:
    ``ci_low == ci_high == median``. The same samples give the same interval.
    """
    middle = median(samples)
    count = len(samples)
    if count == 1:
        return Interval(median=middle, ci_low=middle, ci_high=middle)
    values = np.asarray(samples, dtype=np.float64)
    if count < REPEATS_FOR_95:
        return Interval(median=middle, ci_low=float(values.min()), ci_high=float(values.max()))
    generator = np.random.default_rng(seed)
    medians = np.median(generator.choice(values, size=(_RESAMPLES, count)), axis=1)
    tail = widened_tail(count)
    low, high = np.quantile(medians, [tail, 1 - tail])
    # The resampled quantiles may miss the median itself by a rounding error when samples are equal.
    return Interval(median=middle, ci_low=min(float(low), middle), ci_high=max(float(high), middle))


@functools.cache
def widened_tail(count: int) -> float:
    """The percentile that stands for 2.5% in a bootstrap of ``count`` samples (at least two).

    Hesterberg's expanded percentile ("What Teachers Should Know About the Bootstrap", 2015): alpha' =
    Phi(-sqrt(n/(n-1)) t(alpha/2, n-1)). Without it seven repeats cover 87%, with it 98%.
    """
    return NormalDist().cdf(-math.sqrt(count / (count - 1)) * student_t(0.975, count - 1))


def coverage(repeats: int) -> float:
    """How often the interval of ``repeats`` samples holds the true median, as a fraction: at most 0.95.

    A range misses only when all samples fall on one side: 1 - 2^(1-n).
    """
    return min(0.95, 1 - 2.0 ** (1 - repeats)) if repeats > 0 else 0.0


def half_width(value: Interval) -> float:
    """The larger side of the interval: what stands behind the ±. Zero for a single repeat."""
    return max(value.ci_high - value.median, value.median - value.ci_low, 0.0)


def drift(steps: Sequence[float]) -> float | None:
    """Relative change from the first third of ``steps`` to the last: 0.2 means they end 20% slower.

    None where there is nothing to report: fewer than nine steps, a change below ``DRIFT_FLOOR``, or thirds
    whose samples overlap (a trend is then not told from noise).
    """
    third = len(steps) // 3
    if third < 3:
        return None
    first, last = steps[:third], steps[-third:]
    if max(first) >= min(last) and max(last) >= min(first):
        return None
    before = median(first)
    if before <= 0:
        return None
    change = median(last) / before - 1
    return change if abs(change) > DRIFT_FLOOR else None


def noise(samples: Sequence[float]) -> float | None:
    """(max - min) / median over repeats where it exceeds ``NOISE_FLOOR``, else None."""
    if len(samples) < 2 or (middle := median(samples)) <= 0:
        return None
    spread = (max(samples) - min(samples)) / middle
    return spread if spread > NOISE_FLOOR else None
