"""Do two samples differ? The Mann-Whitney U test, and Wilcoxon's of pairs, exact, and what they can decide at all.

It asks nothing of the shape of the noise. What few samples cannot decide is refused, not guessed: of 4 and 4 runs
even complete separation happens once in 35 by chance.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

POWER = 0.8
"""How often an effect that is called detectable is detected."""
EXACT_UP_TO = 80
"""Samples of both sides together for which every arrangement is counted; above, the normal approximation."""
MOST_REPEATS = 200
"""Above this many repeats of each side a question is not decided by more of them."""
_TRIALS = 2_000
_SIMULATED_UP_TO = 20


def mann_whitney(base: Sequence[float], new: Sequence[float]) -> float:
    """Two-sided p of whether ``new`` tends to be larger or smaller than ``base``: how often chance alone puts the
    number of pairs in which the sample of ``new`` is the larger, ties counting half, at least as far from the middle.

    The null distribution is that of the rank sum over all C(n + m, n) ways to deal the pooled samples to the two sides
    (Mann and Whitney 1947); equal samples share the mean of their ranks, and their ties are counted, not approximated.

    Raises:
        ValueError: a side is empty, or a sample is not finite.
    """
    pooled = np.asarray([*new, *base], dtype=np.float64)
    n, m = len(new), len(base)
    if not (n and m and np.isfinite(pooled).all()):
        raise ValueError("a rank test needs finite samples on both sides")
    ranks = _doubled_ranks(pooled)
    if n + m > EXACT_UP_TO:
        return _approximate_p(float(ranks[:n].sum()) / 2 - n * (n + 1) / 2, n, m, ranks)
    sums, chance = _null(tuple(sorted(ranks.tolist())), n)
    # |sum - mean| times (n + m): whole numbers, so equal distances compare as equal.
    total = int(ranks.sum())
    observed = abs((n + m) * int(ranks[:n].sum()) - n * total)
    return min(float(chance[np.abs((n + m) * sums - n * total) >= observed].sum()), 1.0)


def _doubled_ranks(pooled: np.ndarray) -> np.ndarray:
    """Twice the rank of every sample, 1-based, equal samples at their mean: whole numbers."""
    _, place, counts = np.unique(pooled, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    doubled: np.ndarray = (2 * last - counts + 1)[place]
    return doubled


@functools.lru_cache(maxsize=64)
def _null(ranks: tuple[int, ...], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Every possible sum of ``n`` of the ``ranks``, and its probability when all choices are equally likely.

    ``ways[j, s]`` counts the choices of j of the ranks seen so far that sum to s. Doubles, since the counts exceed 64
    bits; they are only ever added, so they keep 14 digits.
    """
    ways = np.zeros((n + 1, sum(ranks) + 1))
    ways[0, 0] = 1.0
    for rank in ranks:
        ways[1:, rank:] += ways[:-1, :-rank].copy()
    return np.arange(ways.shape[1]), ways[n] / math.comb(len(ranks), n)


def _approximate_p(u: float, n: int, m: int, ranks: np.ndarray) -> float:
    """Normal approximation with the correction for ties and for continuity."""
    total = n + m
    _, counts = np.unique(ranks, return_counts=True)
    ties = float((counts.astype(np.float64) ** 3 - counts).sum())
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    z = max(abs(u - n * m / 2) - 0.5, 0.0) / math.sqrt(variance)
    return min(1.0, 2 * NormalDist().cdf(-z))


def smallest_p(n: int, m: int) -> float:
    """The least p that ``n`` against ``m`` samples without ties can reach: complete separation, 2 / C(n + m, n)."""
    return min(1.0, 2 / math.comb(n + m, n))


def signed_rank(base: Sequence[float], new: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of ``new[i] - base[i]``, exact.

    The null distribution is that of the rank sum of positive differences when each of 2^n choices of signs is equally
    likely (Wilcoxon 1945): so it is where the two sides of a pair are exchangeable, whatever the noise. Differences of
    zero say nothing and are left out; equal sizes share the mean of their ranks. A side that is infinite on one side
    alone is the largest difference.

    Raises:
        ValueError: the sequences differ in length, or a value is no number.
    """
    if any(map(math.isnan, (*base, *new))):
        raise ValueError("a rank test needs numbers")
    differences = np.asarray([a - b for a, b in zip(new, base, strict=True) if a != b], dtype=np.float64)
    if not len(differences):
        return 1.0
    ranks = _doubled_ranks(np.abs(differences))
    total = int(ranks.sum())
    ways = np.ones(1)
    for rank in ranks.tolist():
        ways = np.convolve(ways, [1.0, *[0.0] * (rank - 1), 1.0])
    distance = np.abs(2 * np.arange(total + 1) - total)
    observed = abs(2 * int(ranks[differences > 0].sum()) - total)
    return float(ways[distance >= observed].sum() / 2.0 ** len(ranks))


def paired_p(base: Sequence[float], new: Sequence[float]) -> float:
    """Two-sided p of pairs, by whichever of two exact tests says more, counted twice for the choice (Bonferroni).

    The signed-rank test sees small differences through whatever the sides of a pair share, but cannot go below 2 / 2^n.
    The Mann-Whitney test goes to 2 / C(2n, n); what the sides share only makes it say less.
    """
    return min(1.0, 2 * min(mann_whitney(base, new), signed_rank(base, new)))


def smallest_paired_p(n: int) -> float:
    """The least that :func:`paired_p` can be of ``n`` pairs."""
    return min(1.0, 2 * min(smallest_p(n, n), 2.0 ** (1 - n)))


def fewest_repeats(alpha: float, *, paired: bool = False) -> int:
    """The fewest repeats of each side (``paired``: pairs) whose p can be at most ``alpha``."""
    return next(
        n for n in itertools.count(1) if (smallest_paired_p(n) if paired else smallest_p(n, n)) <= alpha
    )


def detectable(n: int, m: int, spread: float, alpha: float) -> float | None:
    """The smallest change (0.1 is 10%) that ``n`` against ``m`` runs show with ``p <= alpha`` four times of five.

    Args:
        spread: standard deviation of the logarithm of a repeat's time, see :func:`spread_of`.

    None where no change would be shown: ``n`` against ``m`` samples cannot reach ``alpha``.
    """
    if smallest_p(n, m) > alpha:
        return None
    return math.expm1(_standard_effect(*sorted((n, m)), alpha) * spread)


def repeats_to_detect(change: float, spread: float, alpha: float, *, least: int = 1) -> int | None:
    """Repeats of each side, at least ``least``, that show ``change`` (0.1 is 10%) four times of five.

    None where they are more than ``MOST_REPEATS``.
    """

    def shown(repeats: int) -> bool:
        found = detectable(repeats, repeats, spread, alpha)
        return found is not None and found <= change

    if not shown(MOST_REPEATS):
        return None
    return max(least, bisect.bisect_left(range(MOST_REPEATS), True, lo=fewest_repeats(alpha), key=shown))


def spread_of(*sides: Sequence[float]) -> float | None:
    """The standard deviation of log(sample) about its own side's mean, pooled over the sides.

    None where no side has two samples: a single run shows no noise.
    """
    logs = [np.log(np.asarray(side, dtype=np.float64)) for side in sides if len(side)]
    squares = sum(float(((each - each.mean()) ** 2).sum()) for each in logs)
    freedom = sum(len(each) - 1 for each in logs)
    return math.sqrt(squares / freedom) if freedom else None


@functools.cache
def _standard_effect(n: int, m: int, alpha: float) -> float:
    """The shift, in standard deviations of normal noise, that the test shows in ``POWER`` of all experiments.

    Simulated for few repeats, where the test can only take a few values of p; else the normal approximation, with 3/pi
    for the test's efficiency beside a t-test's.
    """
    if max(n, m) > _SIMULATED_UP_TO:
        normal = NormalDist()
        reach = normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(POWER)
        return reach * math.sqrt((1 / n + 1 / m) * math.pi / 3)
    generator = np.random.default_rng(n * 1000 + m)
    gaps = generator.normal(size=(_TRIALS, n, 1)) - generator.normal(size=(_TRIALS, 1, m))
    enough = _critical_u(n, m, alpha)
    # Of each experiment the shift that brings `enough` pairs above zero: the test then shows it.
    needed = -np.sort(gaps.reshape(_TRIALS, n * m), axis=1)[:, n * m - enough]
    return max(float(np.quantile(needed, POWER)), 0.0)


def _critical_u(n: int, m: int, alpha: float) -> int:
    """The smallest u above n·m / 2 with p <= alpha, without ties."""
    sums, chance = _null(tuple(range(2, 2 * (n + m) + 1, 2)), n)
    tail = 2 * np.cumsum(chance[::-1])[::-1]
    return int(sums[(tail <= alpha * (1 + 1e-9)) & (chance > 0)].min()) // 2 - n * (n + 1) // 2
