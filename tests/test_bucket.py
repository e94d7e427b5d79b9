"""The token bucket against closed forms, bounds that hold for any schedule, and Gloo's counted bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsim_ddp.link.bucket.clock import LinkClock, _occupy
from netsim_ddp.link.bucket.schedule import (
    KINDS,
    NOTICE_BYTES,
    Operation,
    charges,
    message_bytes,
    schedule,
    wire_bytes,
)
from netsim_ddp.link.spec import LinkSpec, RankRate
from tests.links import ideal_link

RATE = 50_000_000
ETHERNET = 1514 / 1448
ROOTED = ("broadcast", "reduce", "gather", "scatter")


def operation(kind: str, nbytes: int, members: int, root: int = 0) -> Operation:
    if kind == "alltoall":
        return Operation(kind, splits=((nbytes,) * members,) * members)
    return Operation(kind, nbytes, root, itemsize=4)


def seconds(op: Operation, spec: LinkSpec) -> float:
    return LinkClock(spec).complete(op, [0.0] * spec.workers).deadline


def totals(op: Operation, members: int) -> tuple[list[int], list[int]]:
    """Data bytes (wire, without notices) that each member sends and receives."""
    sent, received = [0] * members, [0] * members
    for phase in schedule(op, members):
        for messages in phase.rounds:
            for a, b, wire in messages:
                sent[a] += wire
                received[b] += wire
    return sent, received


def test_wire_bytes_count_the_headers_of_every_segment():
    assert wire_bytes(0) == 0
    assert wire_bytes(1) == 67
    assert wire_bytes(1448) == 1514
    assert wire_bytes(1449) == 1449 + 2 * 66
    assert message_bytes(1400) == 1514
    assert NOTICE_BYTES == 114


@pytest.mark.parametrize("workers", [2, 3, 4, 8])
@pytest.mark.parametrize("nbytes", [9_600, 960_000, 96_000_000])
def test_ring_all_reduce_has_its_closed_form(workers, nbytes):
    took = seconds(Operation("allreduce", nbytes, itemsize=4), ideal_link(workers, RATE))
    sent = totals(Operation("allreduce", nbytes, itemsize=4), workers)[0]
    assert max(sent) == pytest.approx(sum(sent) / workers, rel=0.01)  # a last segment may be shorter
    assert max(sent) * 8 / RATE <= took * (1 + 1e-9)
    assert took == pytest.approx(max(sent) * 8 / RATE, rel=1e-2)
    if nbytes >= 960_000:
        ideal = 2 * (workers - 1) / workers * nbytes * 8 / RATE * ETHERNET
        assert took == pytest.approx(ideal, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "passes"),
    [
        ("allgather", 3),
        ("broadcast", 2),
        ("gather", 3),
        ("scatter", 3),
        ("alltoall", 3),
        ("reduce", 1.5 + 0.75),
        ("reduce_scatter", 1.5),
        ("allreduce", 1.5),
    ],
)
def test_each_collective_at_four_ranks_takes_its_passes_over_the_line(kind, passes):
    nbytes = 1_600_000
    took = seconds(operation(kind, nbytes, 4), ideal_link(4, RATE))
    # reduce: three quarters of a ring pass, then three chunks of a quarter into the root, side by side
    passes = 0.75 + 0.75 if kind == "reduce" else passes
    assert took == pytest.approx(passes * nbytes * 8 / RATE * ETHERNET, rel=0.02)


def test_messages_and_data_bytes_are_gloos():
    """Counted on a loopback interface at P = 4 with 400,000 bytes: payload + 48 for each data message."""
    counted = {"allreduce": (48, 2_400_000), "reduce": (27, 1_500_000), "broadcast": (3, 1_200_000)}
    counted |= {"allgather": (24, 4_800_000), "gather": (3, 1_200_000), "alltoall": (12, 4_800_000)}
    for kind, (messages, payload) in counted.items():
        phases = schedule(operation(kind, 400_000, 4), 4)
        wires = [m.wire for phase in phases for each in phase.rounds for m in each]
        assert len(wires) == messages, kind
        assert sum(wires) == pytest.approx(payload * ETHERNET, rel=0.005), kind


def test_a_barrier_costs_a_round_trip_of_notices_for_each_doubling():
    spec = ideal_link(8, RATE, delay_s=0.01)
    assert seconds(Operation("barrier"), spec) == pytest.approx(3 * (2 * 0.010 + 114 * 8 / RATE), rel=1e-3)


@pytest.mark.parametrize("workers", [2, 4])
def test_delay_adds_a_hop_to_every_round_of_a_small_ring(workers):
    hop = 0.01
    op = Operation("allreduce", 4 * 2 * workers, itemsize=4)
    took = seconds(op, ideal_link(workers, RATE, delay_s=hop))
    # The receiver's readiness travels too.
    assert took == pytest.approx(2 * 2 * (workers - 1) * hop, rel=0.05)


def test_segments_in_flight_hide_delay_behind_a_large_message():
    near = ideal_link(4, RATE)
    far = ideal_link(4, RATE, delay_s=0.01)
    op = Operation("allreduce", 16_000_000, itemsize=4)
    assert seconds(op, near) < seconds(op, far) < seconds(op, near) + 12 * 0.010


def test_a_slow_rank_slows_the_ring_by_its_rate():
    slow = LinkSpec(3, RATE, slow_ranks=(RankRate(1, RATE // 2, RATE),))
    op = Operation("allreduce", 3_000_000, itemsize=4)
    assert seconds(op, slow) == pytest.approx(2 * seconds(op, ideal_link(3, RATE)), rel=0.15)


@pytest.mark.parametrize(("up", "down"), [(RATE, RATE // 10), (RATE // 10, RATE)])
def test_a_message_takes_the_slower_side_and_not_the_sum(up, down):
    spec = LinkSpec(2, up, down)
    assert seconds(Operation("send", 100_000), spec) == pytest.approx(
        message_bytes(100_000) * 8 / (RATE // 10)
    )


def test_operations_in_flight_share_the_link_first_come_first_served():
    clock = LinkClock(ideal_link(2, RATE))
    op = Operation("allreduce", 1_000_000, itemsize=4)
    alone = clock.complete(op, [10.0, 10.0]).deadline - 10.0
    second = clock.complete(op, [10.01, 10.0]).deadline - 10.0
    assert second == pytest.approx(2 * alone)


def test_messages_between_other_ranks_do_not_wait():
    clock = LinkClock(ideal_link(4, RATE))
    op = Operation("send", 1_000_000)
    first = clock.complete(op, [0.0, 0.0], (0, 1)).deadline
    assert clock.complete(op, [0.0, 0.0], (2, 3)).deadline == first
    assert clock.complete(op, [0.0, 0.0], (1, 0)).deadline == first  # full duplex
    assert clock.complete(op, [0.0, 0.0], (0, 3)).deadline == pytest.approx(2 * first)


@given(st.permutations([(a, b) for a in range(4) for b in range(4) if a != b]))
def test_everyone_to_everyone_takes_the_line_whatever_the_order(pairs):
    clock = LinkClock(ideal_link(4, RATE))
    op = Operation("send", 1_000_000)
    alone = seconds(op, ideal_link(2, RATE))
    assert max(clock.complete(op, [0.0, 0.0], pair).deadline for pair in pairs) == pytest.approx(3 * alone)


def test_a_later_operation_uses_the_gaps_that_delay_leaves():
    near, far = ideal_link(4, RATE), ideal_link(4, RATE, delay_s=0.1)
    op = Operation("allreduce", 8_000, itemsize=4)
    clock = LinkClock(far)
    first = clock.complete(op, [0.0] * 4).deadline
    assert first < clock.complete(op, [0.0] * 4).deadline < first + 2 * seconds(op, near)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 3)), max_size=20))
def test_a_side_does_one_thing_at_a_time(requests):
    busy: list[tuple[float, float]] = []
    for earliest, work in requests:
        before = sum(end - start for start, end in busy)
        free = max([earliest, *(end for _, end in busy)])
        last = _occupy(busy, earliest, work)
        assert last <= free + work * (1 + 1e-9)  # no later than after everything else
        assert last >= earliest + work * (1 - 1e-9)
        assert sum(end - start for start, end in busy) == pytest.approx(before + work)
        assert all(a[1] < b[0] for a, b in itertools.pairwise(busy))


def test_an_idle_link_saves_nothing_up():
    clock = LinkClock(ideal_link(2, RATE))
    op = Operation("send", 1_000)
    first = clock.complete(op, [0.0, 0.0]).deadline
    assert clock.complete(op, [1e6, 1e6]).deadline - 1e6 == pytest.approx(first, rel=1e-5)
    assert first == pytest.approx(message_bytes(1_000) * 8 / RATE)


def test_an_operation_starts_with_its_last_arrival():
    clock = LinkClock(ideal_link(3, RATE))
    op = Operation("broadcast", 1_000)
    took = seconds(op, clock.spec)
    assert clock.complete(op, [1.0, 5.0, 2.0]).deadline == pytest.approx(5.0 + took)


def test_nothing_to_send_is_done_at_once():
    assert seconds(Operation("allreduce", 0), ideal_link(4, RATE)) == 0.0
    assert seconds(Operation("barrier"), ideal_link(1, RATE)) == 0.0
    assert charges(Operation("allreduce", 0), 4) == ((0,) * 4, (0,) * 4)


def test_an_unknown_operation_is_refused_by_name():
    with pytest.raises(ValueError, match="no schedule for teleport"):
        seconds(Operation("teleport", 1), ideal_link(2, RATE))


@st.composite
def links(draw):
    rates = st.integers(10**5, 10**9)
    ranks = tuple(RankRate(rank, draw(rates), draw(rates)) for rank in range(draw(st.integers(2, 5))))
    return LinkSpec(len(ranks), 10**9, slow_ranks=ranks, delay_s=draw(st.floats(0, 0.2)), tcp="ideal")


kinds = st.sampled_from([kind for kind in KINDS if kind != "send"])
sizes = st.integers(0, 3_000_000).map(lambda n: 4 * n)


@settings(max_examples=60)
@given(links(), kinds, sizes, st.integers(0, 4))
def test_no_rank_is_done_before_its_bytes_have_passed(spec, kind, nbytes, root):
    p = spec.workers
    op = operation(kind, nbytes, p, root % p)
    result = LinkClock(spec).complete(op, [0.0] * p)
    for r, (sent, received) in enumerate(zip(*totals(op, p), strict=True)):
        bound = max(sent * 8 / spec.up(r), received * 8 / spec.down(r))
        assert result.deadlines[r] >= bound * (1 - 1e-9)
    assert sum(result.tx_bytes) == sum(result.rx_bytes) >= sum(totals(op, p)[0])


@settings(max_examples=60)
@given(links(), kinds, sizes)
def test_more_bytes_never_finish_earlier(spec, kind, nbytes):
    p = spec.workers
    assert seconds(operation(kind, 2 * nbytes, p), spec) >= seconds(operation(kind, nbytes, p), spec) * (
        1 - 1e-9
    )


@settings(max_examples=40)
@given(links(), st.lists(st.tuples(kinds, sizes, st.floats(0, 2)), min_size=1, max_size=6))
def test_the_memory_of_an_idle_link_equals_the_walk_and_two_clocks_agree(spec, calls):
    p = spec.workers
    used, twin = LinkClock(spec), LinkClock(spec)
    now = 0.0
    for kind, nbytes, gap in calls * 2:
        now += gap
        op = operation(kind, nbytes, p)
        fresh = LinkClock(spec, list(used.memory))
        result = used.complete(op, [now] * p)
        assert result == fresh.complete(op, [now] * p) == twin.complete(op, [now] * p)
