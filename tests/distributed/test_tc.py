"""Real interfaces: what was asked for is there, changes while it runs, or is refused."""

from __future__ import annotations

import select

import pytest

from netsim_ddp.errors import LinkUnavailable
from netsim_ddp.link.messages import send
from netsim_ddp.link.probe.probe import prove
from netsim_ddp.link.spec import Change, LinkSpec, RankRate, goodput
from netsim_ddp.link.tc.channel import open_channel
from netsim_ddp.link.tc.link import TcLink, find_tool
from netsim_ddp.link.tc.plan import ROOMS, WAKE_UP_S, Shapes
from tests.distributed.streams import stream
from tests.links import usable

pytestmark = [pytest.mark.alone, pytest.mark.privileged]
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
        prove(link, lambda _: None)  # as before every run: a host that wakes up late has its buckets widened
        for _ in range(5):  # a host that is busy for a moment carries less, or is late to see what has come
            link.begin()
            first = stream(link, 0.3)
            link.begin()  # the next repeat sees the same
            again = stream(link, 2.0)
            shares = {
                (begin, rate): found.goodput_bps(begin, begin + 0.2) / goodput(rate * MBIT)
                for found, begin, rate in (
                    (first, 0.05, 100),
                    (again, 0.1, 100),
                    (again, 0.6, 20),
                    (again, 1.1, 50),
                    (again, 1.6, 100),
                )
            }
            if 0.6 < min(shares.values()) < max(shares.values()) < 1.1:
                break
    assert 0.6 < min(shares.values()) < max(shares.values()) < 1.1, shares


@pytest.mark.parametrize("wider", [0, 1])
def test_a_link_that_becomes_slow_carries_what_stood_in_its_queue(wider: int) -> None:
    """Packets of the fast stretch, which the slow stretch's bucket has to hold."""
    changes = (Change(0.4, 20 * MBIT, 20 * MBIT),)
    with TcLink(LinkSpec(2, 1000 * MBIT, timeline=changes)) as link:
        for _ in range(wider):
            link.give_room()
        for _ in range(5):
            link.begin()
            share = stream(link, 1.5).goodput_bps(0.9, 1.4) / goodput(20 * MBIT)
            if 0.6 < share < 1.3:
                break
    assert 0.6 < share < 1.3


@pytest.mark.parametrize("begins", [5 * MBIT, 50 * MBIT])
def test_a_link_whose_timeline_starts_at_once_starts_with_its_first_rate(begins: int) -> None:
    changes = (Change(0.0, begins, begins), Change(3.0, 20 * MBIT, 20 * MBIT))
    with TcLink(LinkSpec(2, 1000 * MBIT, timeline=changes)) as link:
        measured = prove(link, lambda _: None)
    assert measured is not None
    assert measured.alone_bps == pytest.approx(goodput(begins), rel=0.05)


def test_a_host_that_wakes_up_late_gets_wider_buckets_before_a_link_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("netsim_ddp.link.tc.plan.WAKE_UP_S", 12e-6)  # every host is late for that
    # The last one is as wide as any link's, so that this host may be as late as any.
    monkeypatch.setattr("netsim_ddp.link.tc.link.ROOMS", (1, 2, ROOMS[-1] * round(WAKE_UP_S / 12e-6)))
    warnings: list[str] = []
    with TcLink(LinkSpec(2, 50 * MBIT)) as link:
        narrow = link.credit_bytes
        measured = prove(link, warnings.append)
        assert link.room > 1
        assert link.credit_bytes > narrow
    assert measured is not None
    assert measured.alone_bps == pytest.approx(goodput(50 * MBIT), rel=0.05)
    assert "wakes up late" in warnings[0]


def test_a_message_that_no_buffer_holds_reaches_the_helper_and_comes_back() -> None:
    words = ["sh", "-c", 'wc -c; head -c 3000000 /dev/zero | tr "\\0" x']
    with TcLink(LinkSpec(2, 100 * MBIT)) as link:
        done = link._ask("run", argv=words, rank=1, text="y" * 3_000_000)
    assert done["code"] == 0
    assert done["out"] == "3000000\n" + "x" * 3_000_000


def test_a_peak_lasts_as_long_as_its_credit_and_comes_back() -> None:
    spec = LinkSpec(2, 20 * MBIT, peak_bps=200 * MBIT, credit_bytes=5_000_000)
    with TcLink(spec) as link:
        assert link.credit_bytes == pytest.approx(5_000_000, rel=0.01)
        prove(link, lambda _: None)
        law = 5_000_000 * 8 + 20 * MBIT  # bits in the first second: the credit and the base rate
        spent = []
        while len(spent) < 5 and sum(share > 0.8 for share in spent) < 2:
            link.begin()
            found = stream(link, 1.2)
            spent.append(found.goodput_bps(0.0, 1.0) / goodput(law))
            # A busy host spends the credit later, but never more of it.
            assert spent[-1] < 1.02
            if spent[-1] > 0.8:
                assert found.goodput_bps(0.9, 1.15) < 1.5 * goodput(20 * MBIT)  # its reader may be late
    assert sum(share > 0.8 for share in spent) == 2, spent


def test_the_congestion_control_that_was_asked_for_is_the_one_in_use() -> None:
    with TcLink(LinkSpec(2, 100 * MBIT, congestion="reno")) as link:
        routes = link._ask("run", argv=[find_tool("ip"), "route", "show"], rank=0)["out"]
    assert "congctl reno" in routes


def test_the_configuration_is_read_back() -> None:
    spec = LinkSpec(2, 100 * MBIT, slow_ranks=(RankRate(1, 5 * MBIT, 10 * MBIT),), queue_s=0.05)
    with TcLink(spec) as link:
        assert 0 < link.credit_bytes <= max(shape.burst for shape in (*link.shapes.up, *link.shapes.down))
        link.shapes = Shapes.of(LinkSpec(2, 90 * MBIT))
        with pytest.raises(
            LinkUnavailable, match=r"tc on eth0 was told 90000000 bit/s, .* made it 100000000 bit/s"
        ):
            link._check_configuration()


def test_a_command_that_vanishes_with_an_answer_unread_is_hanging_up(
    capfd: pytest.CaptureFixture[str],
) -> None:
    channel = open_channel()
    send(channel.control, {"request": "run", "argv": ["true"], "rank": None})
    assert select.select([channel.control], [], [], 20)[0]
    channel.control.close()  # what is unread makes the kernel reset the connection
    assert channel.process.wait(20) == 0
    assert capfd.readouterr().err == ""


def test_more_credit_than_tc_can_hold_is_refused_with_what_can() -> None:
    with (
        pytest.raises(LinkUnavailable, match=r"credit of 4.295 GB at most, not 5 GB") as caught,
        TcLink(LinkSpec(2, 10**9, peak_bps=10**10, credit_bytes=5 * 10**9)),
    ):
        pass
    assert "--link bucket" in str(caught.value.hint)
