"""Which ``ip`` and ``tc`` commands make a link, and with which numbers. Pure: nothing is run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from netsim_ddp.link.spec import SEGMENT_WIRE, LinkSpec

SUBNET = "10.77"


@dataclass(frozen=True)
class Shape:
    """The numbers of one token bucket filter. Bytes; the rate in bit/s counts Ethernet headers."""

    rate_bps: int
    burst: int
    limit: int
    gso: int


def shape_for(rate_bps: int) -> Shape:
    """Burst, queue and segment size for a rate.

    Tokens that a bucket saves while the link is idle let a small message through for free, and a 64 KB
    segment that is stored and forwarded whole delays it; too small a burst starves a fast link, because
    the kernel refills it late. Half a millisecond of burst is the compromise: 62.5 KB at 1 Gbit/s.
    The queue holds 200 ms so that no sender on a lossless link is dropped.
    """
    bytes_per_second = rate_bps / 8
    burst = max(2 * SEGMENT_WIRE, round(bytes_per_second * 0.5e-3))
    gso = min(65536, max(SEGMENT_WIRE, burst // 2))
    return Shape(rate_bps, burst, max(2_000_000, round(bytes_per_second * 0.2)), gso)


@dataclass(frozen=True)
class Shapes:
    """The shape of every interface of a link: ``up[r]`` stands on rank r's own, ``down[r]`` on the bridge's side."""

    up: tuple[Shape, ...]
    down: tuple[Shape, ...]

    @classmethod
    def of(cls, spec: LinkSpec) -> Shapes:
        ranks = range(spec.workers)
        return cls(
            tuple(shape_for(spec.up(rank)) for rank in ranks),
            tuple(shape_for(spec.down(rank)) for rank in ranks),
        )

    @property
    def gso(self) -> int:
        """Bytes of the largest packet that any interface makes: it must suit the slowest, which forwards it whole."""
        return min(shape.gso for shape in (*self.up, *self.down))


@dataclass(frozen=True)
class Step:
    """One command of the plan and the namespace it belongs in (None: the bridge's)."""

    rank: int | None
    argv: tuple[str, ...]


def plan(spec: LinkSpec, shapes: Shapes, namespaces: Sequence[str], congestion: str | None) -> list[Step]:
    """The commands that make the link, in order.

    Args:
        namespaces: how ``ip link add ... netns`` names each rank's namespace.
    """
    segments = ("gso_max_size", str(shapes.gso))
    steps = [
        Step(None, ("ip", "link", "set", "lo", "up")),
        Step(None, ("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")),
        Step(None, ("ip", "link", "set", "br0", "addrgenmode", "none", "up")),
    ]

    def ip(rank: int | None, *words: str) -> None:
        steps.append(Step(rank, ("ip", *words)))

    for rank, namespace in enumerate(namespaces):
        outer = f"v{rank}"
        peer = ("peer", "name", "eth0", "address", mac(rank), "netns", namespace)
        ip(None, "link", "add", outer, "type", "veth", *peer)
        ip(None, "link", "set", outer, "master", "br0", *segments, "addrgenmode", "none", "up")
        steps.append(Step(None, ("tc", "qdisc", "add", "dev", outer, *_tbf(shapes.down[rank]))))
        ip(rank, "link", "set", "lo", "up")
        ip(rank, "address", "add", f"{address(rank)}/16", "dev", "eth0")
        ip(rank, "link", "set", "eth0", *segments, "addrgenmode", "none", "up")
        # ARP would be counted as traffic of whichever step it happens to fall in.
        for other in range(spec.workers):
            if other != rank:
                where = ("dev", "eth0", "lladdr", mac(other), "nud", "permanent")
                ip(rank, "neigh", "replace", address(other), *where)
        if congestion:
            route = (f"{SUBNET}.0.0/16", "dev", "eth0", "src", address(rank), "congctl", congestion)
            ip(rank, "route", "replace", *route)
        steps.append(Step(rank, ("tc", "qdisc", "add", "dev", "eth0", *_tbf(shapes.up[rank]))))
    return steps


def _tbf(shape: Shape) -> list[str]:
    return f"root tbf rate {shape.rate_bps}bit burst {shape.burst}b limit {shape.limit}b".split()


def address(rank: int) -> str:
    return f"{SUBNET}.0.{rank + 1}"


def mac(rank: int) -> str:
    return f"02:00:00:00:00:{rank + 1:02x}"
