"""A probe says what a link delivers, which figure is off, and nothing that it did not measure."""

from __future__ import annotations

import io
import itertools
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from netsim_ddp.errors import LinkOffTarget
from netsim_ddp.link.base import Link
from netsim_ddp.link.mechanisms import HostLink
from netsim_ddp.link.probe.peer import serve
from netsim_ddp.link.probe.probe import MESSAGE_SIZES, Peers, ProbeReport, ideal_seconds, message_count, prove
from netsim_ddp.link.spec import LinkSpec, goodput
from netsim_ddp.report.terminal.probe import render_probe
from netsim_ddp.results.fields import Tool
from netsim_ddp.results.probe import Bulk, Message, Probe, RoundTrip, judge
from netsim_ddp.results.record import LinkRecord
from tests.commands import complaint, measuring

CEILING = 1e9 * 1448 / 1514


def record(**changes: Any) -> Probe:
    """A probe of a perfect 1 Gbit/s link of four ranks."""
    ideals = {size: ideal_seconds(LinkSpec(2, 10**9), (0, 1), size) for size in MESSAGE_SIZES}
    values: dict[str, Any] = {
        "tool": Tool(version="0"),
        "created_utc": "2026-01-01T00:00:00+00:00",
        "environment": {},
        "command": "netsim probe",
        "workers": 4,
        "link": LinkRecord(
            mechanism="tc",
            requested_bps=10**9,
            configured_bps=10**9,
            measured_bps=CEILING,
            ceiling_bps=CEILING,
        ),
        "alone": [Bulk(sender=0, receiver=1, ceiling_bps=CEILING, samples_bps=[CEILING])],
        "together": [
            Bulk(sender=a, receiver=b, ceiling_bps=CEILING, samples_bps=[CEILING * 0.99])
            for a, b in LinkSpec(4, 10**9).ring()
        ],
        "messages": [
            Message(sender=0, receiver=1, size_bytes=size, ideal_s=ideal, samples_s=[ideal])
            for size, ideal in ideals.items()
        ],
        "round_trip": RoundTrip(asked_s=0.0, samples_s=[1e-4]),
    }
    return Probe(**{**values, **changes})


def test_a_perfect_link_is_on_target() -> None:
    assert judge(record()) == []


@pytest.mark.parametrize("error", [-0.05, 0.05])
def test_bulk_off_by_more_than_a_percent_is_named(error: float) -> None:
    bulk = Bulk(sender=0, receiver=1, ceiling_bps=CEILING, samples_bps=[CEILING * (1 + error)] * 3)
    (clause,) = judge(record(alone=[bulk]))
    assert clause.startswith("bulk from rank 0 to 1 gets ")
    assert ("5.0% below" if error < 0 else "5.0% above") in clause


@pytest.mark.parametrize("workers", [2, 8])
@pytest.mark.parametrize(
    ("ideal_s", "off_s", "off"),
    [
        (10e-3, -0.33e-3, True),
        (10e-3, -0.27e-3, False),
        (10e-3, 0.36e-3, True),  # of which the host's own way is 0.05
        (0.8e-3, -0.25e-3, True),  # 28% early, as 100 KB were at 1 Gbit/s
        (0.8e-3, -0.09e-3, False),
        (0.17e-3, -0.13e-3, True),
    ],
)
def test_every_size_is_within_three_percent_or_a_tenth_of_a_millisecond(
    workers: int, ideal_s: float, off_s: float, off: bool
) -> None:
    message = Message(sender=0, receiver=1, size_bytes=10**6, ideal_s=ideal_s, samples_s=[ideal_s + off_s])
    assert bool(judge(record(workers=workers, messages=[message]))) == off


def test_a_message_may_be_late_by_the_hosts_own_way() -> None:
    late = Message(sender=0, receiver=1, size_bytes=100, ideal_s=1e-5, samples_s=[3.2e-4])
    asked = 20e-3
    trips = [RoundTrip(asked_s=asked, samples_s=[asked + own]) for own in (0.0, 0.25e-3, 0.5e-3)]
    found = [bool(judge(record(messages=[late], round_trip=trip))) for trip in trips]
    assert found == [True, True, False]


@pytest.mark.parametrize(
    ("mechanism", "off_s", "off"), [("tc", -1e-3, False), ("tc", 1e-3, True), ("bucket", -1e-3, True)]
)
def test_a_message_may_be_early_by_the_packet_that_a_slow_bucket_saves(
    mechanism: str, off_s: float, off: bool
) -> None:
    """At 12 Mbit/s a packet takes a millisecond."""
    rate = 12_112_000
    bulk = Bulk(sender=0, receiver=1, ceiling_bps=goodput(rate), samples_bps=[goodput(rate)])
    ideal = ideal_seconds(LinkSpec(2, rate), (0, 1), 20_000)
    message = Message(sender=0, receiver=1, size_bytes=20_000, ideal_s=ideal, samples_s=[ideal + off_s])
    link = record().link.model_copy(update={"mechanism": mechanism})
    assert bool(judge(record(alone=[bulk], messages=[message], link=link))) == off


def test_a_lossless_link_that_drops_is_off_target() -> None:
    link = record().link.model_copy(update={"drops": 3})
    assert judge(record(link=link)) == ["the link dropped 3 packets"]
    assert judge(record(link=link), lossless=False) == []


def test_an_unshaped_link_has_no_target() -> None:
    bulk = Bulk(sender=0, receiver=1, ceiling_bps=None, samples_bps=[1.0])
    message = Message(sender=0, receiver=1, size_bytes=100, ideal_s=None, samples_s=[9.0])
    trip = RoundTrip(asked_s=None, samples_s=[9.0])
    assert judge(record(alone=[bulk], together=[bulk], messages=[message], round_trip=trip)) == []


def test_ideal_time_counts_every_header_and_slow_links_send_fewer_messages() -> None:
    # 100 KB at 100 Mbit/s: 70 segments of 66 bytes of headers.
    assert ideal_seconds(LinkSpec(2, 10**8), (0, 1), 100_000) == pytest.approx((100_000 + 70 * 66) * 8 / 1e8)
    assert message_count(None) == message_count(0.01) == 20
    assert message_count(100.0) == 5


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_fits_and_says_what_the_host_carries(width: int) -> None:
    link = record().link.model_copy(update={"host_limited": True})
    out = io.StringIO()
    render_probe(record(link=link), Console(file=out, width=width))
    text = out.getvalue()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "HOST-LIMITED: this host carries" in text
    assert "…" not in text


@pytest.mark.alone
def test_peers_measure_a_loopback() -> None:
    with HostLink(LinkSpec(3, 10**9), "none") as link, Peers(link) as peers:
        rates = peers.bulk(list(link.spec.ring()), 0.2)
        times = peers.messages((2, 0), 1_000_000, 3)
        trips = peers.pings((0, 2), 5)
    assert len(rates) == 3
    assert min(rates) > 1e6
    assert len(times) == 3
    assert len(trips) == 5
    assert all(0 < seconds < 5 for seconds in times + trips)


def test_a_peer_ends_when_its_command_hangs_up() -> None:
    ours, theirs = socket.socketpair()
    serving = threading.Thread(target=serve, args=(theirs,))
    serving.start()
    ours.close()
    serving.join(5)
    assert not serving.is_alive()
    theirs.close()


def test_json_is_one_document_that_reads_back(tmp_path: Path) -> None:
    done = measuring(["probe", "--link", "none", "--workers", "2", "--json", "-"], tmp_path)
    assert done.returncode == 0, done.stderr
    probe = Probe.model_validate(json.loads(done.stdout))
    assert [(row.sender, row.receiver) for row in probe.together] == [(0, 1), (1, 0)]
    assert [message.size_bytes for message in probe.messages] == list(MESSAGE_SIZES)
    assert probe.link.ceiling_bps is None
    assert probe.off_target == []


def test_one_worker_has_nobody_to_send_to(tmp_path: Path) -> None:
    assert "two workers or more" in complaint(["probe", "--link", "none", "--workers", "1"], tmp_path)
    assert "has no unit" in complaint(["probe", "--bandwidth", "100"], tmp_path)


def iter_ticks(share: float) -> Callable[[], tuple[int, int]]:
    """A machine whose host gives ``share`` of its processors to others."""
    passed = itertools.count(0, 100)
    return lambda: ((now := next(passed)), round(now * share))


@pytest.mark.parametrize(
    ("shares", "stolen", "waited_s"),
    [
        ([1.0], 0.0, []),
        ([0.9, 0.9, 0.85, 0.99], 0.0, [0.0, 0.0, 3.0]),  # a busy stretch, which ends
        ([0.9] * 7, 0.0, None),  # one that does not
        ([0.5] * 3, 0.0, None),  # no busy stretch
        ([0.5, 0.4, 0.5, 0.99], 1.0, [0.0, 0.0, 3.0]),  # a virtual machine whose cores others have
        ([1.2] * 3, 1.0, None),
    ],
)
def test_a_link_is_tried_again_while_the_host_may_only_be_busy(
    shares: list[float], stolen: float, waited_s: list[float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, left = HostLink(LinkSpec(2, 10**9), "bucket"), list(shares)
    waits: list[float] = []

    def probe(_: Link) -> ProbeReport:
        share = left.pop(0)
        return ProbeReport(share * CEILING, share * CEILING)

    monkeypatch.setattr("netsim_ddp.link.probe.probe.probe", probe)
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr("netsim_ddp.stolen._ticks", iter_ticks(stolen))
    if waited_s is None:
        with pytest.raises(LinkOffTarget):
            prove(link, lambda _: None)
    else:
        assert prove(link, lambda _: None) is not None
        assert waits == waited_s
    assert not left
