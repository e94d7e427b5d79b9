"""Which ``ip`` and ``tc`` commands make a link, and with which numbers; as a script, too. Nothing is run here."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from netsim_ddp.link.spec import FASTEST_BPS, SEGMENT_WIRE, LinkSpec

SUBNET = "10.77"
BRIDGE = "netsim"
TAP_QUEUE = 20_000  # packets that wait for a forwarder which the host lets wait
WAKE_UP_S, BUSY_WAKE_UP_S = 65e-6, 75e-6
CREDIT_S, BUSY_PACKET_S = 0.16e-3, 0.25e-3
LONGEST_PAIR_S = 0.2e-3  # a pair of segments that lasts longer is cut
HOST_BPS, PACKETS_PER_S = 4 * 10**9, 42_000  # of all ranks' links, on two cores
ROOMS = (1, 2, 4, 16)
"""Times the wake-ups above: of a quiet host, then of hosts that others keep from waking up."""
LARGEST_PACKET = 65536  # bytes; TCP makes none that is larger
LONGEST_QUEUE = 2**32 - 1  # bytes; tc takes no more
ROUNDING = 28  # bytes: a burst must stay below two segments after tc has rounded it


@dataclass(frozen=True)
class Shape:
    """The numbers of one token bucket filter. Bytes; the rate in bit/s counts Ethernet headers."""

    rate_bps: int
    burst: int
    limit: int
    gso: int
    peak: Shape | None = None
    """Of a bucket with credit, which ``burst`` then is: the rate and the burst while there is some."""


def shape_for(rate_bps: int, workers: int, room: int = 1) -> Shape:
    """Burst, segment size and queue of one of ``workers`` links, chosen together. The reasons, each measured:

    - Tokens that a bucket saves while the link is idle carry the beginning of the next message for free, so a
      message is early by burst / rate, less what its way through the host takes. :data:`CREDIT_S` keeps messages of
      any size within max(3%, 0.1 ms) of the line. The kernel lets no packet wait for itself, so that one packet, and
      from 120 Mbit/s on two segments, is the least: 1.2 ms at 10 Mbit/s.
    - The kernel refills late when it wakes up late. A bucket that is full by then has lost what would have come
      in, so it must hold a packet *and* the tokens of :data:`WAKE_UP_S`, or bulk falls short by up to 10%.
    - ``room``, one of :data:`ROOMS`, is for a host that wakes up later than that: it multiplies the tokens for waking
      up, and changes no packet. A message is earlier by them, less what such a host makes it late.
    - A packet is what TCP hands down, up to ``gso_max_size`` and two segments at least. Above the burst the
      bucket cuts it into segments itself; just below it there is no room for the refill. So slow links stay below
      two segments and cut, which faster ones cannot afford: four at 200 Mbit/s then carry 80%.
    - A host forwards so many packets and no more: links that need more than :data:`PACKETS_PER_S` together have
      larger ones. Beyond :data:`HOST_BPS` together packets last :data:`BUSY_PACKET_S`: eight ranks at 1 Gbit/s then
      carry 99% of the line at once, with packets of 12 KB 40%. Their messages are a quarter of a millisecond early,
      which the probe tells.
    - The queue holds 200 ms so that no sender on a lossless link is dropped.
    """
    bytes_per_second = rate_bps / 8
    limit = min(max(2_000_000, round(bytes_per_second * 0.2)), LONGEST_QUEUE)
    wake_up, credit, pair = bytes_per_second * WAKE_UP_S, bytes_per_second * CREDIT_S, 2 * SEGMENT_WIRE
    if pair > bytes_per_second * LONGEST_PAIR_S:
        cut = SEGMENT_WIRE + wake_up * room
        if room > 1 and cut > pair - ROUNDING:  # a pair passes whole, as there is room for it and the refill
            return Shape(rate_bps, round(pair + wake_up * room), limit, SEGMENT_WIRE)
        return Shape(rate_bps, round(min(max(cut, credit), pair - ROUNDING)), limit, SEGMENT_WIRE)
    if rate_bps * workers > HOST_BPS:
        packet, wake_up = bytes_per_second * BUSY_PACKET_S, bytes_per_second * BUSY_WAKE_UP_S
    else:
        packet = max(credit - wake_up, bytes_per_second * min(BUSY_PACKET_S, workers / PACKETS_PER_S))
    packet = min(max(packet, pair), LARGEST_PACKET)
    return Shape(rate_bps, round(packet + wake_up * room), limit, round(packet))


@dataclass(frozen=True)
class Shapes:
    """The shape of every interface of a link: ``up[r]`` stands on rank r's own, ``down[r]`` on the bridge's side."""

    up: tuple[Shape, ...]
    down: tuple[Shape, ...]

    @classmethod
    def of(cls, spec: LinkSpec, room: int = 1, packet: int | None = None) -> Shapes:
        """Of ``spec`` until its first change. ``room`` is :func:`shape_for`'s.

        Args:
            packet: what :func:`packet_of` says of a link that changes: its buckets hold such a one, and the refill.
        """
        spec = spec.first

        def shape(rate_bps: int) -> Shape:
            found = shape_for(max(rate_bps, spec.peak_bps or 0), spec.workers, room)
            if spec.peak_bps is not None:
                found = replace(found, rate_bps=rate_bps, burst=spec.credit_bytes or 0, peak=found)
            elif packet is not None:
                refill = rate_bps / 8 * WAKE_UP_S * room
                found = replace(found, gso=packet, burst=max(found.burst, round(packet + refill)))
            # Packets are lost and delayed whole: one of many segments would lose or delay them all at once.
            if spec.loss or spec.jitter_s:
                found = replace(found, gso=SEGMENT_WIRE)
            if spec.queue_s is not None:
                found = replace(
                    found, limit=min(max(found.burst, round(rate_bps / 8 * spec.queue_s)), LONGEST_QUEUE)
                )
            return found

        ranks = range(spec.workers)
        return cls(
            tuple(shape(spec.up(rank)) for rank in ranks), tuple(shape(spec.down(rank)) for rank in ranks)
        )

    @property
    def gso(self) -> int:
        """Bytes of the largest packet that any interface makes: it must suit the slowest, which forwards it whole."""
        return min(shape.gso for shape in (*self.up, *self.down))

    @property
    def longest_wait_s(self) -> float:
        """How long the last packet of a full queue waits, where that is longest."""
        return max(shape.limit * 8 / shape.rate_bps for shape in (*self.up, *self.down))


def packet_of(spec: LinkSpec, room: int = 1) -> int | None:
    """Bytes of the packets of a link that changes; None of one that does not.

    When the rate falls, packets of the stretch before stand in the queue, and a bucket that holds less than one of them
    carries nothing until the rate rises again. So all stretches have packets of one size: the smallest that the host
    can afford in the fastest one. In a slow stretch a message after idle may be early by one of them.
    """
    if not spec.varies:
        return None
    stretches = [(now, Shapes.of(now, room)) for _, now in spec.stretches()]
    shapes = [shape for _, each in stretches for shape in (*each.up, *each.down)]
    affordable = [
        min(float(each.gso), now.fastest_bps / 8 * now.workers / PACKETS_PER_S) for now, each in stretches
    ]
    whole = any(shape.burst >= 2 * SEGMENT_WIRE for shape in shapes)  # TCP hands down two segments at least
    least = 2 * SEGMENT_WIRE if whole else SEGMENT_WIRE
    return round(max(least, min(shape.gso for shape in shapes), *affordable))


@dataclass(frozen=True)
class Step:
    """One command of the plan and the namespace it belongs in (None: the bridge's)."""

    rank: int | None
    argv: tuple[str, ...]


def plan(
    spec: LinkSpec,
    shapes: Shapes,
    namespaces: Sequence[str],
    congestion: str,
    delay_by: Literal["netem", "tun"] | None = None,
) -> list[Step]:
    """The commands that make the link, in order.

    Delay, jitter and loss are netem's, inside the bucket of what a rank sends: every packet crosses one such
    interface on its way, so that the delay is that of one way. Or they are a forwarder's, which stands between the
    ranks' bridges, behind the bucket of what a rank sends and before that of what another receives. It has made its
    devices already.

    Args:
        namespaces: how ``ip link add ... netns`` names each rank's namespace.
        delay_by: who delays and loses packets, where somebody shall.
    """
    steps = [Step(None, ("ip", "link", "set", "lo", "up"))]

    def ip(rank: int | None, words: str) -> None:
        steps.append(Step(rank, ("ip", *words.split())))

    for rank, namespace in enumerate(namespaces):
        name = f"br{rank}" if delay_by == "tun" else "br0"
        if delay_by == "tun" or rank == 0:
            ip(None, f"link add {name} type bridge mcast_snooping 0")
            ip(None, f"link set {name} addrgenmode none up")
        if delay_by == "tun":
            ip(None, f"link set dev t{rank} txqueuelen {TAP_QUEUE} master {name} addrgenmode none up")
        ip(None, f"link add v{rank} type veth peer name eth0 address {mac(rank)} netns {namespace}")
        ip(None, f"link set v{rank} master {name} gso_max_size {shapes.gso} addrgenmode none up")
        steps.append(Step(None, ("tc", "qdisc", "add", "dev", f"v{rank}", *_tbf(shapes.down[rank]))))
        ip(rank, "link set lo up")
        ip(rank, f"address add {address(rank)}/16 dev eth0")
        ip(rank, f"link set eth0 gso_max_size {shapes.gso} addrgenmode none up")
        # ARP would be counted as traffic of whichever step it happens to fall in.
        for other in (other for other in range(spec.workers) if other != rank):
            ip(rank, f"neigh replace {address(other)} dev eth0 lladdr {mac(other)} nud permanent")
        ip(rank, f"route replace {SUBNET}.0.0/16 dev eth0 src {address(rank)} congctl {congestion}")
        steps.append(Step(rank, ("tc", "qdisc", "add", "dev", "eth0", *_tbf(shapes.up[rank]))))
        if delay_by == "netem":
            steps.append(netem(spec)[rank])
    return steps


def netem(spec: LinkSpec) -> list[Step]:
    """The commands that have netem delay and lose the packets of each rank, from now on."""
    largest = Shapes.of(max((now for _, now in spec.stretches()), key=lambda now: now.rate_bps))
    return [
        Step(rank, ("tc", "qdisc", "replace", "dev", "eth0", *_netem(spec, largest.up[rank])))
        for rank in range(spec.workers)
    ]


def needs_delay_by(spec: LinkSpec) -> list[str]:
    """What ``spec`` asks for that no bucket does, but netem or a forwarder, as flags."""
    wanted = {"--delay": spec.delay_s, "--jitter": spec.jitter_s, "--loss": spec.loss}
    return [flag for flag, value in wanted.items() if value]


def _netem(spec: LinkSpec, shape: Shape) -> list[str]:
    # What is on its way waits in netem's queue too: in packets, of which the smallest that bulk makes are full.
    on_its_way = shape.rate_bps / 8 * (spec.delay_s + spec.jitter_s)
    words = f"parent 1:1 handle 10: netem limit {math.ceil((on_its_way + shape.limit) / SEGMENT_WIRE)}"
    if spec.delay_s:
        words += f" delay {spec.delay_s * 1e6:.0f}us {spec.jitter_s * 1e6:.0f}us"
    if spec.jitter_s and not spec.reorder:
        # netem with a rate counts each delay from when the packet before leaves, so that none overtakes it.
        words += f" rate {FASTEST_BPS}bit"
    if spec.loss:
        words += f" loss {spec.loss * 100:.6g}%"
    return words.split()


def _tbf(shape: Shape) -> list[str]:
    words = f"root handle 1: tbf rate {shape.rate_bps}bit burst {shape.burst}b limit {shape.limit}b"
    if shape.peak is not None:
        words += f" peakrate {shape.peak.rate_bps}bit mtu {shape.peak.burst}b"
    return words.split()


def change(
    now: LinkSpec, namespaces: Sequence[int | None], room: int = 1, packet: int | None = None
) -> dict[int | None, str]:
    """The ``tc`` batch of each namespace that changes a link to ``now``, one of its stretches, with :func:`shape_for`'s
    ``room`` and the ``packet`` of :func:`packet_of`.

    A change also fills the buckets, so that even the only stretch of a link with credit is worth playing.
    """
    shapes = Shapes.of(now, room, packet)
    batches: dict[int | None, str] = dict.fromkeys(namespaces, "")
    for rank in range(now.workers):
        batches[None] += f"qdisc change dev v{rank} {' '.join(_tbf(shapes.down[rank]))}\n"
        batches[rank] += f"qdisc change dev eth0 {' '.join(_tbf(shapes.up[rank]))}\n"
    return batches


def address(rank: int) -> str:
    return f"{SUBNET}.0.{rank + 1}"


def mac(rank: int) -> str:
    return f"02:00:00:00:00:{rank + 1:02x}"


def _named(rank: int | None) -> str:
    """Returns ``netsim`` for the bridge, ``netsim0`` for rank 0: how a script names a namespace."""
    return BRIDGE if rank is None else f"{BRIDGE}{rank}"


def script(spec: LinkSpec) -> list[str]:
    """Returns lines for a root shell that make a link, play its timeline once, and say how to use and remove it.

    netsim itself makes the same link with the same words, in namespaces without names. Delay, jitter and loss are
    netem's here, since a forwarder is no command.
    """
    ranks = range(spec.workers)
    names = [_named(None), *map(_named, ranks)]
    lines = [f"ip netns add {name}" for name in names]
    delay_by: Literal["netem"] | None = "netem" if needs_delay_by(spec) else None
    packet = packet_of(spec)
    for step in plan(spec, Shapes.of(spec, packet=packet), names[1:], spec.congestion or "cubic", delay_by):
        tool, *words = step.argv
        lines.append(shlex.join([tool, "-n", _named(step.rank), *words]))
    for (before, _), (at, now) in pairwise(spec.stretches() if spec.varies else ()):
        lines.append(f"sleep {at - before:g}")
        lines += [
            f"tc -n {_named(rank)} {line}"
            for rank, text in change(now, [None, *ranks], packet=packet).items()
            for line in text.splitlines()
        ]
    return [
        *lines,
        f"# use it:    ip netns exec {_named(0)} ping {address(spec.workers - 1)}",
        f"# remove it: for n in {' '.join(names)}; do ip netns delete $n; done",
    ]
