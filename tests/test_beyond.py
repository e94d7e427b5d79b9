"""Break-evens beyond the measured bandwidths: found where steps have their form, not claimed where they have not."""

from __future__ import annotations

import math
import random

import pytest

from netsim_ddp.results.beyond import extrapolated

RATES = (10**8, 3 * 10**8, 10**9, 2 * 10**9)


def steps(
    constant: float, bits: float, *, noise: float = 0.0, seed: int = 0, repeats: int = 4
) -> list[list[float]]:
    draw = random.Random(seed)
    return [[(constant + bits / rate) * draw.gauss(1, noise) for _ in range(repeats)] for rate in RATES]


def test_two_lines_meet_where_the_algebra_says() -> None:
    pairs = list(zip(steps(0.06, 54e6), steps(0.069, 2e6), strict=True))
    found = extrapolated(RATES, pairs)
    assert found is not None
    assert found == pytest.approx((52e6 / 0.009,) * 3)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    truth, covered = 52e6 / 0.009, 0
    for seed in range(60):
        pairs = list(
            zip(
                steps(0.06, 54e6, noise=0.01, seed=seed),
                steps(0.069, 2e6, noise=0.01, seed=-seed - 1),
                strict=True,
            )
        )
        found = extrapolated(RATES, pairs)
        assert found is not None
        assert found.low_bps is not None
        assert found.high_bps is not None
        covered += found.low_bps <= truth <= found.high_bps
    assert covered >= 54  # 95% of 60, less two standard deviations


def test_a_method_that_costs_nothing_pays_on_any_link() -> None:
    found = extrapolated(RATES, list(zip(steps(0.06, 54e6), steps(0.05, 27e6), strict=True)))
    assert found is not None
    assert math.isinf(found.bps)


def test_nothing_is_said_of_another_form_of_too_few_rates_or_of_what_was_measured() -> None:
    dense, ours = steps(0.06, 54e6), steps(0.069, 2e6)
    bent = [[0.2], [0.05], [0.3], [0.05]]
    assert extrapolated(RATES, list(zip(bent, ours, strict=True))) is None
    assert extrapolated(RATES[:2], list(zip(dense[:2], ours[:2], strict=True))) is None
    assert (
        extrapolated(RATES, list(zip(dense, steps(0.2, 2e6), strict=True))) is None
    )  # they meet below 1 Gbit/s


def test_single_repeats_have_no_interval() -> None:
    pairs = list(zip(steps(0.06, 54e6, repeats=1), steps(0.069, 2e6, repeats=1), strict=True))
    found = extrapolated(RATES, pairs)
    assert found is not None
    assert found[1:] == (None, None)
