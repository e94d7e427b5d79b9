"""Links that change while they run, on real interfaces."""

from __future__ import annotations

import pytest

from netsim_ddp.errors import LinkUnavailable
from netsim_ddp.link.spec import Change, LinkSpec, goodput
from netsim_ddp.link.tc import TcLink, usable
from tests.distributed.streams import stream

pytestmark = pytest.mark.privileged
MBIT = 10**6


@pytest.fixture(autouse=True)
def _tc_works() -> None:
    try:
        with usable():
            return
    except LinkUnavailable as error:
        pytest.skip(f"tc links cannot be made here: {error.message}")


def test_a_timeline_is_played_and_played_again() -> None:
    changes = (Change(0.5, 20 * MBIT, 20 * MBIT), Change(1.0, 50 * MBIT, 50 * MBIT))
    with TcLink(LinkSpec(2, 100 * MBIT, timeline=changes, period_s=1.5)) as link:
        link.begin()
        first = stream(link, 0.2)
        link.begin()  # the next repeat sees the same
        again = stream(link, 2.0)
    assert first.goodput_bps(0.05, 0.15) == pytest.approx(goodput(100 * MBIT), rel=0.1)
    for begin, rate in ((0.1, 100), (0.6, 20), (1.1, 50), (1.6, 100)):
        assert again.goodput_bps(begin, begin + 0.2) == pytest.approx(goodput(rate * MBIT), rel=0.1), begin


def test_a_peak_lasts_as_long_as_its_credit_and_comes_back() -> None:
    spec = LinkSpec(2, 20 * MBIT, peak_bps=200 * MBIT, credit_bytes=5_000_000)
    with TcLink(spec) as link:
        assert link.credit_bytes == pytest.approx(5_000_000, rel=0.01)
        for _ in range(2):
            link.begin()
            found = stream(link, 0.6)
            law = 5_000_000 * 8 / 0.5 + 20 * MBIT  # credit and base rate, over half a second
            assert found.goodput_bps(0.0, 0.5) == pytest.approx(goodput(law), rel=0.1)
            assert found.goodput_bps(0.35, 0.55) == pytest.approx(goodput(20 * MBIT), rel=0.1)


def test_more_credit_than_tc_can_hold_is_refused_with_what_can() -> None:
    with (
        pytest.raises(LinkUnavailable, match=r"credit of 4.295 GB at most, not 5 GB") as caught,
        TcLink(LinkSpec(2, 10**9, peak_bps=10**10, credit_bytes=5 * 10**9)),
    ):
        pass
    assert "--link bucket" in str(caught.value.hint)
