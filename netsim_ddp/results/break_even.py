"""At which rate are two steps equal that were measured at several rates? The arithmetic, without cells.

The model is the one that the rest of netsim uses: a step is a constant plus bytes / rate. Between two neighbouring
rates each of the two steps is read as that, a straight line over 1 / rate through what was measured there, so nothing
is fitted across rates at which a step takes another form (an overlapped exchange that disappears behind backward).

Beyond the rates measured, one line through all of them may be continued. That is the model's word and no measurement,
so it comes without an interval.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from netsim_ddp.results.stats import t_quantile

Pair = tuple[Sequence[float], Sequence[float]]
"""Of one rate: the base's steps and the method's, seconds, one sample per repeat."""

F64 = NDArray[np.float64]

FEWEST_RATES = 3
"""Fewer do not show whether a step has the model's form."""
WORST_FIT = 0.1
"""A median further from its fit than this: the steps have not that form, and nothing is said beyond the range."""
FURTHEST = 10
"""So many times the highest rate measured the model is still asked; beyond, it only says that it is more."""
_GRID = 65
_DRAWN = 12
_REFINEMENTS = 5
"""Each cuts the distance to what is sought by 64."""


@dataclass(frozen=True)
class Steps:
    """Two methods' steps at ascending rates, bit/s."""

    rates: Sequence[int]
    pairs: Sequence[Pair]

    @functools.cached_property
    def inverse(self) -> F64:
        """1 / rate, descending."""
        return 1 / np.asarray(self.rates, dtype=np.float64)

    @functools.cached_property
    def medians(self) -> tuple[F64, F64]:
        """The base's and the method's median step at each rate."""
        base, ours = (np.asarray([np.median(each) for each in row]) for row in zip(*self.pairs, strict=True))
        return base, ours

    @functools.cached_property
    def means(self) -> list[tuple[F64, F64, F64]]:
        """Of the base and of the method, at each rate: the geometric mean of the samples, its variance, and the degrees
        of freedom of that."""
        found = []
        for samples in zip(*self.pairs, strict=True):
            logs = [np.log(np.asarray(each, dtype=np.float64)) for each in samples]
            means = np.exp([float(each.mean()) for each in logs])
            variances = np.asarray([float(each.var(ddof=1)) / len(each) for each in logs]) * means**2
            found.append((means, variances, np.asarray([len(each) - 1.0 for each in logs])))
        return found


def crossing(steps: Steps, slower_s: float = 0.0) -> float:
    """The rate, bit/s, below which the method's step is the shorter one; infinite where it is so at all rates
    measured, 0 where at none.

    The quotient of two such steps falls, or rises, all the way. So neighbours that noise put in the wrong order are
    pooled first (the nearest non-increasing log quotients), and then exactly one pair of rates has the crossing between
    them.

    Args:
        slower_s: added to the method's step at every rate: what a slower codec would cost, negative for a faster one.
    """
    base, ours = steps.medians
    if float((ours + slower_s).min()) <= 0:
        return math.inf
    gain = non_increasing(np.log(base / (ours + slower_s)))
    pays = int((gain > 0).sum())
    if pays == 0:
        return 0.0
    if pays == len(gain):
        return math.inf
    return zero(steps.inverse, pays - 1, base * (1 - np.exp(-gain)))


def zero(x: F64, left: int, values: F64) -> float:
    """Returns the rate between ``left`` and ``left + 1`` at which the line through ``values`` over ``x``, 1 / rate,
    is 0."""
    above, below = float(values[left]), float(values[left + 1])
    return 1 / float(x[left] + (x[left + 1] - x[left]) * above / (above - below))


def interval(steps: Steps) -> tuple[float, float] | None:
    """The 95% interval of :func:`crossing`, bit/s, cut off at the range; None where a step has a single repeat.

    It holds every rate at which the two steps are not told apart: the difference of the two lines there is within
    t times its standard error of 0 (Fieller 1954; one variance per step and rate, degrees of freedom by Welch and
    Satterthwaite). A step that bends between two rates lies below the line through them, and, being convex over
    1 / rate, above the continued lines of its neighbours on both sides: what lies between the two is the model's error
    and is counted in. With two rates there are no neighbours and the model is taken at its word. An end at the lowest
    or highest rate says "there or beyond"; both ends at one of them, that the crossing lies beyond it.
    """
    if min(len(samples) for pair in steps.pairs for samples in pair) < 2:
        return None
    accepted = [ends for left in range(len(steps.rates) - 1) if (ends := _accepted(steps, left))]
    # The estimate is one of medians, the test one of means: where they disagree, both stand. It is the whole answer
    # where every rate is decided, because the crossing lies beyond them.
    middle = float(min(max(crossing(steps), steps.rates[0]), steps.rates[-1]))
    return min([middle, *(low for low, _ in accepted)]), max([middle, *(high for _, high in accepted)])


def _accepted(steps: Steps, left: int) -> tuple[float, float] | None:
    """The lowest and the highest rate between ``left`` and ``left + 1`` at which the steps are not told apart."""
    ends = float(steps.rates[left]), float(steps.rates[left + 1])
    logs = np.linspace(math.log(ends[0]), math.log(ends[1]), _GRID)
    apart = steps.means[0][0] - steps.means[1][0]
    if apart[left] * apart[left + 1] < 0:
        # The lines through the means are equal between the two rates. With little noise nothing but this point may be
        # undecided, and that lies between two points of the grid.
        equal = np.clip(math.log(zero(steps.inverse, left, apart)), logs[0], logs[-1])
        logs = np.sort(np.append(logs, equal))
    inside = np.flatnonzero(_undecided(steps, left, logs))
    if not len(inside):
        return None
    first, last = int(inside[0]), int(inside[-1])
    low = ends[0] if first == 0 else math.exp(_edge(steps, left, logs[first - 1], logs[first]))
    high = ends[1] if last == len(logs) - 1 else math.exp(_edge(steps, left, logs[last + 1], logs[last]))
    return low, high


def _edge(steps: Steps, left: int, decided: float, undecided: float) -> float:
    """Where between two log rates the difference comes to be told from 0."""
    for _ in range(_REFINEMENTS):
        between = np.linspace(decided, undecided, _GRID)
        first = int(np.argmax(_undecided(steps, left, between)))
        if first == 0:  # by the last digit, at the end that was taken for decided
            break
        decided, undecided = float(between[first - 1]), float(between[first])
    return undecided


def _undecided(steps: Steps, left: int, logs: F64) -> NDArray[np.bool_]:
    """Whether the steps are not told apart at each log rate between rates ``left`` and ``left + 1``."""
    x, at = steps.inverse, 1 / np.exp(logs)
    weight = (at - x[left]) / (x[left + 1] - x[left])
    parts, degrees, lines = [], [], []
    for means, variances, freedoms in steps.means:
        chord = (1 - weight) * means[left] + weight * means[left + 1]
        lines.append((np.minimum(_continued(means, x, left, at, chord), chord), chord))
        parts += [(1 - weight) ** 2 * variances[left], weight**2 * variances[left + 1]]
        degrees += [freedoms[left], freedoms[left + 1]]
    (base_low, base_high), (ours_low, ours_high) = lines
    each = np.stack(parts)
    variance = each.sum(axis=0)
    spread = (each**2 / np.asarray(degrees)[:, None]).sum(axis=0)
    freedom = np.floor(np.divide(variance**2, spread, out=np.ones_like(variance), where=spread > 0))
    half = np.asarray([t_quantile(0.975, max(int(f), 1)) for f in freedom]) * np.sqrt(variance)
    found: NDArray[np.bool_] = (base_low - ours_high - half <= 0) & (base_high - ours_low + half >= 0)
    return found


def _continued(means: F64, x: F64, left: int, at: F64, chord: F64) -> F64:
    """The higher of the neighbouring lines, continued to 1 / rate ``at``: a convex step lies above both."""
    found = np.full_like(chord, -np.inf)
    for near, far in ((left, left - 1), (left + 1, left + 2)):
        if 0 <= far < len(means):
            slope = (means[near] - means[far]) / (x[near] - x[far])
            found = np.maximum(found, means[near] + slope * (at - x[near]))
    return chord if np.isneginf(found).any() else found


def extrapolated(steps: Steps, slower_s: float = 0.0) -> float | None:
    """Where the model puts the crossing above the rates measured, bit/s; infinite where the method costs no more on
    any link. None where the steps have not the model's form, or the lines meet within the range.

    Both steps are fitted as ``a + b / rate`` to their medians, relative errors weighing alike.
    """
    base, ours = (model(steps.inverse, row) for row in steps.medians)
    if base is None or ours is None:
        return None
    saved, cost = base[1] - ours[1], ours[0] + slower_s - base[0]
    if saved <= 0:
        return None
    found = saved / cost if cost > 0 else math.inf
    return found if found > steps.rates[-1] else None


def curve(steps: Steps) -> list[tuple[float, float]]:
    """(rate, base / method) along what :func:`crossing` reads between the rates measured: the quotient of two lines
    over 1 / rate, through every quotient measured."""
    base, ours = steps.medians
    rates = np.asarray(steps.rates, dtype=np.float64)
    between = [np.geomspace(a, b, _DRAWN, endpoint=False) for a, b in itertools.pairwise(rates)]
    at = np.concatenate([*between, rates[-1:]])
    # np.interp wants ascending abscissae, and 1 / rate descends.
    lines = (np.interp(1 / at, steps.inverse[::-1], row[::-1]) for row in (base, ours))
    return list(zip(at.tolist(), np.divide(*lines).tolist(), strict=True))


def continued(steps: Steps, to: float) -> list[tuple[float, float]]:
    """Returns (rate, base / method) from the highest rate measured up to ``to``, by :func:`extrapolated`'s lines."""
    fits = [fit(steps.inverse, row) for row in steps.medians]
    at = np.geomspace(steps.rates[-1], to, _DRAWN)
    lines = (constant + slope / at for constant, slope in fits)
    return list(zip(at.tolist(), np.divide(*lines).tolist(), strict=True))


def model(inverse: F64, steps: F64) -> tuple[float, float] | None:
    """Returns :func:`fit`, or None where there are too few rates to show it, or the steps do not have that form."""
    constant, slope = fit(inverse, steps)
    fits = (
        len(steps) >= FEWEST_RATES and np.max(np.abs((constant + slope * inverse) / steps - 1)) <= WORST_FIT
    )
    return (constant, slope) if fits else None


def fit(inverse: F64, steps: F64) -> tuple[float, float]:
    """Constant and slope of ``a + b * inverse`` by least squares of relative errors."""
    weights = 1 / steps**2
    total = weights.sum()
    x, y = (weights * inverse).sum() / total, (weights * steps).sum() / total
    dx, dy = inverse - x, steps - y
    slope = float((weights * dx * dy).sum() / (weights * dx * dx).sum())
    return float(y) - slope * float(x), slope


def non_increasing(values: F64) -> F64:
    """The nearest non-increasing row to ``values`` (least squares): min over starts a <= i of max over ends b >= i of
    mean(a..b), Robertson, Wright and Dykstra, "Order Restricted Statistical Inference" (1988), theorem 1.4.4."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    fitted = np.full(len(values), np.inf)
    for start in range(len(values)):
        means = (sums[start + 1 :] - sums[start]) / np.arange(1, len(values) - start + 1)
        best = np.maximum.accumulate(means[::-1])[::-1]  # over ends from each place on
        fitted[start:] = np.minimum(fitted[start:], best)
    return fitted
