"""Where a recorded step went: parts that add up, waits between ranks, and what of the exchanges was exposed."""

from __future__ import annotations

import numpy as np
import pytest

from netsim_ddp.results.gradient_energy import top_share
from netsim_ddp.results.recorded_steps import (
    PARTS,
    bucket_times,
    middle_step,
    seen_steps,
    without_exchange_s,
)
from netsim_ddp.results.recording import Gradients, Parameter, Pass, RankSteps, Recording, Step
from tests.planted_recordings import apart, recording, step


def _ms(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value * 1e3, 6) for name, value in values.items()}


def test_the_parts_of_a_step_add_up_on_every_rank() -> None:
    first, second = (rank[0] for rank in seen_steps(apart()))
    assert _ms(first.parts) == {
        "data": 4, "forward": 10, "backward": 20, "wait": 8, "exchange": 20, "other": 1, "optimizer": 5,
    }  # fmt: skip
    assert _ms(second.parts) == _ms(first.parts) | {"backward": 28, "wait": 0}
    for seen in (first, second):
        assert sum(seen.parts.values()) == pytest.approx(seen.step.end_s)
        assert [span.begin_s for span in seen.spans][1:] == [span.end_s for span in seen.spans][:-1]


def test_a_wait_is_told_only_where_all_ranks_were_seen() -> None:
    of = apart()
    alone = of.model_copy(update={"ranks": of.ranks[:1]})
    parts = seen_steps(alone)[0][0].parts
    assert (parts["wait"], round(parts["exchange"] * 1e3, 6)) == (0, 28)


def test_a_rank_whose_step_began_later_is_held_against_the_others_on_their_clock() -> None:
    late = step(0.005)
    of = recording(ranks=2).model_copy(
        update={
            "ranks": [
                RankSteps(rank=0, device="cpu", steps=[step(0.0, exposed_s=0.1)]),
                RankSteps(rank=1, device="cpu", steps=[late]),
            ]
        }
    )
    assert seen_steps(of)[0][0].parts["wait"] == pytest.approx(0.005)


def test_without_ddp_backward_lasts_to_its_end() -> None:
    of = recording(source="plain", ranks=1)
    of.ranks[0].steps = [step(exposed_s=0.002)]
    parts = seen_steps(of)[0][0].parts
    assert parts["backward"] == pytest.approx(0.022)
    assert parts["exchange"] == parts["wait"] == 0


def test_passes_of_accumulation_are_added() -> None:
    one = step().model_copy(
        update={
            "passes": [
                Pass(forward_s=0.001, backward_s=0.002, end_s=0.004),
                Pass(forward_s=0.005, backward_s=0.014, end_s=0.034),
            ]
        }
    )
    of = recording(ranks=1)
    of.ranks[0].steps = [one]
    parts = _ms(seen_steps(of)[0][0].parts)
    assert parts == {
        "data": 2, "forward": 10, "backward": 22, "wait": 0, "exchange": 0, "other": 1, "optimizer": 5,
    }  # fmt: skip


def test_exposed_exchange_is_shared_out_among_the_buckets() -> None:
    seen = seen_steps(apart())
    rows = bucket_times(apart(), seen)
    assert [round(row.exposed.median * 1e3, 6) for row in rows if row.exposed] == [8, 10]
    assert [round(row.apart.median * 1e3, 6) for row in rows if row.apart] == [8, 8]
    assert without_exchange_s(seen) == pytest.approx(0.048)
    [first, _] = seen[0][0].bucket_spans
    assert [(span.part, round(span.end_s * 1e3)) for span in first] == [("wait", 30), ("exchange", 50)]


def test_a_bucket_that_nobody_saw_through_has_no_figure() -> None:
    of = recording(ranks=1)
    for one in of.ranks[0].steps:
        one.full_s[0], one.done_s[0] = None, None
    first, second = bucket_times(of, seen_steps(of))
    assert (first.full, first.done, first.exposed, first.apart) == (None, None, None, None)
    assert second.full is not None


def test_the_middle_step_has_the_median_length() -> None:
    def long(end_s: float) -> Step:
        return step().model_copy(update={"end_s": end_s})

    of = recording(ranks=1)
    of.ranks[0].steps = [long(0.3), long(0.1), long(0.2)]
    assert middle_step(seen_steps(of)[0]) == 2


def test_what_is_full_after_backward_ended_makes_no_negative_part() -> None:
    of = recording(ranks=1)
    of.ranks[0].steps = [step(full_s=[0.036, 0.037])]
    seen = seen_steps(of)[0][0]
    assert min(seen.parts.values()) >= 0
    assert set(seen.parts) == set(PARTS)
    assert [value for value in seen.exposed_s if value] == []


def _of(kept: list[int], sizes: list[int], scales: list[float]) -> Recording:
    parameters = [Parameter(name=f"p{number}", shape=[size]) for number, size in enumerate(sizes)]
    gradients = Gradients(kind="sampled", steps=[0], kept=kept, scales=[scales], block=1)
    return recording().model_copy(update={"parameters": parameters, "gradients": gradients})


def test_the_share_of_energy_is_that_of_a_full_sort() -> None:
    draw = np.random.default_rng(1)
    values = draw.uniform(-1, 1, 50_000).astype(np.float16) ** 3
    of = _of([30_000, 20_000], [30_000, 20_000], [0.5, 2.0])
    whole = values.astype(float) * np.repeat([0.5, 2.0], [30_000, 20_000])
    energy = np.sort(whole**2)[::-1]
    assert top_share(of, values, 0) == pytest.approx(energy[:500].sum() / energy.sum(), rel=2e-3)


def test_a_sampled_value_stands_for_those_around_it() -> None:
    ones = np.ones(200, np.float16)
    # Of 10,000 entries 100 are ten times as large as the others: 1% of them hold half of the energy.
    of = _of([100, 100], [9_900, 100], [1.0, 10.0])
    assert top_share(of, ones, 0) == pytest.approx(10_000 / (10_000 + 9_900), rel=2e-3)


def test_gradients_of_zeros_have_no_share() -> None:
    assert top_share(_of([5], [5], [1.0]), np.zeros(5, np.float16), 0) is None
