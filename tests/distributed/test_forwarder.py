"""Real packets that netsim's own forwarder delays, jitters and loses, where the kernel has no netem."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from netsim_ddp.errors import LinkLost, LinkUnavailable
from netsim_ddp.link.mechanisms import choose
from netsim_ddp.link.probe.probe import Peers
from netsim_ddp.link.spec import SEGMENT_WIRE, Change, LinkSpec, RankRate
from netsim_ddp.link.tc import tun
from netsim_ddp.link.tc.forwarder import Forwarder
from netsim_ddp.link.tc.link import TcLink
from tests.distributed.streams import round_trip_s, stream
from tests.distributed.test_cleanup import MARK, Running, marked

MBIT = 10**6
ROOT = Path(__file__).parents[2]


@pytest.fixture
def tap() -> None:
    try:
        with TcLink(LinkSpec(1, 10**9, delay_by="tun")):
            return
    except LinkUnavailable as error:
        pytest.skip(f"packets cannot be delayed by TUN here: {error.message}")


def link(**values: object) -> TcLink:
    return TcLink(LinkSpec(**{"workers": 2, "rate_bps": 100 * MBIT, "delay_by": "tun", **values}))  # type: ignore[arg-type]


# --- what the forwarder does to frames, without devices -------------------------------------------------------------


def frames(**values: object) -> list[tuple[float, int]]:
    """When each of 2000 frames from rank 0 to rank 1 leaves, in that order, and its number."""
    order = {"delay_s": 0.01, "jitter_s": 0.0, "loss": 0.0, "reorder": False, "seed": 0, **values}
    made = Forwarder(**order, taps=[0, 0])  # type: ignore[arg-type]
    for number in range(2000):
        made.send(number.to_bytes(4, "big"), 0, 1)
    return [(due, int.from_bytes(frame, "big")) for due, _, _, frame in sorted(made.pending)]


def test_jitter_keeps_order_unless_asked() -> None:
    kept = [number for _, number in frames(jitter_s=0.005)]
    assert kept == sorted(kept)
    assert [number for _, number in frames(jitter_s=0.005, reorder=True)] != kept


def test_loss_is_the_share_that_was_asked_for_and_follows_the_seed() -> None:
    first, again, other = ([number for _, number in frames(loss=0.1, seed=seed)] for seed in (1, 1, 2))
    assert first == again != other
    assert 0.07 < 1 - len(first) / 2000 < 0.13


# --- real packets ----------------------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.privileged
@pytest.mark.usefixtures("tap")
class TestPackets:
    """On devices."""

    def test_a_round_trip_is_two_delays(self) -> None:
        with link(delay_s=0.02, workers=3, slow_ranks=(RankRate(2, 5 * MBIT, 10 * MBIT),)) as made:
            assert made.description == "tc/tbf+tun"
            assert round_trip_s(made) == pytest.approx(0.04, rel=0.1)

    def test_netem_comes_first_and_the_forwarder_where_there_is_none(self) -> None:
        with choose(LinkSpec(2, 100 * MBIT, delay_s=0.005), "auto", lambda _: None) as made:
            assert made.description in ("tc/tbf+netem", "tc/tbf+tun")
            assert round_trip_s(made) > 0.0099

    def test_bytes_are_counted_where_they_are_without_a_forwarder(self) -> None:
        size, count = 100_000, 5
        sent = []
        for values in ({}, {"delay_by": "auto"}):  # with and without
            with link(**values) as made, Peers(made) as peers:
                before = made.counters()
                peers.messages((0, 1), size, count)
                after = made.counters()
            sent.append(after[0].tx_bytes - before[0].tx_bytes)
            assert after[1].rx_bytes - before[1].rx_bytes == pytest.approx(sent[-1], rel=0.01)
        assert sent[0] == pytest.approx(sent[1], rel=0.01)
        assert sent[0] > 8 * size  # three to warm up

    def test_a_lost_packet_is_one_segment_and_comes_again(self) -> None:
        with link(loss=0.02, rate_bps=1000 * MBIT) as made:
            stream(made, 0.5)
            counted = made.counters()
            carried = made._forwarder.counted()
        assert carried.largest <= SEGMENT_WIRE == 1500 + 14
        assert counted[0].drops == carried.lost[0] > 0
        assert counted[0].retransmits > 0
        assert carried.lost[0] / carried.taken[0] == pytest.approx(0.02, rel=0.5)

    def test_a_proof_of_the_rate_loses_nothing(self) -> None:
        with link(loss=0.5, delay_s=0.1) as made, made.bare(), Peers(made) as peers:
            before = made.counters()[0]
            peers.messages((0, 1), 100_000, 5)
            assert made.counters()[0].drops == before.drops
            assert round_trip_s(made) < 0.1

    def test_a_timeline_and_directions_hold_behind_a_delay(self) -> None:
        changes = (Change(0.7, 10 * MBIT, 10 * MBIT),)
        with link(rate_bps=100 * MBIT, down_bps=50 * MBIT, delay_s=0.005, timeline=changes) as made:
            made.begin()
            found = stream(made, 1.4)
        assert 12 * MBIT < found.goodput_bps(0.3, 0.6) < 52 * MBIT
        assert found.goodput_bps(1.1, 1.35) < 12 * MBIT

    def test_a_forwarder_that_dies_ends_the_link_and_is_named(self) -> None:
        os.environ[MARK] = mark = f"forwarder {os.getpid()}"
        try:
            with link() as made:
                (victim,) = (pid for pid, line in marked(mark).items() if "link.tc.forwarder" in line)
                os.kill(victim, signal.SIGKILL)
                deadline = time.monotonic() + 20
                while made.lost() is None and time.monotonic() < deadline:
                    time.sleep(0.01)
                with pytest.raises(LinkLost, match=r"link\.tc\.forwarder\), died: killed by SIGKILL"):
                    made.counters()
        finally:
            del os.environ[MARK]

    @pytest.mark.parametrize("victim", ["command", "link.tc.forwarder"])
    def test_whoever_is_killed_leaves_nothing(self, tmp_path: Path, victim: str) -> None:
        words = ("--delay", "2ms", "--delay-by", "tun")
        running = Running(tmp_path, "tc", *words, bandwidth="100mbps")
        try:
            if victim == "command":
                running.process.kill()
            else:
                pid = max(pid for pid, line in marked(running.mark).items() if victim in line)
                os.kill(pid, signal.SIGKILL)
            _, errors = running.process.communicate(timeout=60)
            assert "Traceback" not in errors
            if victim == "link.tc.forwarder":
                assert running.process.returncode == 4
                assert "the forwarder, which carries the link's packets" in errors
            running.nothing_is_left()
        finally:
            for pid in marked(running.mark):
                os.kill(pid, signal.SIGKILL)
            running.process.wait(timeout=10)
            assert running.process.stderr is not None
            running.process.stderr.close()


_ORDINARY = """
import os, sys
os.setgid(65534); os.setuid(65534)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""
_DELAYED = """
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.link.tc.link import TcLink
from tests.distributed.streams import round_trip_s
with TcLink(LinkSpec(2, 10**8, delay_s=0.01, delay_by="tun")) as link:
    print(round_trip_s(link))
"""
_OPEN_TO_ALL = "mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200"


@pytest.mark.privileged
@pytest.mark.usefixtures("tap")
@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
def test_an_ordinary_user_may_delay_packets_where_user_namespaces_are_allowed() -> None:
    script = f'{_OPEN_TO_ALL} && exec "$0" -c "$1" "$2"'
    words = ["unshare", "--mount", "sh", "-c", script, sys.executable, _ORDINARY, _DELAYED]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if "namespaces are not allowed here" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip(f"an ordinary user has no namespaces here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(0.02, rel=0.2)


# --- where there is no /dev/net/tun ----------------------------------------------------------------------------------


@pytest.mark.privileged
@pytest.mark.usefixtures("tap")
@pytest.mark.parametrize(
    ("values", "hint"),
    [
        (
            {"delay_s": 0.01},
            "use --link bucket, which has delay and jitter; or docker run --device /dev/net/tun",
        ),
        ({"loss": 0.01}, "docker run --device /dev/net/tun"),
    ],
)
def test_without_the_device_the_refusal_says_how_to_have_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, values: dict[str, float], hint: str
) -> None:
    monkeypatch.setattr(tun, "DEVICE", str(tmp_path / "tun"))
    with pytest.raises(LinkUnavailable, match="cannot be opened: No such file") as caught, link(**values):
        pass
    assert str(caught.value.hint).startswith(hint)
