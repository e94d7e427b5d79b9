"""What a link is asked to be: one :class:`LinkSpec`, from which every mechanism is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from netsim_ddp.units import format_rate

ETHERNET_MTU = 1500
SEGMENT_PAYLOAD = 1448  # MTU - IPv4 header - TCP header with timestamps
SEGMENT_WIRE = 1514  # MTU + Ethernet header: what a qdisc counts per full segment


@dataclass(frozen=True)
class RankRate:
    """One rank whose interface differs from the others'."""

    rank: int
    up_bps: int
    down_bps: int


@dataclass(frozen=True)
class LinkSpec:
    """What each rank's interface shall do. Rates are bits per second, counted with headers.

    ``rate_bps`` is what a rank may send; ``down_bps`` what it may receive, the same where it is None.
    ``slow_ranks`` have rates of their own.
    """

    workers: int
    rate_bps: int
    down_bps: int | None = None
    slow_ranks: tuple[RankRate, ...] = ()

    def up(self, rank: int) -> int:
        """What ``rank`` may send, bit/s."""
        own = self._own(rank)
        return own.up_bps if own else self.rate_bps

    def down(self, rank: int) -> int:
        """What ``rank`` may receive, bit/s."""
        own = self._own(rank)
        return own.down_bps if own else self.down_bps or self.rate_bps

    def _own(self, rank: int) -> RankRate | None:
        return next((each for each in self.slow_ranks if each.rank == rank), None)

    def pair_bps(self, sender: int, receiver: int) -> int:
        """What one rank can send another: the slower of the two sides."""
        return min(self.up(sender), self.down(receiver))

    def ring(self) -> Iterator[tuple[int, int]]:
        """Every rank and its successor: together they use each side of each rank once."""
        return ((rank, (rank + 1) % self.workers) for rank in range(self.workers))

    @property
    def slowest_pair(self) -> tuple[int, int]:
        """The first pair of the ring that the slowest side of the link holds up."""
        return min(self.ring(), key=lambda pair: self.pair_bps(*pair))

    @property
    def slowest_bps(self) -> int:
        """The slowest side of all: a collective, in which every rank sends and receives alike, goes at its pace."""
        return self.pair_bps(*self.slowest_pair)

    @property
    def fastest_bps(self) -> int:
        return max(rate for rank in range(self.workers) for rate in (self.up(rank), self.down(rank)))

    @property
    def ceiling_bps(self) -> float:
        """The TCP goodput that the slowest side leaves after headers: rate x 1448/1514 at MTU 1500."""
        return goodput(self.slowest_bps)

    def describe(self) -> str:
        """One phrase for a table: ``1 Gbit/s``, ``100 Mbit/s up, 20 Mbit/s down; rank 3 10 Mbit/s``."""
        own = [
            f"rank {each.rank} {_directions(each.up_bps, each.down_bps)}"
            for each in self.slow_ranks
            if each.rank < self.workers
        ]
        return "; ".join([_directions(self.rate_bps, self.down_bps or self.rate_bps), *own])

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads, in types that JSON has."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        slow = tuple(RankRate(**each) for each in data["slow_ranks"])
        return cls(**{**data, "slow_ranks": slow})


def goodput(rate_bps: float) -> float:
    """What TCP delivers of a line rate that counts Ethernet headers, at MTU 1500."""
    return rate_bps * SEGMENT_PAYLOAD / SEGMENT_WIRE


def _directions(up_bps: int, down_bps: int) -> str:
    if up_bps == down_bps:
        return format_rate(up_bps)
    return f"{format_rate(up_bps)} up, {format_rate(down_bps)} down"
