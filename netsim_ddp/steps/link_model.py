"""How long a step's exchanges would have taken on the link's own model: the same local work, another link.

The model is :class:`netsim_ddp.link.bucket.clock.LinkClock`'s: bytes at the line's rate in the order of Gloo's
schedule, the network's delay on every way, and the host's cost of each message, measured on this host, on top. The laps
of a step are walked through once more: local work lasts what it lasted, an emulated accelerator computes until its
moments, and what waited for an exchange goes on when the model has delivered it. So a bucket that backward fills late
is no fault of the host, and an exchange that begins late because the one before it was late is not forgiven.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from netsim_ddp.communication.framing import acknowledgement_bytes, wire_bytes
from netsim_ddp.link.bucket.clock import LinkClock
from netsim_ddp.link.bucket.schedule import Operation, Sent
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.steps.phases import StepSample

WARM_STEPS = 20
"""After so many alike a connection's window is what it will be."""


@dataclass(frozen=True)
class Exchanged:
    """From the moment when the last rank started the first exchange of a step to the end of the last exchange on the
    slowest rank, seconds: as it was, by the link's own model, and by that without the host's cost of messages, which is
    the least that the line allows."""

    took_s: float
    model_s: float
    line_s: float


class LinkModel:
    """The link's own model.

    Args:
        message_s: the host's own cost of one message by the exchange's kind, seconds.
        aggregate_bytes: the largest packet, which an acknowledgement answers; None where none is counted.
    """

    def __init__(
        self, spec: LinkSpec, message_s: Mapping[str, float], aggregate_bytes: int | None = None
    ) -> None:
        found = spec.first
        if aggregate_bytes is not None:
            # What a rank acknowledges takes room on its way out beside what it sends.
            share = 1 / (1 + acknowledgement_bytes(1.0, aggregate_bytes))
            found = replace(
                found,
                rate_bps=round(found.rate_bps * share),
                down_bps=round((found.down_bps or found.rate_bps) * share),
                slow_ranks=tuple(
                    replace(rank, up_bps=round(rank.up_bps * share), down_bps=round(rank.down_bps * share))
                    for rank in found.slow_ranks
                ),
            )
        self._clock = LinkClock(found)
        self._spec, self._message_s = spec, message_s
        self._behind_s = 0.0
        # The least that the line allows: no TCP, and no host.
        least = replace(spec, tcp="ideal")
        self._line = LinkModel(least, {}, aggregate_bytes) if message_s or spec != least else None

    @staticmethod
    def knows(spec: LinkSpec, mechanism: str) -> bool:
        """Whether there is a model: of a link that is ours, does not change and loses nothing."""
        return mechanism in ("tc", "bucket") and not spec.varies and not spec.loss and spec.workers > 1

    def step(self, samples: Sequence[StepSample]) -> Exchanged | None:
        """Returns the times of one step from every rank's sample; None where it exchanged nothing, or it is not known
        what."""
        if not samples[0].sent or len({len(sample.sent) for sample in samples}) > 1:
            return None
        if any(sample.waited and len(sample.waited) != len(sample.starts) for sample in samples):
            return None
        took, model = self._next(samples)
        return Exchanged(took, model, self._line._next(samples)[1] if self._line else model)

    def warm(self, samples: Sequence[StepSample], count: int) -> None:
        """Take ``count`` steps like this one before the first: what the connections carried in the warm-up."""
        if not self._clock.spec.windows or not samples[0].sent:
            return
        lasts_s = max(sample.end for sample in samples) - min(sample.begin for sample in samples)
        for _ in range(min(count, WARM_STEPS)):
            self.step(samples)
            self._behind_s += lasts_s

    def _next(self, samples: Sequence[StepSample]) -> tuple[float, float]:
        """Returns what the exchanges of the next step took, and what they take on the model, seconds: where the model
        took longer, all that follows is later."""
        moved = [_moved(sample, self._behind_s) for sample in samples]
        took, model = self._waited(moved) if samples[0].waited else self._overlapped(moved)
        self._behind_s += max(0.0, model - took)
        return took, model

    def alone(self, sent: Sent, ranks: int) -> float:
        """Seconds of one exchange in which every rank sends as much, on an idle link."""
        begin = 1.0
        return max(LinkModel(self._spec, {})._complete([sent] * ranks, [begin] * ranks)) - begin

    def _overlapped(self, samples: Sequence[StepSample]) -> tuple[float, float]:
        """Exchanges that somebody else (DDP) started along backward: none of them begins later for another's end."""
        rows = list(zip(*(sample.transfers for sample in samples), strict=True))
        first = done = max(begin for begin, _ in rows[0])
        for number, row in enumerate(rows):
            starts = [begin for begin, _ in row]
            done = max(done, *self._complete([sample.sent[number] for sample in samples], starts))
        return max(end for row in rows for _, end in row) - first, done - first

    def _waited(self, samples: Sequence[StepSample]) -> tuple[float, float]:
        walks = [_Walk(sample) for sample in samples]
        first = 0.0
        for number in range(len(samples[0].sent)):
            starts = [walk.to_start(number) for walk in walks]
            first = first if number else max(starts)
            ends = self._complete([sample.sent[number] for sample in samples], starts)
            for walk, end in zip(walks, ends, strict=True):
                walk.ends.append(end)
        for walk in walks:
            walk.to_end()
        return (
            max(walk.last_end for walk in walks) - max(walk.first_start for walk in walks),
            max(walk.reached for walk in walks) - first,
        )

    def _complete(self, sent: Sequence[Sent], starts: Sequence[float]) -> list[float]:
        """When each rank's part in one exchange is done, of exchanges in the order of their starts."""
        kind = sent[0].kind
        cost = self._message_s.get(kind, 0.0)
        if kind == "messages":
            spec = self._spec
            each = [
                wire_bytes(one.sizes) * 8 / spec.slowest_bps + len(one.sizes) * 2 * spec.delay_s
                for one in sent
            ]
            return [max(starts) + took + len(one.sizes) * cost for one, took in zip(sent, each, strict=True)]
        ranks = len(sent)
        if kind == "allreduce":
            operation = Operation(kind, sent[0].sizes[0], itemsize=sent[0].itemsize)
            count = 2 * (ranks - 1)
        else:
            operation = Operation(kind, splits=tuple(one.sizes for one in sent))
            count = ranks - 1
        return [
            end + count * cost for end in self._clock.complete(operation, [max(starts)] * ranks).deadlines
        ]


def _moved(sample: StepSample, by_s: float) -> StepSample:
    """``sample``, that much later."""
    return replace(
        sample,
        laps=[(phase, begin + by_s, end + by_s) for phase, begin, end in sample.laps],
        starts=[start + by_s for start in sample.starts],
        until=[(lap, moment + by_s) for lap, moment in sample.until],
        transfers=[(begin + by_s, end + by_s) for begin, end in sample.transfers],
    )


class _Walk:
    """One rank's way through its laps, on the model's time: CLOCK_MONOTONIC seconds, as the laps'."""

    def __init__(self, sample: StepSample) -> None:
        self._sample = sample
        self._now = sample.begin
        self._lap = self._started = self._waits = 0
        self._until = dict(sample.until)
        self.ends: list[float] = []
        """When the model has finished each exchange for this rank."""
        self.reached = 0.0
        """When the last exchange that this rank waited for was done."""
        self.first_start = self.last_end = 0.0
        """When the first exchange really started, and when the last one ended."""

    def to_start(self, number: int) -> float:
        """Go on to the start of exchange ``number``; when that is."""
        while self._started <= number:
            (phase, begin, _), start = self._sample.laps[self._lap], self._now
            if phase == "send":
                if self._started == 0:
                    self.first_start = begin
                self._started += 1
            self._pass()
            if self._started > number:
                return start
        raise ValueError("an exchange was asked for twice")

    def to_end(self) -> None:
        while self._lap < len(self._sample.laps):
            self._pass()

    def _pass(self) -> None:
        phase, begin, end = self._sample.laps[self._lap]
        if phase == "wire":
            self._now = max(self._now, self.ends[self._sample.waited[self._waits]])
            self._waits += 1
            self.reached, self.last_end = self._now, end
        elif (moment := self._until.get(self._lap)) is not None:
            self._now = max(self._now, moment)
        else:
            self._now += end - begin
        self._lap += 1
