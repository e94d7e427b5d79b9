"""Intervals of means and ratios: against tables, and proved by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsim_ddp.results.stats import Estimate, mean_interval, ratio_interval, t_quantile

# Abramowitz & Stegun, table 26.10, and t(1) = tan(pi (p - 1/2)), t(2) = 2 (p - 1/2) sqrt(2 / (4 p (1 - p))).
TABLE = [
    (0.975, 1, math.tan(math.pi * 0.475)),
    (0.975, 2, 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))),
    (0.975, 3, 3.182),
    (0.975, 5, 2.571),
    (0.975, 9, 2.262),
    (0.995, 9, 3.250),
    (0.95, 30, 1.697),
    (0.995, 120, 2.617),
    (0.9995, 4, 8.610),
]


def holds(found: Estimate, value: float) -> bool:
    return found.low <= value <= found.high


@pytest.mark.parametrize(("probability", "freedom", "expected"), TABLE)
def test_quantiles_of_t_are_those_of_the_table(probability: float, freedom: int, expected: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(expected, abs=5.1e-4)
    assert t_quantile(1 - probability, freedom) == pytest.approx(-t_quantile(probability, freedom), rel=1e-9)


def test_closed_forms_hold_to_ten_digits() -> None:
    for p in (0.6, 0.9, 0.975, 0.9999):
        assert t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-10)
        assert t_quantile(p, 2) == pytest.approx((2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p))), rel=1e-10)
    assert t_quantile(0.975, 10**6) == pytest.approx(1.959964, abs=1e-5)


@pytest.mark.parametrize(("probability", "freedom"), [(0, 3), (1, 3), (math.nan, 3), (0.9, 0)])
def test_a_quantile_that_does_not_exist_is_an_error(probability: float, freedom: int) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        t_quantile(probability, freedom)


def test_means_by_hand() -> None:
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.value, found.count) == (2.0, 3)
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)


def test_one_sample_says_nothing_of_its_error() -> None:
    found = mean_interval([0.9])
    assert (found.value, found.low, found.high) == (0.9, -math.inf, math.inf)


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf]])
def test_no_mean_of_nothing(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_interval(samples)


@pytest.mark.parametrize("count", [3, 10])
def test_a_t_interval_covers_95_percent(count: int) -> None:
    samples = np.random.default_rng(count).normal(0, 1, (1000, count))
    hits = sum(holds(mean_interval(row.tolist()), 0.0) for row in samples)
    assert hits / 1000 == pytest.approx(0.95, abs=0.025)  # a standard deviation is 0.007


def covered(n: int, m: int, trials: int, *, skewed: bool) -> tuple[float, float]:
    """How often the interval holds the true ratio, 1.3, and what level it claims."""
    generator = np.random.default_rng(n * 100 + m)
    hits, level = 0, 0.0
    for _ in range(trials):
        noise = generator.normal(0, 0.05, n + m)
        samples = np.exp(4 * noise) if skewed else 1 + noise
        found = ratio_interval(samples[:n].tolist(), (1.3 * samples[n:]).tolist())
        hits += holds(found, 1.3)
        level = found.level
    return hits / trials, level


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 3), (4, 4), (3, 7), (7, 7), (6, 11)])
def test_an_interval_of_a_ratio_covers_what_it_says(n: int, m: int, skewed: bool) -> None:
    share, level = covered(n, m, 250, skewed=skewed)
    assert share >= level - 0.035
    assert level == pytest.approx({4: 2 / 3, 6: 0.9}.get(n + m, 0.95), abs=1e-9)


@given(
    st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=9),
    st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=9),
)
def test_a_ratio_is_inside_its_interval(base: list[float], new: list[float]) -> None:
    found = ratio_interval(base, new)
    assert found.low <= found.value <= found.high
    assert found == ratio_interval(base, new)
    assert 0 <= found.level <= 0.95


def test_no_ratio_of_nothing() -> None:
    for base, new in (([], [1.0]), ([1.0], []), ([0.0], [1.0]), ([1.0], [-1.0])):
        with pytest.raises(ValueError, match="positive"):
            ratio_interval(base, new)
