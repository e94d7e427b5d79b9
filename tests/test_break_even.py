"""Where two steps are equal: found where the algebra says, and held by the interval as often as it claims."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from netsim_ddp.results.break_even import Steps, crossing, extrapolated, interval

HALF_DECADES = (10**7, 3 * 10**7, 10**8, 3 * 10**8, 10**9)
ONE_DECADE = (10**8, 10**9)
SEVEN = (10**7, 3 * 10**7, 10**8, 2 * 10**8, 4 * 10**8, 7 * 10**8, 10**9)
Curve = Callable[[float], float]


def dense(rate: float) -> float:
    return 0.06 + 40e6 / rate


def topk(rate: float) -> float:
    return 0.15 + 2e6 / rate


TRUTH = 38e6 / 0.09  # 0.06 + 40e6 / b = 0.15 + 2e6 / b


def overlapped(rate: float) -> float:
    """Most of the exchange hides behind backward where it is fast enough: not one straight line over 1 / rate."""
    return max(0.06, 0.024 + 40e6 / rate) + 4e6 / rate


OVERLAPPED_TRUTH = 42e6 / (0.105 - 0.024)  # 0.024 + 44e6 / b = 0.105 + 2e6 / b


def late_topk(rate: float) -> float:
    return 0.105 + 2e6 / rate


def steps(
    rates: Sequence[int],
    base: Curve = dense,
    ours: Curve = topk,
    *,
    noise: float = 0.0,
    repeats: int = 1,
    seed: int = 0,
) -> Steps:
    draw = np.random.default_rng(seed)

    def measured(curve: Curve, rate: int) -> list[float]:
        return (curve(rate) * np.exp(draw.normal(0, noise, repeats))).tolist()

    return Steps(rates, [(measured(base, rate), measured(ours, rate)) for rate in rates])


@pytest.mark.parametrize("rates", [ONE_DECADE, HALF_DECADES, SEVEN])
def test_between_any_two_rates_it_is_found_exactly(rates: tuple[int, ...]) -> None:
    assert crossing(steps(rates)) == pytest.approx(TRUTH, rel=1e-9)


def test_beside_the_range_it_says_on_which_side() -> None:
    assert crossing(steps(HALF_DECADES[:3])) == math.inf
    assert crossing(steps((10**9, 2 * 10**9))) == 0


def test_a_slower_codec_breaks_even_sooner() -> None:
    assert crossing(steps(HALF_DECADES), 0.09) == pytest.approx(38e6 / 0.18)
    assert crossing(steps(HALF_DECADES), -0.05) == pytest.approx(38e6 / 0.04)
    assert crossing(steps(HALF_DECADES), -0.2) == math.inf, "faster than nothing"


# Three standard deviations of a binomial share of 95% below it; the bar of the whole table is 93%.
@pytest.mark.parametrize("rates", [ONE_DECADE, HALF_DECADES, SEVEN])
@pytest.mark.parametrize(("noise", "repeats"), [(0.005, 3), (0.02, 4), (0.05, 7)])
@pytest.mark.parametrize("bends", [False, True])
def test_the_interval_holds_it_as_often_as_it_says(
    rates: tuple[int, ...], noise: float, repeats: int, bends: bool
) -> None:
    base, ours, truth = (overlapped, late_topk, OVERLAPPED_TRUTH) if bends else (dense, topk, TRUTH)
    trials, hits = 120, 0
    for seed in range(trials):
        found = interval(steps(rates, base, ours, noise=noise, repeats=repeats, seed=seed))
        assert found is not None
        hits += found[0] <= truth <= found[1]
    assert hits >= trials * 0.95 - 3 * math.sqrt(trials * 0.95 * 0.05)


def test_the_interval_narrows_with_less_noise_and_is_cut_off_at_the_range() -> None:
    wide = interval(steps(HALF_DECADES, noise=0.05, repeats=5))
    narrow = interval(steps(HALF_DECADES, noise=0.005, repeats=5))
    assert wide is not None
    assert narrow is not None
    assert wide[0] < narrow[0] < TRUTH < narrow[1] < wide[1]
    assert narrow[1] / narrow[0] < 1.1
    below = interval(steps(HALF_DECADES[:3], noise=0.005, repeats=5))
    assert below == (HALF_DECADES[2], HALF_DECADES[2]), "it lies beyond"
    assert interval(steps(HALF_DECADES)) is None, "a single run shows no noise"
    assert interval(steps(HALF_DECADES, repeats=3)) == pytest.approx((TRUTH, TRUTH), rel=1e-6), (
        "no noise at all"
    )


def test_neighbours_in_the_wrong_order_are_pooled() -> None:
    speedups = [3.0, 1.5, 1.6, 0.99, 1.0001, 0.5]
    rates = [10**7 * 2**i for i in range(6)]
    found = crossing(Steps(rates, [([0.1], [0.1 / speedup]) for speedup in speedups]))
    assert rates[2] < found < rates[3], "0.99 and 1.0001 together are below 1"


def test_beyond_the_range_two_lines_meet_where_the_algebra_says() -> None:
    rates = HALF_DECADES[:3]
    assert extrapolated(steps(rates)) == pytest.approx(TRUTH)
    assert extrapolated(steps(rates), 0.05) == pytest.approx(38e6 / 0.14)
    assert extrapolated(steps(rates, ours=lambda rate: 0.05 + 27e6 / rate)) == math.inf, "it costs nothing"


def test_beyond_the_range_nothing_is_said_without_the_model() -> None:
    assert extrapolated(steps(ONE_DECADE)) is None, "two rates show no form"
    assert extrapolated(steps(HALF_DECADES)) is None, "they meet within"
    bent = Steps(HALF_DECADES[:3], [([0.2], [0.1]), ([0.5], [0.1]), ([0.3], [0.1])])
    assert extrapolated(bent) is None, "another form"
