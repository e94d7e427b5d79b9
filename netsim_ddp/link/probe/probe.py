"""What the link really delivers, measured with plain TCP sockets before anything rests on it.

One small process per rank inside the link (:mod:`netsim_ddp.link.probe.peer`) sends and receives as it is told. One
pair alone says whether the link is what was asked for; every rank to its successor at once, whether this host can carry
all of its ranks' links at the same time; messages after idle, how much of them an idle link's saved credit carries.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from netsim_ddp.errors import EnvironmentFault, LinkOffTarget, NetsimError
from netsim_ddp.link.base import Link, module_command
from netsim_ddp.link.bucket.schedule import wire_bytes
from netsim_ddp.link.probe.peer import DEADLINE_S
from netsim_ddp.link.spec import LinkSpec, goodput
from netsim_ddp.results.probe import HOST_TOLERANCE, Bulk, Message, RoundTrip
from netsim_ddp.stolen import NOTICEABLE, StolenTime
from netsim_ddp.units import format_bytes, format_rate

_log = logging.getLogger(__name__)
SHORT_TOLERANCE = 0.05
BELOW = 0.02  # of its rate a link may lose before it is given room
PAUSES_S = (0.0, 0.0, 3.0, 6.0, 12.0, 20.0)
"""Before each try after the first: a host that is busy for a moment is not the link."""
TRIES_FAR_OFF, FAR_OFF = 3, 0.3
"""So many for a link that falls short by more than ``FAR_OFF``, or exceeds its rate: no moment explains that, but where
others had this machine's processors meanwhile."""
LOOKS, AGAIN = 5, 2  # and so many times as long are those after the first
BULK_RUNS, BULK_S = 3, 2.0
MESSAGE_SIZES = (2_000, 20_000, 100_000, 400_000)
MESSAGES, FEWEST_MESSAGES = 20, 5
MESSAGE_BUDGET_S = 8.0  # per size: a slow link sends fewer of the large ones
IDLE_S = 0.05  # every bucket that carries TCP at its rate is full again long before
IDLE_DELAYS = 3  # but what the link still holds must have arrived
WARM_UP = 3  # messages until TCP's window and buffers have grown to their size
PINGS = 200


@dataclass(frozen=True)
class ProbeReport:
    """Goodput in bit/s: of the slowest pair alone, and of the one that is held up most when all ranks send at
    once, scaled to the slowest pair's rate."""

    alone_bps: float
    together_bps: float

    def host_limited(self, ceiling_bps: float) -> bool:
        """Whether this host cannot carry all ranks' links at their full rate at once."""
        return self.together_bps < (1 - HOST_TOLERANCE) * ceiling_bps


@dataclass(frozen=True)
class Measured:
    """Everything that a thorough probe measures, as the record keeps it."""

    alone: list[Bulk]
    together: list[Bulk]
    messages: list[Message]
    round_trip: RoundTrip


def probe(link: Link) -> ProbeReport | None:
    """Measure ``link`` shortly; None with one rank, which has nobody to send to. Takes one to three seconds.

    Its rate is measured without its delay, jitter and loss: with them one TCP connection may need minutes to fill the
    line, or never fill it. The packets, and who carries them, are the same.
    """
    if link.spec.workers < 2:
        return None
    spec = link.spec.at_start
    seconds = min(1.0, max(0.4, 2_000_000 * 8 / spec.slowest_bps))
    pairs = list(spec.ring())
    if link.spec.credit_bytes is not None:  # what is left when half of it is spent is still all peak
        seconds = min(seconds, link.spec.credit_bytes * 8 / spec.fastest_bps / 2)
    with Peers(link) as peers, link.bare():
        _refill(link)
        alone = peers.bulk([spec.slowest_pair], seconds)
        _refill(link)
        tries = [_shares(peers.bulk(pairs, seconds), pairs, spec)]
        while min(tries[0]) < 1 - HOST_TOLERANCE and len(tries) < LOOKS:
            # One short look shows a moment of the host's; the median of several, what it carries.
            _refill(link)
            tries.append(
                _shares(
                    peers.bulk(pairs, seconds if link.spec.credit_bytes else AGAIN * seconds), pairs, spec
                )
            )
    return ProbeReport(alone[0], min(map(median, zip(*tries, strict=True))) * spec.ceiling_bps)


def _shares(got_bps: Sequence[float], pairs: Sequence[tuple[int, int]], spec: LinkSpec) -> list[float]:
    """Each against what its own two sides allow: the host's limit shows first where the link is fastest."""
    return [got / goodput(spec.pair_bps(*pair)) for got, pair in zip(got_bps, pairs, strict=True)]


def _refill(link: Link) -> None:
    """Give a link with credit all of it back; one that changes in time stays at its first rates."""
    if link.spec.credit_bytes is not None:
        link.begin()


def check(link: Link, report: ProbeReport) -> None:
    """Refuse a link that is not what was asked for.

    Raises:
        LinkOffTarget: the pair alone got less or more than the ceiling, by over 5%.
    """
    spec = link.spec.at_start
    error = report.alone_bps / spec.ceiling_bps - 1
    if abs(error) <= SHORT_TOLERANCE:
        return
    low = error < 0
    raise LinkOffTarget(
        f"the {link.description} link delivers {format_rate(report.alone_bps)}, {abs(error):.0%} "
        f"{'below' if low else 'above'} the {format_rate(spec.ceiling_bps)} that {format_rate(spec.slowest_bps)}"
        " leaves after headers",
        hint="ask for a lower --bandwidth, or free this machine's cores" if low else "use --link bucket",
    )


def prove(link: Link, warn: Callable[[str], None]) -> ProbeReport | None:
    """The short probe that stands before every run; ``warn`` hears of a host that cannot carry all ranks at once.

    Raises:
        LinkOffTarget: the link is not what was asked for, however often it is tried.
    """
    tries, stolen = 0, StolenTime()
    while (measured := make_room(link, warn)) is not None:
        try:
            check(link, measured)
        except LinkOffTarget:
            tries += 1
            share = measured.alone_bps / link.spec.at_start.ceiling_bps
            busy = share < 1 and (share > 1 - FAR_OFF or (stolen.share or 0.0) > NOTICEABLE)
            if tries > len(PAUSES_S) or (tries >= TRIES_FAR_OFF and not busy):
                raise
            _log.info("the link is off target; trying again in %.0f s", PAUSES_S[tries - 1])
            time.sleep(PAUSES_S[tries - 1])
        else:
            warn_of_host(link, measured, warn)
            break
    return measured


def make_room(link: Link, warn: Callable[[str], None]) -> ProbeReport | None:
    """Probe ``link`` shortly, and give it room for a host that wakes up late while it stays below its rate by over 2%.

    Returns the last probe's report, None with one rank.
    """
    widened = 0
    while (measured := probe(link)) is not None:
        _log.info(
            "the probe found %s for one pair alone, %s for the slowest of all at once",
            format_rate(measured.alone_bps),
            format_rate(measured.together_bps),
        )
        if measured.alone_bps >= (1 - BELOW) * link.spec.at_start.ceiling_bps or not link.give_room():
            break
        widened += 1
        _log.info("this host wakes up late: the link's buckets get more room")
    if widened > 1:  # once is less than what a message's time is known to
        warn(
            "this host wakes up late, and the link's buckets were widened so that it keeps its rate: a message after "
            "idle may come early by as much as they hold"
        )
    return measured


def warn_of_host(link: Link, measured: ProbeReport, warn: Callable[[str], None]) -> None:
    """Say that this host cannot carry all ranks at once, where that is so."""
    ceiling = link.spec.at_start.ceiling_bps
    if measured.host_limited(ceiling):
        warn(
            f"all ranks sending at once get {format_rate(measured.together_bps)} of "
            f"{format_rate(ceiling)}: this host may be the limit, not the link"
        )


def measure(link: Link, tell: Callable[[str], None], sizes: Sequence[int] = MESSAGE_SIZES) -> Measured:
    """Measure ``link``, of two ranks or more, thoroughly: half a minute, longer on a slow link.

    Args:
        tell: hears what is being measured.
        sizes: of the messages, bytes.
    """
    spec, aim = link.spec.at_start, targets(link.spec, link.mechanism)
    first = spec.slowest_pair
    idle_s = max(IDLE_S, IDLE_DELAYS * spec.delay_s)
    with Peers(link) as peers:
        with link.bare():
            tell("bulk, one pair alone")
            alone = _bulk(peers, [first], aim)
            tell("bulk, all ranks at once")
            together = _bulk(peers, list(spec.ring()), aim)
        messages = []
        for size in sizes:
            tell(f"messages of {format_bytes(size)} after idle")
            ideal = ideal_seconds(aim, first, size) if aim else None
            messages.append(
                Message(
                    sender=first[0],
                    receiver=first[1],
                    size_bytes=size,
                    ideal_s=ideal,
                    samples_s=peers.messages(first, size, message_count(ideal), idle_s),
                )
            )
        tell("round trip")
        trip = RoundTrip(asked_s=2 * aim.delay_s if aim else None, samples_s=peers.pings(first, PINGS))
    return Measured(alone, together, messages, trip)


def _bulk(peers: Peers, pairs: Sequence[tuple[int, int]], spec: LinkSpec | None) -> list[Bulk]:
    runs = [peers.bulk(pairs, BULK_S) for _ in range(BULK_RUNS)]
    return [
        Bulk(
            sender=sender,
            receiver=receiver,
            ceiling_bps=goodput(spec.pair_bps(sender, receiver)) if spec else None,
            samples_bps=[run[number] for run in runs],
        )
        for number, (sender, receiver) in enumerate(pairs)
    ]


def targets(spec: LinkSpec, mechanism: str) -> LinkSpec | None:
    """The link to hold figures against; None where there is none: on an unshaped network, and on a link that changes
    while it is measured."""
    return spec.first if mechanism in ("tc", "bucket") and not spec.varies else None


def ideal_seconds(spec: LinkSpec, pair: tuple[int, int], size: int) -> float:
    """From the first byte's leaving to the last one's arrival: the line's rate with every header counted, and its
    delay."""
    return wire_bytes(size) * 8 / spec.pair_bps(*pair) + spec.delay_s


def message_count(ideal_s: float | None) -> int:
    """How many messages that take ``ideal_s`` each are sent."""
    return MESSAGES if not ideal_s else max(FEWEST_MESSAGES, min(MESSAGES, int(MESSAGE_BUDGET_S / ideal_s)))


class Peers:
    """One probe process per rank and the sockets that steer them."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._controls: list[socket.socket] = []

    def __enter__(self) -> Peers:
        for endpoint in self._link.endpoints:
            ours, theirs = socket.socketpair()
            with theirs:
                self._link.spawn(
                    module_command("netsim_ddp.link.probe.peer", "3"),
                    rank=endpoint.rank,
                    fds=[theirs.fileno()],
                )
            ours.settimeout(DEADLINE_S)
            self._controls.append(ours)
        return self

    def __exit__(self, *_: object) -> None:
        for control in self._controls:
            control.close()  # its process reads the end of file and exits

    def bulk(self, pairs: Sequence[tuple[int, int]], seconds: float, streams: int = 1) -> list[float]:
        """Returns the goodput of each ``(sender, receiver)``, all at once, in bit/s as the receivers saw it, by as many
        connections each as there are ``streams``."""
        self._start(list(pairs) * streams, transfer="bulk", seconds=seconds)
        found = [self._hear(receiver)["bps"] for _, receiver in list(pairs) * streams]
        return [sum(found[number :: len(pairs)]) for number in range(len(pairs))]

    def messages(self, pair: tuple[int, int], size: int, count: int, idle_s: float = IDLE_S) -> list[float]:
        """Seconds that each of ``count`` messages of ``size`` bytes took, each after an idle pause."""
        self._start([pair], transfer="messages", size=size, count=count, warmup=WARM_UP, idle_s=idle_s)
        return list(self._hear(pair[0])["seconds"])

    def pings(self, pair: tuple[int, int], count: int) -> list[float]:
        """Seconds that one byte took there and back, ``count`` times."""
        self._start([pair], transfer="pings", count=count)
        return list(self._hear(pair[0])["seconds"])

    def _start(self, pairs: Sequence[tuple[int, int]], **order: Any) -> None:
        ports = []
        for _, receiver in pairs:
            self._tell(receiver, listen=self._link.endpoints[receiver].address, **order)
            ports.append(self._hear(receiver)["port"])
        for (sender, receiver), port in zip(pairs, ports, strict=True):
            self._tell(sender, connect=[self._link.endpoints[receiver].address, port], **order)

    def _ended(self, rank: int) -> NetsimError:
        return self._link.lost() or EnvironmentFault(f"the probe of rank {rank} ended early")

    def _tell(self, rank: int, **message: Any) -> None:
        try:
            self._controls[rank].sendall(json.dumps(message).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            raise self._ended(rank) from None

    def _hear(self, rank: int) -> dict[str, Any]:
        line = b""
        try:
            while not line.endswith(b"\n"):
                byte = self._controls[rank].recv(1)
                if not byte:
                    raise ConnectionResetError
                line += byte
        except ConnectionResetError:
            raise self._ended(rank) from None
        except TimeoutError:
            raise EnvironmentFault(f"the probe of rank {rank} is silent for {DEADLINE_S:g} s") from None
        return dict(json.loads(line))
