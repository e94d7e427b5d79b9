"""A rehearsed step on a link's clock: when would it be through, and where would its time go?

Every rank does the local work in a time of its own, one that was rehearsed; an exchange begins with the last rank. So a
step grows with the workers, as the slowest of more of them is slower.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from netsim_ddp.communication.framing import acknowledgement_bytes, wire_bytes
from netsim_ddp.link.bucket.folded import FoldedClock
from netsim_ddp.link.bucket.schedule import Operation, Sent
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.predict.message_cost import Costs, MessageCost
from netsim_ddp.predict.rehearsal import Finish, Full, Rehearsal, Start, Work
from netsim_ddp.steps.phases import Interval, Phase, StepSample

AGGREGATE_BYTES = 1 << 16
"""The packet that a receiver acknowledges, where the host aggregates them as Linux does."""


@dataclass(frozen=True)
class Computed:
    """What a step computes, seconds since it began: when each bucket is full, when backward ends, how long everything
    takes that comes after the exchange, and how long it waits for data first."""

    full_s: tuple[float, ...]
    ends_s: float
    after_s: float = 0.0
    data_s: float = 0.0


class PredictedLink:
    """The links of all ranks, between which steps follow each other.

    Args:
        costs: what a host adds to every exchange.
        aggregate_bytes: the largest packet, which an acknowledgement answers; None: they take no room.
    """

    def __init__(
        self,
        spec: LinkSpec,
        costs: Costs,
        aggregate_bytes: int | None = AGGREGATE_BYTES,
    ) -> None:
        share = 1.0 if aggregate_bytes is None else 1 / (1 + acknowledgement_bytes(1.0, aggregate_bytes))
        self._spec = replace(
            spec,
            rate_bps=round(spec.rate_bps * share),
            down_bps=round((spec.down_bps or spec.rate_bps) * share),
            slow_ranks=tuple(
                replace(each, up_bps=round(each.up_bps * share), down_bps=round(each.down_bps * share))
                for each in spec.slow_ranks
            ),
        )
        self._clock, self._costs, self._now = FoldedClock(self._spec), costs, 1.0

    @property
    def workers(self) -> int:
        return self._spec.workers

    def play(self, rehearsal: Rehearsal, computed: Computed, step: int) -> StepSample:
        """The next step, of the slowest rank; ``step`` decides which of the rehearsed steps each rank does."""
        return _Playing(self, computed, step).run(rehearsal)

    def begin(self) -> float:
        """When the next step begins."""
        return self._now

    def end(self, moment: float) -> None:
        """The step is through."""
        self._now = moment

    def complete(self, sent: Sent, start: float) -> float:
        """When an exchange that begins at ``start`` is through."""
        ranks, cost = self._spec.workers, self._costs.get(sent.kind, MessageCost(0.0))
        if sent.kind == "allreduce":
            operation = Operation(sent.kind, sent.sizes[0], itemsize=sent.itemsize)
            return self._clock.complete(operation, start) + 2 * (ranks - 1) * cost.round_s
        if sent.kind == "alltoall":
            operation = Operation(sent.kind, splits=(sent.sizes,))
            return self._clock.complete(operation, start) + cost.round_s + (ranks - 2) * cost.message_s
        rounds = len(sent.sizes)
        line = wire_bytes(sent.sizes) * 8 / self._spec.slowest_bps
        return start + line + rounds * (2 * self._spec.delay_s + cost.round_s)


class _Playing:
    """One step's way through its events. All ranks have a clock; a lap is that of the rank that is last."""

    def __init__(self, link: PredictedLink, computed: Computed, step: int) -> None:
        self._link, self._computed = link, computed
        self._rehearsed = np.random.default_rng(step).random(link.workers)
        self._begin = link.begin()
        self._now = np.full(link.workers, self._begin)
        self._laps: list[tuple[Phase, float, float]] = []
        self._started: dict[int, Interval] = {}
        self._starts: list[float] = []

    def run(self, rehearsal: Rehearsal) -> StepSample:
        fulls = [each for each in rehearsal.events if isinstance(each, Full)]
        self._to("other", self._begin + self._computed.data_s)
        for event in rehearsal.events:
            if isinstance(event, Full):
                last = event is fulls[-1]
                self._to("compute", self._ready(event.bucket, last=last))
            elif isinstance(event, Work):
                which = (self._rehearsed * len(event.took_s)).astype(int)
                self._to(event.phase, self._now + np.asarray(event.took_s)[which])
            elif isinstance(event, Start):
                last_s = float(self._now.max())
                self._started[event.wire] = (last_s, self._link.complete(event.sent, last_s))
            elif isinstance(event, Finish):
                start, done = self._started[event.wire]
                self._starts.append(start)
                self._to("wire", done)
        if not fulls:
            self._to("compute", self._begin + self._computed.ends_s)
        self._to("optimizer", self._now + self._computed.after_s)
        self._link.end(float(self._now.max()))
        return StepSample(
            self._laps,
            starts=self._starts,
            computing_from=self._begin + self._computed.data_s,
            computing_until=self._begin + self._computed.ends_s,
        )

    def _ready(self, bucket: int, *, last: bool) -> float:
        """When the gradient of ``bucket`` is there: of a part that is everything, with the last one."""
        return self._begin + (self._computed.ends_s if last else self._computed.full_s[bucket])

    def _to(self, phase: Phase, moment: float | np.ndarray) -> None:
        before, self._now = float(self._now.max()), np.maximum(self._now, moment)
        self._laps.append((phase, before, float(self._now.max())))
