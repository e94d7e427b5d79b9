"""One rank that stands for all has the times of a clock of all ranks."""

from __future__ import annotations

import pytest

from netsim_ddp.link.bucket.clock import LinkClock
from netsim_ddp.link.bucket.folded import FoldedClock
from netsim_ddp.link.bucket.schedule import Operation
from netsim_ddp.link.bucket.tcp import TcpSettings
from netsim_ddp.link.spec import LinkSpec

TCP = TcpSettings("Linux")


def _alltoall(ranks: int, size: int) -> tuple[Operation, Operation]:
    rows = tuple(tuple(0 if a == b else size for b in range(ranks)) for a in range(ranks))
    return Operation("alltoall", splits=rows), Operation("alltoall", splits=rows[:1])


@pytest.mark.parametrize("delay_s", [0.0, 0.02])
@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_one_rank_for_all_is_the_clock_of_all(ranks: int, delay_s: float) -> None:
    spec = LinkSpec(workers=ranks, rate_bps=10**9, delay_s=delay_s)
    whole, one = LinkClock(spec, tcp=TCP), FoldedClock(spec, tcp=TCP)
    operations = [
        (Operation("allreduce", 8 << 20, itemsize=4),) * 2,
        _alltoall(ranks, 30_000),
        (Operation("allgather", 100_000),) * 2,
        (Operation("allreduce", 2 * ranks * 4096, itemsize=4),) * 2,
        _alltoall(ranks, 500),
    ]
    now = 10.0
    for of_all, of_one in operations:
        expected = whole.complete(of_all, [now] * ranks).deadline
        assert one.complete(of_one, now) == pytest.approx(expected, rel=0.01, abs=1e-6)
        now = expected + 0.1


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.1])
def test_exchanges_that_overlap_share_the_line(delay_s: float) -> None:
    spec = LinkSpec(workers=4, rate_bps=10**8, delay_s=delay_s)
    whole, one = LinkClock(spec, tcp=TCP), FoldedClock(spec, tcp=TCP)
    operation = Operation("allreduce", 4 << 20, itemsize=4)
    for start in (1.0, 1.05, 1.06, 9.0, 9.01):
        expected = whole.complete(operation, [start] * 4).deadline
        assert one.complete(operation, start) == pytest.approx(expected, rel=0.01)


def test_a_thousand_ranks_take_the_time_that_their_bytes_take() -> None:
    clock = FoldedClock(LinkSpec(workers=1024, rate_bps=10**9))
    size = 100 << 20
    done = clock.complete(Operation("allreduce", size, itemsize=4), 0.0)
    assert done == pytest.approx(2 * 1023 / 1024 * size * 8 * 1.05 / 10**9, rel=0.02)


def test_the_slowest_rank_stands_for_all() -> None:
    from netsim_ddp.link.spec import RankRate

    spec = LinkSpec(workers=4, rate_bps=10**9, slow_ranks=(RankRate(2, 10**8, 10**8),))
    operation = Operation("allreduce", 4 << 20, itemsize=4)
    expected = LinkClock(spec).complete(operation, [0.0] * 4).deadline
    assert FoldedClock(spec).complete(operation, 0.0) == pytest.approx(expected, rel=0.03)
