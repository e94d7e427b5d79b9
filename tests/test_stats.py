"""Intervals are proved by simulation: how often they hold the truth is what they claim."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsim_ddp.results import stats
from netsim_ddp.results.record import Interval

POSITIVE = st.floats(min_value=1e-6, max_value=1e3)


def covered(repeats: int, trials: int, *, skewed: bool = False) -> float:
    """Fraction of simulated experiments whose interval holds the true median of step times."""
    generator = np.random.default_rng(repeats)
    truth = 1.0  # the median of both 1 + N(0, s) and exp(N(0, s))
    hits = 0
    for _ in range(trials):
        samples = generator.normal(0, 0.05, repeats)
        values = np.exp(4 * samples) if skewed else 1 + samples
        found = stats.interval(values.tolist())
        hits += found.ci_low <= truth <= found.ci_high
    return hits / trials


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("repeats", [6, 7, 9, 11])
def test_95_percent_intervals_cover_95_percent(repeats: int, skewed: bool) -> None:
    # 400 trials at 0.95 have a standard deviation of 0.011; six or seven samples give more than 95%.
    assert 0.92 <= covered(repeats, 400, skewed=skewed) <= 1.0


@pytest.mark.parametrize("repeats", [2, 3, 5])
def test_few_repeats_cover_what_coverage_says(repeats: int) -> None:
    assert covered(repeats, 1500) == pytest.approx(stats.coverage(repeats), abs=0.04)


def test_coverage_never_promises_more_than_95_percent() -> None:
    assert [stats.coverage(n) for n in (0, 1, 2, 3)] == [0.0, 0.0, 0.5, 0.75]
    assert stats.coverage(stats.REPEATS_FOR_95 - 1) < 0.95 == stats.coverage(stats.REPEATS_FOR_95)


def test_one_repeat_has_no_interval() -> None:
    found = stats.interval([0.105])
    assert (found.median, found.ci_low, found.ci_high) == (0.105, 0.105, 0.105)
    assert stats.half_width(found) == 0


def test_few_repeats_give_their_range() -> None:
    found = stats.interval([3.0, 1.0, 2.0])
    assert (found.ci_low, found.median, found.ci_high) == (1.0, 2.0, 3.0)


@given(st.lists(POSITIVE, min_size=1, max_size=12))
def test_interval_is_ordered_deterministic_and_inside_the_samples(samples: list[float]) -> None:
    found = stats.interval(samples)
    assert found == stats.interval(samples)
    assert found.ci_low <= found.median <= found.ci_high
    slack = 1e-12 * max(samples)
    assert min(samples) - slack <= found.ci_low
    assert found.ci_high <= max(samples) + slack


def test_more_repeats_narrow_the_interval() -> None:
    samples = np.random.default_rng(0).normal(1, 0.1, 200).tolist()
    assert stats.half_width(stats.interval(samples)) < stats.half_width(stats.interval(samples[:10])) / 2


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no median"):
        stats.interval([])


def interval(low: float, median: float, high: float) -> Interval:
    return Interval(median=median, ci_low=low, ci_high=high)


def test_drift_is_seen_where_the_thirds_are_apart() -> None:
    assert stats.drift([2.0] * 3 + [1.5] * 3 + [1.0] * 3) == pytest.approx(-0.5)
    assert stats.drift([1.0] * 3 + [1.1] * 3 + [1.2] * 3) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [5.0, 1.0],
        [1.0] * 12,
        [1.00] * 4 + [1.02] * 4 + [1.05] * 4,  # below the floor
        [1.0, 2.0, 1.0, 1.5, 1.5, 1.5, 2.0, 1.5, 2.0],  # overlapping thirds
        [0.0] * 3 + [1.0] * 6,
    ],
)
def test_no_drift(steps: list[float]) -> None:
    assert stats.drift(steps) is None


def test_steady_noise_rarely_looks_like_drift() -> None:
    generator = np.random.default_rng(0)
    alarms = sum(stats.drift(generator.normal(1, 0.05, 20).tolist()) is not None for _ in range(500))
    assert alarms / 500 < 0.01


def test_noise_between_repeats() -> None:
    assert stats.noise([100, 101, 99]) is None
    assert stats.noise([100, 123, 100]) == pytest.approx(0.23)
    assert stats.noise([1.0]) is None
    assert stats.noise([0.0, 0.0]) is None
