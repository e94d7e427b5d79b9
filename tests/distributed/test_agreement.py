"""The bucket link and the tc link give the same communication times, dense and sparse."""

from __future__ import annotations

from pathlib import Path

import pytest

from netsim_ddp.results.record import Cell
from tests.distributed.test_run import forked, measured, tc_or_skip

pytestmark = pytest.mark.alone

RUN = ["--compute", "20ms", "--workers", "2", "--steps", "6", "--warmup", "2", "--repeats", "1"]
METHODS = ["--method", "dense,overlap=off", "--method", "topk,overlap=off,ratio=0.05"]
LOOKS = 5
LINK = ["--bandwidth", "400mbps:200mbps", "--slow-rank", "1=100mbps"]


def communicate_s(cell: Cell) -> float:
    """The least disturbed step, as whoever waits least for the other sees it: a busy machine only adds to it."""
    ranks = [rank for repeat in cell.repeats for rank in repeat.ranks]
    return min(
        min(steps) for steps in zip(*([s.communicate_s for s in rank.steps] for rank in ranks), strict=True)
    )


@pytest.mark.privileged
def test_both_links_take_as_long(tmp_path: Path) -> None:
    tc_or_skip()
    words = [*RUN, *METHODS, *LINK]
    bucket = measured(tmp_path, *words, "--link", "bucket", start=forked).cells
    for _ in range(LOOKS):  # a host whose processors others have for a while carries less
        tc = measured(tmp_path, *words, "--link", "tc", start=forked).cells
        assert [cell.link.shape for cell in tc] == [cell.link.shape for cell in bucket]
        took = [
            (communicate_s(real), communicate_s(charged)) for real, charged in zip(tc, bucket, strict=True)
        ]
        # The kernel's TCP is never faster than its own bytes at the rate; acknowledgements and a busy machine add.
        assert all(real > 0.95 * charged - 2e-3 for real, charged in took), took
        if all(real < 1.3 * charged + 2e-3 for real, charged in took):
            return
    pytest.fail(f"tc and bucket, dense and topk, seconds: {took}")


def test_delay_costs_every_round_a_way(tmp_path: Path) -> None:
    words = [*RUN, "--method", "dense,overlap=off", "--bandwidth", "100mbps", "--link", "bucket"]
    near = communicate_s(measured(tmp_path, *words, start=forked).cells[0])
    far = communicate_s(measured(tmp_path, *words, "--delay", "20ms", start=forked).cells[0])
    # Two phases, each with a hop for the receiver's readiness and one for its last segment, at least.
    assert 4 * 0.018 < far - near < 0.5
