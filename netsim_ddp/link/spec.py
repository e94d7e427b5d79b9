"""What a link is asked to be: one :class:`LinkSpec`, from which every mechanism is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from netsim_ddp.errors import UsageError
from netsim_ddp.units import counted, format_bytes, format_duration, format_rate

SEGMENT_PAYLOAD = 1448  # MTU of 1500 - IPv4 header - TCP header with timestamps
SEGMENT_WIRE = 1514  # MTU + Ethernet header: what a qdisc counts per full segment

SLOWEST_BPS = 1000
"""On which a full packet takes 12 s, longer than any timeout of a connection would bear for long."""
FASTEST_BPS = 10**12
"""More than any host's interface."""


@dataclass(frozen=True)
class RankRate:
    """One rank whose interface differs from the others'."""

    rank: int
    up_bps: int
    down_bps: int


@dataclass(frozen=True)
class Change:
    """From ``at_s`` on, every rank may send and receive this much, bit/s; a slow rank never more than its own."""

    at_s: float
    up_bps: int
    down_bps: int


@dataclass(frozen=True)
class LinkSpec:
    """What each rank's interface shall do. Rates are bits per second, counted with headers.

    ``rate_bps`` is what a rank may send; ``down_bps`` what it may receive, the same where it is None.
    ``slow_ranks`` have rates of their own. ``delay_s`` is the way from one rank to another, half a round trip;
    every packet's differs from it by up to ``jitter_s``. ``loss`` is the share of packets that vanish,
    ``queue_s`` how long a packet may wait in a full queue, ``congestion`` the senders' control. ``tcp`` is what a
    message takes on a link that sees no packets: ``linux``, what kernel TCP would need, or ``ideal``, its bytes at
    the line's rate and the delay.

    A link may change: ``timeline`` holds the rates that replace the first ones, and begins anew after
    ``period_s``. Where it says what holds from the start on, ``rate_bps`` and ``down_bps`` are that. Or it has the
    token bucket of a cloud: each side works at ``peak_bps`` until it has sent ``credit_bytes`` beyond its rate,
    which comes back at that rate.

    On a tc link ``delay_by`` says who delays and loses packets: the kernel's netem, netsim's forwarder (tun), or the
    first of them that is there (auto). Packets whose delays differ keep their order unless ``reorder``. ``seed`` is
    that of the forwarder's draws.
    """

    workers: int
    rate_bps: int
    down_bps: int | None = None
    slow_ranks: tuple[RankRate, ...] = ()
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    queue_s: float | None = None
    congestion: str | None = None
    timeline: tuple[Change, ...] = ()
    period_s: float | None = None
    peak_bps: int | None = None
    credit_bytes: int | None = None
    delay_by: str = "auto"
    reorder: bool = False
    seed: int = 0
    tcp: str = "linux"

    def __post_init__(self) -> None:
        if self.timeline and self.timeline[0].at_s <= 0:  # no rate stands here that never holds
            object.__setattr__(self, "rate_bps", self.timeline[0].up_bps)
            object.__setattr__(self, "down_bps", self.timeline[0].down_bps)

    def check_rates(self) -> None:
        """Refuse rates that no link has, wherever they stand: its own, a rank's, a change's or the peak.

        Raises:
            UsageError: one is below :data:`SLOWEST_BPS` or above :data:`FASTEST_BPS`.
        """
        rates = [
            self.rate_bps,
            self.down_bps or self.rate_bps,
            self.peak_bps or self.rate_bps,
            *(rate for each in self.slow_ranks for rate in (each.up_bps, each.down_bps)),
            *(rate for each in self.timeline for rate in (each.up_bps, each.down_bps)),
        ]
        for rate in (min(rates), max(rates)):
            if not SLOWEST_BPS <= rate <= FASTEST_BPS:
                raise UsageError(
                    f"no link has {format_rate(rate)}",
                    hint=f"write a rate from {format_rate(SLOWEST_BPS)} to {format_rate(FASTEST_BPS)}, such as 100mbps",
                )

    def up(self, rank: int) -> int:
        """What ``rank`` may send, bit/s."""
        return self._of(rank)[0]

    def down(self, rank: int) -> int:
        """What ``rank`` may receive, bit/s."""
        return self._of(rank)[1]

    def _of(self, rank: int) -> tuple[int, int]:
        return {each.rank: (each.up_bps, each.down_bps) for each in self.slow_ranks}.get(
            rank, (self.rate_bps, self.down_bps or self.rate_bps)
        )

    @cached_property
    def varies(self) -> bool:
        """Whether its rates depend on when one looks: a trace of one rate does not change, however long it is."""
        return (
            self.peak_bps is not None
            or len({tuple(map(now._of, range(self.workers))) for _, now in self.stretches()}) > 1
        )

    @cached_property
    def first(self) -> LinkSpec:
        """The link until its first change: what is made before its time begins."""
        return next(self.stretches())[1]

    @cached_property
    def at_start(self) -> LinkSpec:
        """The link as it is before anything was sent and any time has passed: what a probe finds."""
        if self.peak_bps is None:
            return self.first
        return replace(
            self.first, rate_bps=self.peak_bps, down_bps=self.peak_bps, peak_bps=None, credit_bytes=None
        )

    @cached_property
    def lowest_bps(self) -> int:
        """The slowest that it ever is."""
        return min(now.slowest_bps for _, now in self.stretches())

    def stretches(self) -> Iterator[tuple[float, LinkSpec]]:
        """When each stretch of constant rates begins, and the link of that stretch."""
        still = replace(self, timeline=(), period_s=None)
        if not self.timeline or self.timeline[0].at_s > 0:
            yield 0.0, still
        for now in self.timeline:
            slow = tuple(
                replace(own, up_bps=min(own.up_bps, now.up_bps), down_bps=min(own.down_bps, now.down_bps))
                for own in self.slow_ranks
            )
            yield now.at_s, replace(still, rate_bps=now.up_bps, down_bps=now.down_bps, slow_ranks=slow)

    @property
    def windows(self) -> bool:
        """Whether a message takes what kernel TCP needs: its sender waits for acknowledgements, which take a delay."""
        return self.tcp == "linux" and self.delay_s > 0

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
        return "; ".join(
            [_directions(self.rate_bps, self.down_bps or self.rate_bps), *own, *self._beside_rates()]
        )

    def _beside_rates(self) -> Iterator[str]:
        if self.delay_s:
            jitter = f" ± {format_duration(self.jitter_s)}" if self.jitter_s else ""
            yield f"delay {format_duration(self.delay_s)}{jitter}"
            if self.tcp == "ideal":
                yield "ideal TCP"
        if self.loss:
            yield f"loss {self.loss:.3g}"
        if self.queue_s is not None:
            yield f"queue {format_duration(self.queue_s)}"
        if self.timeline and self.varies:
            again = f", again after {format_duration(self.period_s)}" if self.period_s else ""
            count = sum(now.at_s > 0 for now in self.timeline)
            yield f"{counted(count, 'change')} by {format_duration(self.timeline[-1].at_s)}{again}"
        if self.peak_bps is not None:
            yield f"{format_rate(self.peak_bps)} for {format_bytes(self.credit_bytes or 0)} of credit"


def goodput(rate_bps: float) -> float:
    """What TCP delivers of a line rate that counts Ethernet headers, at MTU 1500."""
    return rate_bps * SEGMENT_PAYLOAD / SEGMENT_WIRE


def _directions(up_bps: int, down_bps: int) -> str:
    up, down = format_rate(up_bps), format_rate(down_bps)
    return up if up_bps == down_bps else f"{up} up, {down} down"
