"""A break-even beyond the bandwidths that were measured, from the form that a step has: a constant plus bytes / rate.

Both steps are fitted as ``a + b / rate`` to their medians, relative errors weighing alike; they are equal at
``rate = (b_dense - b) / (a - a_dense)``. A host cannot always carry the links on which a fast method stops to pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from netsim_ddp.results.stats import widened_tail

FEWEST_RATES = 3
WORST_FIT = 0.1
"""A median further from its fit than this: the steps have not that form, and nothing is said."""
_RESAMPLES = 2_000

Pair = tuple[Sequence[float], Sequence[float]]


class Beyond(NamedTuple):
    """``bps`` with its 95% interval, bit/s; infinite where the method costs no more than dense on any link. The ends
    are None where some cell has a single repeat."""

    bps: float
    low_bps: float | None
    high_bps: float | None


def extrapolated(rates: Sequence[int], pairs: Sequence[Pair]) -> Beyond | None:
    """The break-even above ``rates``, bit/s, of which each has a pair of dense's and the method's steps, seconds, one
    per repeat. None where steps have another form, or where they meet below the highest rate."""
    if len(rates) < FEWEST_RATES:
        return None
    inverse = 1 / np.asarray(rates, dtype=np.float64)
    medians = np.asarray([[np.median(dense), np.median(ours)] for dense, ours in pairs]).T[:, None, :]
    lines = [_fit(inverse, row) for row in medians]
    for (constant, slope), row in zip(lines, medians, strict=True):
        if np.max(np.abs((constant[:, None] + slope[:, None] * inverse) / row - 1)) > WORST_FIT:
            return None
    bps = float(_meeting(*lines)[0])
    if bps <= max(rates):
        return None
    fewest = min(len(samples) for pair in pairs for samples in pair)
    if fewest < 2:
        return Beyond(bps, None, None)
    generator = np.random.default_rng(0)

    def resampled(which: int) -> np.ndarray:
        drawn = [
            generator.choice(np.asarray(pair[which]), size=(_RESAMPLES, len(pair[which]))) for pair in pairs
        ]
        return np.stack([np.median(samples, axis=1) for samples in drawn], axis=1)

    found = _meeting(_fit(inverse, resampled(0)), _fit(inverse, resampled(1)))
    tail = widened_tail(fewest)
    low = float(np.quantile(found, tail, method="lower"))
    high = float(np.quantile(found, 1 - tail, method="higher"))
    return Beyond(bps, min(low, bps), max(high, bps))


def _fit(inverse: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Constants and slopes of ``a + b * inverse`` for each row of ``steps``, by least squares of relative errors."""
    weights = 1 / steps**2
    total = weights.sum(axis=1)
    x = (weights * inverse).sum(axis=1) / total
    y = (weights * steps).sum(axis=1) / total
    dx, dy = inverse - x[:, None], steps - y[:, None]
    slope = (weights * dx * dy).sum(axis=1) / (weights * dx * dx).sum(axis=1)
    return y - slope * x, slope


def _meeting(dense: tuple[np.ndarray, np.ndarray], ours: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The rate at which two lines are equal; infinite where dense's constant is the larger, 0 where ours never was
    less."""
    saved, cost = dense[1] - ours[1], ours[0] - dense[0]
    rate = np.divide(saved, cost, out=np.full(saved.shape, np.inf), where=cost > 0)
    found: np.ndarray = np.where(saved > 0, rate, 0.0)
    return found
