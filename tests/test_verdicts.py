"""The rule by which every command claims a difference: what it never claims, and in which order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsim_ddp.results.claims import claims, fastest, named_rival
from netsim_ddp.results.rank_test import smallest_p, smallest_paired_p
from netsim_ddp.results.summary import summarise
from netsim_ddp.results.verdicts import FEWEST, FLOOR, Judgement, Scores, Times, holm, judge, repeats_needed
from tests.results_factory import make_cell

SAMPLES = st.lists(st.floats(0.5, 2.0), min_size=1, max_size=8)
OPPOSITE = {"faster": "slower", "slower": "faster"}


def one(base: list[float], new: list[float]) -> Judgement:
    (found,) = judge([Times(base, new)])
    return found


@given(SAMPLES, SAMPLES)
def test_the_two_sides_are_treated_alike(base: list[float], new: list[float]) -> None:
    there, back = one(base, new), one(new, base)
    assert OPPOSITE.get(there.verdict, there.verdict) == back.verdict
    assert there.p == pytest.approx(back.p)
    assert (there.needed, there.enough) == (back.needed, back.enough)


@given(SAMPLES, SAMPLES)
def test_nothing_is_claimed_of_few_repeats_or_within_the_floor(base: list[float], new: list[float]) -> None:
    found = one(base, new)
    ratio = float(np.median(new) / np.median(base))
    if min(len(base), len(new)) < FEWEST or 1 / (1 + FLOOR) <= ratio <= 1 + FLOOR:
        assert not found.claimed


@given(SAMPLES, SAMPLES, st.floats(1.0, 3.0))
def test_a_larger_difference_is_claimed_where_a_smaller_is(
    base: list[float], new: list[float], factor: float
) -> None:
    if one(base, new).verdict == "slower":
        assert one(base, [value * factor for value in new]).verdict == "slower"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_is_never_more_lenient_than_no_correction(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[i] for i in order] == sorted(adjusted)
    assert all(p <= found <= 1 for p, found in zip(p_values, adjusted, strict=True))
    assert adjusted[order[0]] == pytest.approx(min(1, len(p_values) * p_values[order[0]]))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_repeats_that_a_claim_needs_are_exact() -> None:
    assert [repeats_needed(m) for m in (1, 6, 7, 23, 24, 85, 86)] == [5, 5, 6, 6, 7, 7, 8]
    assert [repeats_needed(m, paired=True) for m in (1, 3, 4, 11, 12)] == [5, 5, 6, 6, 7]
    for family in range(1, 60):
        n = repeats_needed(family)
        assert smallest_p(n, n) <= 0.05 / family
        assert n == FEWEST or smallest_p(n - 1, n - 1) > 0.05 / family
        pairs = repeats_needed(family, paired=True)
        assert smallest_paired_p(pairs) <= 0.05 / family
        assert pairs == FEWEST or smallest_paired_p(pairs - 1) > 0.05 / family


def test_a_family_raises_the_bar() -> None:
    apart = Times([1.0, 1.01, 1.02, 1.03, 1.04], [1.2, 1.21, 1.22, 1.23, 1.24])
    assert [found.verdict for found in judge([apart] * 6)] == ["slower"] * 6
    seven = judge([apart] * 7)
    assert {found.verdict for found in seven} == {"inconclusive"}
    assert seven[0].why == "5 against 5 repeats; a claim needs 6 against 6 (7 comparisons)"
    # Holm's second step: what is decided beyond doubt leaves more to the others.
    sure = Times([1.0 + i / 1000 for i in range(9)], [1.2 + i / 1000 for i in range(9)])
    assert judge([apart] * 6 + [sure])[0].verdict == "slower"


def test_pairs_are_judged_by_their_differences() -> None:
    seeds = np.random.default_rng(0).normal(80, 10, 8)
    noise = np.array([0.1, -0.1, 0.2, 0.0, -0.2, 0.15, 0.05, -0.05])

    def judged(shift: float, count: int = 8) -> Judgement:
        scores = Scores(
            seeds[:count].tolist(), (seeds + shift + noise)[:count].tolist(), 1.0, more_is_better=True
        )
        return judge([scores])[0]

    assert judged(-2.0).verdict == "worse"
    assert judged(2.0).verdict == "better"
    assert judged(0.0).verdict == "no change"
    assert judged(-2.0, 5).verdict == "inconclusive", (
        "by pairs, five cannot reach 5%; by ranks the seeds hide it"
    )
    assert judged(-60.0, 5).verdict == "worse"
    assert judged(-60.0, 4).why == "4 seeds on both sides; a claim needs 5"


def test_the_named_rival_and_the_family() -> None:
    runs = [100.0 + i for i in range(5)]
    plain, hidden, half = (
        make_cell("dense", runs),
        make_cell("dense", runs, overlap=True),
        make_cell("dense", runs, overlap=True, params={"values": "fp16"}),
    )
    method = make_cell("topk", [50.0 + i for i in range(5)])
    for cells, rival in (
        ([plain, method], 0),
        ([plain, hidden, method], 1),
        ([plain, hidden, half, method], 2),
    ):
        measured = summarise(cells)
        assert named_rival(measured[-1], measured) is measured[rival]
        found = claims(measured)
        assert len(found) == 1, "baselines are no methods"
        assert found[id(measured[-1])].judgement.verdict == "faster"
        assert fastest(measured, 1) is measured[-1]
        measured[0].link = measured[0].link.model_copy(update={"host_limited": True})
        assert fastest(measured, 1) is None, "on the link alone the other might be faster"
    alone = summarise([plain.model_copy(update={"workers": 1}), method.model_copy(update={"workers": 1})])
    assert claims(alone) == {}


@pytest.mark.parametrize("repeats", [5, 7])
def test_equal_methods_are_rarely_claimed_to_differ(repeats: int) -> None:
    """The study is reports/false_claims.py; here a few families, noisy enough for the floor not to matter."""
    generator = np.random.default_rng(repeats)
    families, wrong = 200, 0
    for _ in range(families):
        noise = np.exp(generator.normal(0, 0.3, (5, repeats)))
        rival, *methods = noise.tolist()
        wrong += any(found.claimed for found in judge([Times(rival, method) for method in methods]))
    assert wrong / families <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / families)
