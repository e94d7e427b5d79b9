"""Links that change in time or run on credit, in the bucket's arithmetic."""

from __future__ import annotations

import itertools
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsim_ddp.link.bucket.clock import LinkClock, _noise
from netsim_ddp.link.bucket.rates import CreditRate, VaryingRate
from netsim_ddp.link.bucket.schedule import Operation, message_bytes
from netsim_ddp.link.spec import Change, LinkSpec, RankRate

MOMENTS = st.floats(0, 20)
TIMELINES = st.lists(st.tuples(st.floats(0.1, 3), st.integers(10**6, 10**9)), min_size=1, max_size=5)


@st.composite
def changing(draw: st.DrawFn) -> VaryingRate:
    steps = draw(TIMELINES)
    times = [0.0, *itertools.accumulate(length for length, _ in steps[:-1])]
    period = draw(st.sampled_from([None, times[-1] + 1.0]))
    return VaryingRate(times, [rate for _, rate in steps], period, draw(st.floats(0, 5)))


@given(changing(), MOMENTS, st.floats(1, 1e9))
def test_what_a_changing_side_does_until_its_end_is_the_work(
    pace: VaryingRate, start: float, work: float
) -> None:
    assert pace.within(start, pace.end(start, work)) == pytest.approx(work, rel=1e-6, abs=10)


@given(changing(), MOMENTS, st.floats(0, 3), st.floats(0, 3))
def test_stretches_of_work_add_up(pace: VaryingRate, start: float, first: float, second: float) -> None:
    middle, end = start + first, start + first + second
    parts = pace.within(start, middle) + pace.within(middle, end)
    assert parts == pytest.approx(pace.within(start, end), rel=1e-6, abs=10)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(1, 1e9)), min_size=1, max_size=10))
def test_credit_is_never_spent_twice(sends: list[tuple[float, float]]) -> None:
    base, peak, credit = 1e7, 1e8, 5e7
    pace = CreditRate(base, peak, credit, 0.0, 0.0)
    now = total = 0.0
    for gap, work in sends:
        now = pace.end(now + gap, work)
        total += work
        assert 0 <= pace.spent <= credit * (1 + 1e-9)
        assert total <= credit + base * now + 1e-3  # the token bucket's own law
        assert now >= total / peak * (1 - 1e-9)


def test_a_side_with_credit_sends_at_its_peak_and_then_at_its_rate() -> None:
    pace = CreditRate(1e7, 1e8, 9e7, 0.0, 0.0)
    assert pace.end(0.0, 1e8) == pytest.approx(1.0)  # 9e7 of credit and what came in meanwhile
    assert pace.end(1.0, 1e7) == pytest.approx(2.0)
    assert pace.end(6.0, 4e7) == pytest.approx(6.4)  # four idle seconds earned that much


def send(clock: LinkClock, nbytes: int, at: float) -> float:
    return clock.complete(Operation("send", nbytes), [at, at], (0, 1)).deadline - at


def test_a_message_takes_the_rate_of_its_moment() -> None:
    spec = LinkSpec(2, 10**8, timeline=(Change(10.0, 10**7, 10**7),), period_s=20.0)
    clock = LinkClock(spec)
    line = message_bytes(100_000) * 8
    clock.begin(1000.0)
    for at, rate in ((1000.0, 1e8), (1011.0, 1e7), (1021.0, 1e8), (1035.0, 1e7)):
        assert send(clock, 100_000, at) == pytest.approx(line / rate)
    clock.begin(1050.0)
    assert send(clock, 100_000, 1051.0) == pytest.approx(line / 1e8)


def test_before_its_time_begins_a_link_has_its_first_rates() -> None:
    clock = LinkClock(LinkSpec(2, 10**8, timeline=(Change(0.5, 10**6, 10**6),)))
    assert send(clock, 100_000, 50.0) == pytest.approx(message_bytes(100_000) * 8 / 1e8)


def test_a_slow_rank_stays_slow_when_the_link_changes() -> None:
    slow = (RankRate(1, 10**6, 10**6),)
    spec = LinkSpec(
        3, 10**8, slow_ranks=slow, timeline=(Change(1.0, 10**9, 10**9), Change(2.0, 10**5, 10**5))
    )
    assert [now.up(1) for _, now in spec.stretches()] == [10**6, 10**6, 10**5]
    assert [now.up(0) for _, now in spec.stretches()] == [10**8, 10**9, 10**5]
    assert spec.lowest_bps == 10**5
    assert spec.at_start.slowest_bps == 10**6


def test_credit_is_full_again_when_time_begins_anew() -> None:
    clock = LinkClock(LinkSpec(2, 10**7, peak_bps=10**8, credit_bytes=1_000_000))
    fast, slow = message_bytes(1_000_000) * 8 / 1e8, message_bytes(1_000_000) * 8 / 1e7
    clock.begin(100.0)
    assert send(clock, 1_000_000, 100.0) == pytest.approx(fast)
    assert send(clock, 1_000_000, 100.1) > 0.8 * slow
    clock.begin(102.0)
    assert send(clock, 1_000_000, 102.0) == pytest.approx(fast)


@pytest.mark.parametrize("early_s", [0.0, 0.05, 1.0])
def test_a_receiver_that_is_ready_early_costs_a_message_one_way_and_not_two(early_s: float) -> None:
    clock = LinkClock(LinkSpec(2, 10**8, delay_s=0.02))
    sent = 10.0
    done = clock.complete(Operation("send", 1), [sent, sent - early_s], (0, 1)).deadline
    ways = 2 if early_s == 0 else 1
    assert done - sent == pytest.approx(ways * 0.02 + message_bytes(1) * 8 / 1e8)


def test_jitter_is_within_its_bounds_around_the_delay_and_the_same_each_time() -> None:
    spec = LinkSpec(2, 10**9, delay_s=0.02, jitter_s=0.005)
    runs = []
    for _ in range(2):
        clock = LinkClock(spec)
        times = [
            clock.complete(Operation("send", 1), [at, at - 1], (0, 1)).deadline - at for at in range(1, 400)
        ]
        runs.append(times)
    line = message_bytes(1) * 8 / 1e9
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 300
    assert all(0.015 <= took - line <= 0.025 for took in runs[0])
    assert fmean(runs[0]) - line == pytest.approx(0.02, abs=0.0006)


def test_noise_is_even() -> None:
    values = [_noise(number) for number in range(10_000)]
    assert -1 <= min(values) < -0.99
    assert 0.99 < max(values) <= 1
    assert abs(fmean(values)) < 0.02
