"""The exact test: against brute force and tables, and against what it promises over simulated experiments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsim_ddp.results.rank_test import (
    EXACT_UP_TO,
    POWER,
    detectable,
    mann_whitney,
    paired_p,
    repeats_to_detect,
    signed_rank,
    smallest_p,
    smallest_paired_p,
    spread_of,
)

SMALL = st.lists(st.integers(0, 4), min_size=1, max_size=5)


def pairs_won(base: Sequence[float], new: Sequence[float]) -> float:
    return sum((a > b) + (a == b) / 2 for a in new for b in base)


def by_permutation(base: Sequence[float], new: Sequence[float]) -> float:
    """p over every way to deal the pooled samples: slow and plain."""
    pooled, n = [*new, *base], len(new)
    middle = n * len(base) / 2
    observed = abs(pairs_won(base, new) - middle)
    deals = list(itertools.combinations(range(len(pooled)), n))
    as_far = 0
    for chosen in deals:
        ours = [pooled[i] for i in chosen]
        theirs = [pooled[i] for i in range(len(pooled)) if i not in chosen]
        as_far += abs(pairs_won(theirs, ours) - middle) >= observed - 1e-9
    return as_far / len(deals)


@settings(max_examples=60)
@given(SMALL, SMALL)
def test_p_is_the_share_of_all_deals_ties_and_all(base: list[int], new: list[int]) -> None:
    found = mann_whitney(base, new)
    assert found == pytest.approx(by_permutation(base, new), abs=1e-12)
    assert mann_whitney(new, base) == pytest.approx(found, abs=1e-12)


SEPARATED = [
    (3, 3, 0, 2 / 20),
    (4, 4, 0, 2 / 70),
    (5, 5, 0, 2 / 252),
    (5, 5, 1, 4 / 252),
    (7, 7, 0, 2 / 3432),
    (5, 8, 0, 2 / 1287),
]


@pytest.mark.parametrize(("n", "m", "u", "p"), SEPARATED)
def test_p_of_separated_samples(n: int, m: int, u: int, p: float) -> None:
    new = [float(i) for i in range(n)]
    base = [float(n + i) for i in range(m)]
    if u:
        new[-1], base[0] = base[0], new[-1]
    found = mann_whitney(base, new)
    assert pairs_won(base, new) == u
    assert found == pytest.approx(p)
    assert u or found == pytest.approx(smallest_p(n, m))


def test_equal_samples_differ_in_nothing() -> None:
    assert mann_whitney([1.0] * 7, [1.0] * 7) == 1.0
    samples = [1.0, 3.0, 2.0, 5.0]
    assert mann_whitney(samples, samples) == pytest.approx(1.0)


def test_many_samples_are_approximated_and_agree_with_the_exact_count() -> None:
    generator = np.random.default_rng(0)
    for shift in (0.0, 0.3, 0.6):
        base = generator.normal(0, 1, EXACT_UP_TO // 2).tolist()
        new = generator.normal(shift, 1, EXACT_UP_TO // 2).tolist()
        exact = mann_whitney(base, new)
        approximate = mann_whitney([*base, 0.0], new)
        assert approximate != exact
        assert approximate == pytest.approx(exact, abs=0.03)
    assert mann_whitney([2.0] * 100, [2.0] * 100) == 1.0
    assert mann_whitney(list(range(500)), list(range(1000, 1500))) < 1e-100


@pytest.mark.parametrize(("base", "new"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0])])
def test_nothing_is_no_sample(base: list[float], new: list[float]) -> None:
    with pytest.raises(ValueError, match="finite samples on both sides"):
        mann_whitney(base, new)


def by_signs(differences: Sequence[float]) -> float:
    """p over every choice of signs: slow and plain."""
    sizes = [abs(value) for value in differences if value]
    ranks = [sum(other < size for other in sizes) + (sizes.count(size) + 1) / 2 for size in sizes]
    middle = sum(ranks) / 2
    observed = abs(
        sum(r for r, value in zip(ranks, filter(None, differences), strict=True) if value > 0) - middle
    )
    deals = list(itertools.product((0, 1), repeat=len(ranks)))
    as_far = sum(
        abs(sum(r for r, sign in zip(ranks, signs, strict=True) if sign) - middle) >= observed - 1e-9
        for signs in deals
    )
    return as_far / len(deals)


@settings(max_examples=60)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=8))
def test_p_of_pairs_is_the_share_of_all_signs_ties_and_all(differences: list[int]) -> None:
    base = [10.0 * i for i in range(len(differences))]
    new = [a + b for a, b in zip(base, differences, strict=True)]
    assert signed_rank(base, new) == pytest.approx(by_signs(differences), abs=1e-12)
    assert signed_rank(new, base) == pytest.approx(signed_rank(base, new), abs=1e-12)


def test_pairs_that_agree_in_sign() -> None:
    assert signed_rank([0.0] * 7, [1.0 + i for i in range(7)]) == 2 / 2**7
    assert signed_rank([1.0, 2.0], [1.0, 2.0]) == 1.0
    apart = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert paired_p(apart, [10 + value for value in apart]) == smallest_paired_p(5) == pytest.approx(4 / 252)
    assert paired_p(apart, [0.5 + value for value in apart]) == 2 * 2 / 2**5, (
        "the pairs see more than the ranks"
    )
    with pytest.raises(ValueError, match="numbers"):
        signed_rank([0.0], [math.nan])


@pytest.mark.parametrize(("n", "m"), [(5, 5), (7, 7), (5, 9)])
def test_false_alarms_are_as_rare_as_alpha_says(n: int, m: int) -> None:
    noise = np.random.default_rng(n + m).lognormal(0, 0.1, (1000, n + m))
    alarms = sum(mann_whitney(row[:n].tolist(), row[n:].tolist()) <= 0.05 for row in noise)
    assert alarms / 1000 <= 0.05 + 0.02


@pytest.mark.parametrize(("n", "m", "alpha"), [(5, 5, 0.01), (7, 7, 0.01), (7, 10, 0.05), (35, 35, 0.01)])
def test_what_is_called_detectable_is_detected_four_times_of_five(n: int, m: int, alpha: float) -> None:
    change = detectable(n, m, 0.05, alpha)
    assert change is not None
    generator = np.random.default_rng(n)
    trials = 400
    found = 0
    for _ in range(trials):
        base = generator.lognormal(0, 0.05, n).tolist()
        new = ((1 + change) * generator.lognormal(0, 0.05, m)).tolist()
        found += mann_whitney(base, new) <= alpha
    assert found / trials == pytest.approx(POWER, abs=0.06)  # a standard deviation is 0.02


def test_repeats_that_would_decide() -> None:
    need = repeats_to_detect(0.05, 0.05, 0.01)
    assert need is not None
    assert 20 < need < 35  # 2 (2.58 + 0.84)^2 = 23 normal samples, 4.7% more for a rank test
    at, below = (detectable(k, k, 0.05, 0.01) for k in (need, need - 1))
    assert at is not None
    assert below is not None
    assert at <= 0.05 < below
    assert repeats_to_detect(0.5, 0.01, 0.01) == 5
    assert repeats_to_detect(0.001, 0.2, 0.01) is None
    assert detectable(3, 3, 0.05, 0.01) is None


def test_noise_is_pooled_over_both_sides() -> None:
    assert spread_of([1.0], [2.0]) is None
    assert spread_of([1.0, 1.0], [2.0, 2.0]) == 0.0
    generator = np.random.default_rng(0)
    found = spread_of(generator.lognormal(0, 0.1, 2000).tolist(), generator.lognormal(3, 0.1, 2000).tolist())
    assert found == pytest.approx(0.1, rel=0.05)
