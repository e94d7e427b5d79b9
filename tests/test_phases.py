"""Phases add up to the step, and a wait ends when the last rank arrives."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsim_ddp.results.record import StepRecord
from netsim_ddp.results.summary import PHASES
from netsim_ddp.steps.phases import HostClock, StepSample, StepTimer, covered, step_records

LOCAL = ["compute", "compress", "decompress", "optimizer", "other", "send"]
durations = st.floats(min_value=0, max_value=10, allow_nan=False)


def sample(
    begin: float, *pieces: tuple[str, float], starts: list[float] | None = None, **fields: float
) -> StepSample:
    """Laps one after another; a "wire" lap's exchange starts with it unless ``starts`` says otherwise."""
    laps, found, now = [], [], begin
    for phase, seconds in pieces:
        if phase == "wire":
            found.append(now)
        laps.append((phase, now, now + seconds))
        now += seconds
    return StepSample(laps, found if starts is None else starts, **fields)  # type: ignore[arg-type]


def total(record: StepRecord) -> float:
    return sum(getattr(record, phase) for phase in PHASES)


@given(
    st.lists(
        st.tuples(
            durations,
            st.lists(st.tuples(st.sampled_from(LOCAL), durations), max_size=6),
            durations,
            durations,
        ),
        min_size=1,
        max_size=4,
    ),
    durations,
)
def test_phases_add_up_to_the_step_whatever_the_ranks_do(ranks: list, accelerator: float) -> None:  # type: ignore[type-arg]
    samples = [
        sample(begin, ("compute", 1.0), *pieces, ("wire", first), ("decompress", 0.5), ("wire", second))
        for begin, pieces, first, second in ranks
    ]
    for one in samples:
        one.computing_until = one.begin + accelerator
    for one, record in zip(samples, step_records(samples), strict=True):
        assert total(record) == pytest.approx(record.wall_s)
        assert record.wall_s == pytest.approx(one.end - one.begin)
        assert min(getattr(record, phase) for phase in PHASES) >= 0
        assert record.hidden_s >= 0
        assert record.compute_s >= min(accelerator, record.wall_s) * (1 - 1e-9) - 1e-9


def test_waiting_ends_and_communicating_begins_when_the_last_rank_arrives() -> None:
    early, late = step_records(
        [sample(0, ("compute", 1), ("wire", 5)), sample(0, ("compute", 4), ("wire", 2))]
    )
    assert (early.wait_s, early.communicate_s) == (3, 2)
    assert (late.wait_s, late.communicate_s) == (0, 2)


def test_an_exchange_that_was_started_before_is_waited_for_only_until_the_last_start() -> None:
    first = sample(0, ("send", 1), ("compute", 3), ("wire", 2), starts=[0.0])
    second = sample(0, ("compute", 5), ("send", 0), ("wire", 1), starts=[5.0])
    ahead, behind = step_records([first, second])
    assert (ahead.wait_s, ahead.communicate_s) == (1, 1 + 1)
    assert ahead.hidden_s == pytest.approx(4)  # from its start to where it is waited for
    assert (behind.wait_s, behind.communicate_s) == (0, 1)


def test_while_an_accelerator_computes_that_is_what_a_rank_does() -> None:
    (record,) = step_records([sample(0, ("compress", 3), ("wire", 4), computing_until=5.0)])
    assert (record.compute_s, record.compress_s, record.communicate_s) == (5, 0, 2)
    assert record.hidden_s == pytest.approx(2)


def test_ranks_that_disagree_on_the_exchanges_are_an_error() -> None:
    with pytest.raises(ValueError, match="disagree"):
        step_records([sample(0, ("wire", 1)), sample(0, ("wire", 1), ("wire", 1))])


@given(st.lists(st.tuples(durations, durations).map(lambda pair: (min(pair), max(pair))), max_size=8))
def test_covered_is_the_length_of_the_union(intervals: list[tuple[float, float]]) -> None:
    edges = sorted({edge for interval in intervals for edge in interval})
    union = sum(
        right - left
        for left, right in itertools.pairwise(edges)
        if any(begin <= left and right <= end for begin, end in intervals)
    )
    assert covered(intervals) == pytest.approx(union)


def test_a_timers_laps_leave_no_gap() -> None:
    timer = StepTimer(HostClock())
    timer.begin()
    timer.lap("compute")
    timer.started("exchange")
    timer.lap("wire", "exchange")
    timer.lap("optimizer")
    found = timer.finish()
    assert [phase for phase, _, _ in found.laps] == ["compute", "wire", "optimizer"]
    assert all(one[2] == other[1] for one, other in zip(found.laps, found.laps[1:], strict=False))
    assert len(found.starts) == 1
