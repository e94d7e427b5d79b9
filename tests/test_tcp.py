"""TCP on the bucket link: against the kernel's measured times, and what must hold whatever they are."""

from __future__ import annotations

import itertools
import math
from statistics import median

import pytest

from netsim_ddp.errors import UsageError
from netsim_ddp.link.bucket.clock import LinkClock
from netsim_ddp.link.bucket.schedule import PREAMBLE_BYTES, Operation, message_bytes
from netsim_ddp.link.bucket.tcp import TcpSettings
from netsim_ddp.link.mechanisms import HostLink, choose
from netsim_ddp.link.spec import LinkSpec, RankRate
from netsim_ddp.scenario import build_scenario
from netsim_ddp.steps.link_record import link_record

LINUX = TcpSettings("Linux")
GIGABIT, MBIT = 10**9, 10**6
WAITING = -math.inf
"""When a receiver called that has long been ready."""


def clock(rate: int, way_s: float, tcp: TcpSettings | None = LINUX, workers: int = 2) -> LinkClock:
    return LinkClock(LinkSpec(workers, rate, delay_s=way_s, tcp="linux" if tcp else "ideal"), tcp=tcp)


def trace(link: LinkClock, size: int, idle_s: float, way_s: float, count: int = 8) -> list[float]:
    """Seconds of ``count`` messages, each ``idle_s`` after the answer to the one before."""
    now, times = 1.0, []
    for _ in range(count):
        now += idle_s
        there = link.complete(Operation("send", size - PREAMBLE_BYTES), (now, WAITING)).deadline
        times.append(there - now)
        now = there + way_s
    return times


# Rows of reports/tcp.md: rate, size, round trip, idle; the kernel's first and median message, seconds.
MEASURED = [
    (GIGABIT, 15_000, 0.08, 1.0, 0.1210, 0.1210),
    (GIGABIT, 164_000, 0.01, 1.0, 0.0371, 0.0372),
    (GIGABIT, 164_000, 0.08, 0.1, 0.2833, 0.0418),
    (GIGABIT, 164_000, 0.08, 1.0, 0.2823, 0.2822),
    (GIGABIT, 1_000_000, 0.08, 1.0, 0.5265, 0.2828),
    (GIGABIT, 10_000_000, 0.04, 0.1, 0.4431, 0.1441),
    (GIGABIT, 60_000_000, 0.04, 0.1, 1.1607, 0.8775),
    (GIGABIT, 60_000_000, 0.08, 0.1, 2.1650, 1.6010),
    (100 * MBIT, 164_000, 0.04, 1.0, 0.1469, 0.1472),
    (100 * MBIT, 1_000_000, 0.04, 1.0, 0.2700, 0.2111),
    (100 * MBIT, 10_000_000, 0.08, 1.0, 1.2865, 0.9902),
    (100 * MBIT, 60_000_000, 0.08, 0.1, 5.4681, 5.0628),
]


@pytest.mark.parametrize(("rate", "size", "trip_s", "idle_s", "first", "middle"), MEASURED)
def test_a_message_takes_what_the_kernel_needs(rate, size, trip_s, idle_s, first, middle):
    times = trace(clock(rate, trip_s / 2), size, idle_s, trip_s / 2)
    assert times[0] == pytest.approx(first, rel=0.15)
    assert median(times) == pytest.approx(middle, rel=0.15)


@pytest.mark.parametrize("way_s", [0.0005, 0.02, 0.04])
@pytest.mark.parametrize("rate", [5 * MBIT, GIGABIT])
def test_a_longer_message_takes_longer_and_none_is_earlier_than_the_line(rate, way_s):
    sizes = [10, 1448, 14_000, 16_000, 60_000, 164_000, 10**6, 9 * 10**6, 6 * 10**7]
    ideal, linux = (
        [trace(clock(rate, way_s, tcp), size, 0.1, way_s, 1)[0] for size in sizes] for tcp in (None, LINUX)
    )
    assert ideal == pytest.approx([message_bytes(size - PREAMBLE_BYTES) * 8 / rate + way_s for size in sizes])
    assert all(real >= line - 1e-12 for real, line in zip(linux, ideal, strict=True))
    assert all(short <= long for short, long in itertools.pairwise(linux))


def test_only_silence_beyond_the_timeout_closes_the_window():
    way_s, size = 0.04, 164_000
    line = message_bytes(size) * 8 / GIGABIT + way_s
    assert trace(clock(GIGABIT, way_s), size, 0.1, way_s)[-1] == pytest.approx(line, rel=0.01)
    halved = [trace(clock(GIGABIT, way_s), size, idle, way_s)[-1] for idle in (0.3, 1.0, 60.0)]
    assert line < halved[0] < halved[1] <= halved[2]
    assert halved[2] == pytest.approx(trace(clock(GIGABIT, way_s), size, 0.1, way_s, 1)[0])
    kept = TcpSettings("Linux", slow_start_after_idle=False)
    assert trace(clock(GIGABIT, way_s, kept), size, 60.0, way_s)[-1] == pytest.approx(line, rel=0.01)


def test_each_ordered_pair_has_a_window_of_its_own():
    link = clock(GIGABIT, 0.04, workers=3)
    send = Operation("send", 164_000)

    def took(now: float, *pair: int) -> float:
        return link.complete(send, (now, now), pair).deadline - now

    cold = took(1.0, 0, 1)
    assert took(1.5, 0, 1) < cold / 3
    assert took(2.0, 1, 0) == pytest.approx(cold)
    assert took(2.5, 0, 2) == pytest.approx(cold)
    link.begin(3.0)
    assert took(3.0, 0, 1) == pytest.approx(cold)  # connections are new


def test_messages_at_once_share_their_senders_line():
    size, way_s = 10**7, 0.02
    alone = trace(clock(100 * MBIT, way_s), size, 0.1, way_s, 1)[0]
    link = clock(100 * MBIT, way_s, workers=3)
    send = Operation("send", size)
    both = [link.complete(send, (1.0, WAITING), (0, to)).deadline - 1.0 for to in (1, 2)]
    assert max(both) >= 2 * message_bytes(size) * 8 / (100 * MBIT)
    assert max(both) <= alone + 1.25 * message_bytes(size) * 8 / (100 * MBIT)


@pytest.mark.parametrize("workers", [2, 3])
def test_exchanges_at_once_take_turns_and_do_not_queue(workers):
    """Their rounds wait for the delay, not for each other: kernel TCP carries two in little more than one needs."""
    whole, way_s = 2 * 10**7, 0.04
    link = clock(GIGABIT, way_s, workers=workers)
    ideal = clock(GIGABIT, way_s, None, workers)

    def took(link, now, parts):
        ops = [Operation("allreduce", whole // parts, itemsize=4)] * parts
        return max(link.complete(op, [now] * workers).deadline for op in ops) - now

    now = 1.0
    for _ in range(5):  # steps that follow one another, so that no window restarts
        one = took(link, now, 1)
        now += one + 0.05
    two = took(link, now, 2)
    assert took(ideal, 1.0, 2) <= two * (1 + 1e-9)
    assert two < 0.75 * one


def test_parts_of_a_message_sent_at_once_take_what_it_takes_whole():
    way_s = 0.02
    whole = trace(clock(GIGABIT, way_s), 4 * 10**6, 0.1, way_s, 1)[0]
    link = clock(GIGABIT, way_s)
    parts = [link.complete(Operation("send", 10**6), (1.0, WAITING)).deadline - 1.0 for _ in range(4)]
    assert parts == sorted(parts)
    assert parts[-1] == pytest.approx(whole, rel=0.02)


def test_processes_that_share_the_memory_agree():
    spec = LinkSpec(2, GIGABIT, delay_s=0.02)
    one, memory = LinkClock(spec, tcp=LINUX), [0.0] * LinkClock.cells(2)
    for number in range(12):
        op, now = Operation("allreduce", 200_000 * (number + 1), itemsize=4), 1.0 + 0.3 * number
        assert LinkClock(spec, memory, tcp=LINUX).complete(op, (now, now)) == one.complete(op, (now, now))


def test_what_is_expected_comes_true_and_takes_nothing():
    link = clock(GIGABIT, 0.04)
    for now in (1.0, 1.8, 4.0):
        expected = link.expected_s([10**6, 10**6], 0, 1, now)
        assert link.expected_s([10**6, 10**6], 0, 1, now) == expected
        there = [link.complete(Operation("send", 10**6), (now, WAITING)).deadline - now for _ in range(2)]
        assert there == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["allreduce", "allgather", "broadcast", "send"])
def test_without_a_delay_tcp_changes_nothing(kind):
    op = Operation(kind, 3_000_000, itemsize=4)
    ideal, linux = (clock(GIGABIT, 0.0, tcp) for tcp in (None, LINUX))
    for now in (1.0, 1.001, 9.0):
        assert linux.complete(op, (now, now)) == ideal.complete(op, (now, now))


def test_acknowledgements_set_the_pace_where_the_way_back_is_slow():
    fast, slow = (
        LinkClock(LinkSpec(2, GIGABIT, slow_ranks=(RankRate(1, back, GIGABIT),), delay_s=0.01), tcp=LINUX)
        for back in (GIGABIT, MBIT)
    )
    least = 10**7 / 1448 / 2 * 66 * 8 / MBIT  # every second segment's acknowledgement
    assert trace(slow, 10**7, 0.1, 0.01, 1)[0] > 0.8 * least > 2 * trace(fast, 10**7, 0.1, 0.01, 1)[0]


def test_the_send_buffer_caps_a_long_line():
    assert LINUX.most_bps(0) == math.inf
    assert MBIT < LINUX.most_bps(2 * 0.04) < 0.5 * GIGABIT


def test_the_hosts_settings_are_read_and_defaults_stand_in(tmp_path):
    (tmp_path / "tcp_wmem").write_text("4096\t20000\t6291456\n")
    (tmp_path / "tcp_slow_start_after_idle").write_text("0\n")
    found = TcpSettings.of_host(tmp_path)
    assert (found.wmem_bytes, found.slow_start_after_idle) == ((4096, 20000, 6291456), False)
    missing = TcpSettings.of_host(tmp_path / "none")
    assert (missing.wmem_bytes, missing.slow_start_after_idle) == ((4096, 16384, 4 * 1024**2), True)


def test_the_choice_is_recorded_shown_and_refused_on_tc():
    def record(**values: str):
        link = HostLink(build_scenario({"bandwidth": "1gbps", **values}).link_spec(), "bucket")
        return link_record(link, None)

    linux, ideal, none = record(delay="40ms"), record(delay="40ms", tcp="ideal"), record()
    assert (linux.tcp, ideal.tcp, none.tcp) == ("linux", "ideal", None)
    assert linux.tcp_host is not None
    assert linux.tcp_host.congestion == "cubic"
    assert ideal.tcp_host is None
    assert "ideal TCP" in (ideal.shape or "")
    spec = LinkSpec(2, GIGABIT, delay_s=0.01, tcp="ideal")
    with pytest.raises(UsageError, match="the kernel's own TCP"):
        choose(spec, "tc", print)
    assert choose(spec, "auto", lambda _: None).mechanism == "bucket"
