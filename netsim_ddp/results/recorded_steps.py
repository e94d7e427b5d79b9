"""Where a recorded step went: its parts one after the other, the wait for the slowest rank, and of its exchanges what
was exposed, by bucket. All from moments that were recorded, but for :func:`without_exchange_s`, which is worked out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from statistics import median
from typing import NamedTuple

from netsim_ddp.results.recording import Bucket, Recording, Step

PARTS = ("data", "forward", "backward", "wait", "exchange", "other", "optimizer")
"""Of a step. ``data`` is before and between the passes, ``wait`` and ``exchange`` together from this rank's last
gradient to backward's end, ``other`` from there to the last optimizer's begin."""
PART_NAMES: Mapping[str, str] = {"exchange": "exposed communication"}
"""What every table, chart and sentence calls a part of a step whose name differs; docs/glossary.md has them all."""


class Span(NamedTuple):
    """A part of a step, in seconds since it began."""

    part: str
    begin_s: float
    end_s: float


@dataclass(frozen=True)
class SeenStep:
    """A step on one rank, beside the others'. ``slowest_s``: when the slowest rank had its last gradient, in seconds
    since this rank's step began; None where other ranks were not seen, and their wait is in ``exchange``.
    ``full_s``: of each bucket, when the last rank had it full, on the same clock; None as ``slowest_s``, or where one
    never had. ``exchanges``: whether a bucket was exchanged at all; else backward lasts to its end."""

    rank: int
    step: Step
    slowest_s: float | None = None
    full_s: Sequence[float | None] | None = None
    exchanges: bool = True

    @property
    def exchange_from_s(self) -> float:
        """When the last exchange could begin: all seen ranks have their last gradient."""
        step, end = self.step, max(self.step.passes[-1].end_s, self.step.computed_s)
        return min(max(self.slowest_s or 0.0, step.computed_s), end) if self.exchanges else end

    @property
    def spans(self) -> list[Span]:
        """The step from its begin to its end, without gaps."""
        step, found, at = self.step, [], 0.0
        for number, one in enumerate(step.passes):
            found += [Span("data", at, one.forward_s), Span("forward", one.forward_s, one.backward_s)]
            last = number == len(step.passes) - 1
            at = one.end_s
            if not last:
                found.append(Span("backward", one.backward_s, at))
                continue
            computed = min(max(step.computed_s if self.exchanges else at, one.backward_s), at)
            ready = min(max(self.exchange_from_s, computed), at)
            found += [
                Span("backward", one.backward_s, computed),
                Span("wait", computed, ready),
                Span("exchange", ready, at),
            ]
        found += [Span("other", at, step.optimizer_s), Span("optimizer", step.optimizer_s, step.end_s)]
        return [span for span in found if span.end_s > span.begin_s]

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by the names of :data:`PARTS`; they add up to the step."""
        total = dict.fromkeys(PARTS, 0.0)
        for span in self.spans:
            total[span.part] += span.end_s - span.begin_s
        return total

    @property
    def bucket_spans(self) -> list[list[Span]]:
        """Of each bucket its wait until all ranks have it full, and its exchange (which may wait for those before it);
        nothing where its end was not seen."""
        found: list[list[Span]] = []
        for own, done, last in zip(
            self.step.full_s, self.step.done_s, self.full_s or repeat(None), strict=False
        ):
            found.append([])
            if own is not None and done is not None:
                ready = own if last is None else min(max(last, own), done)
                spans = (Span("wait", own, ready), Span("exchange", ready, done))
                found[-1] = [span for span in spans if span.end_s > span.begin_s]
        return found

    @property
    def exposed_s(self) -> list[float | None]:
        """Of each bucket, for how long its exchange alone held up backward's end: from the later of
        :attr:`exchange_from_s` and the end of the exchange before to its own end. None where that was not seen."""
        at, end = self.exchange_from_s, self.step.passes[-1].end_s
        found: list[float | None] = [None] * len(self.step.done_s)
        for done, number in sorted((done, n) for n, done in enumerate(self.step.done_s) if done is not None):
            until = max(min(done, end), at)
            found[number], at = until - at, until
        return found


def seen_steps(recording: Recording) -> list[list[SeenStep]]:
    """For each rank that was seen its steps, in order."""
    everybody, exchanges = len(recording.ranks) == recording.world_size, recording.source != "plain"
    found: list[list[SeenStep]] = [[] for _ in recording.ranks]
    for steps in zip(*(each.steps for each in recording.ranks), strict=True):
        latest = max(step.begin_s + step.computed_s for step in steps)
        full = [_latest(steps, number) for number in range(len(recording.buckets))]
        for own, rank, step in zip(found, recording.ranks, steps, strict=True):
            if everybody:
                own_full = [None if moment is None else moment - step.begin_s for moment in full]
                own.append(SeenStep(rank.rank, step, latest - step.begin_s, own_full, exchanges))
            else:
                own.append(SeenStep(rank.rank, step, exchanges=exchanges))
    return found


def _latest(steps: Sequence[Step], bucket: int) -> float | None:
    """When the last rank had ``bucket`` full, on the host's clock; None where one never had."""
    moments = [step.begin_s + full for step in steps if (full := step.full_s[bucket]) is not None]
    return max(moments) if len(moments) == len(steps) else None


@dataclass(frozen=True)
class Spread:
    """A median, and the lowest and highest value; seconds."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values))


@dataclass(frozen=True)
class BucketTimes:
    """What was seen of a bucket, over the steps and ranks: when it was full and when its exchange was through (seconds
    since the step began), how long this exchange was exposed, and how much later than the first rank the last one had
    it full. None where nobody saw it."""

    number: int
    bucket: Bucket
    full: Spread | None
    done: Spread | None
    exposed: Spread | None
    apart: Spread | None


def bucket_times(recording: Recording, seen: Sequence[Sequence[SeenStep]]) -> list[BucketTimes]:
    """A row for each bucket of ``recording``, whose :func:`seen_steps` are ``seen``."""
    steps = [each for rank in seen for each in rank]
    exposed = [each.exposed_s for each in steps]
    rows = []
    for number, bucket in enumerate(recording.buckets):
        apart = []
        for together in zip(*seen, strict=True) if len(seen) > 1 else ():
            moments = [
                each.step.begin_s + full
                for each in together
                if (full := each.step.full_s[number]) is not None
            ]
            if len(moments) == len(together):
                apart.append(max(moments) - min(moments))
        columns = (
            [each.step.full_s[number] for each in steps],
            [each.step.done_s[number] for each in steps],
            [each[number] for each in exposed],
            apart,
        )
        known = [[value for value in column if value is not None] for column in columns]
        rows.append(BucketTimes(number, bucket, *(spread(each) if each else None for each in known)))
    return rows


def longest_step_s(seen: Sequence[Sequence[SeenStep]]) -> float:
    """The slowest rank's step, in the median over the steps."""
    return float(median(max(each.step.end_s for each in step) for step in zip(*seen, strict=True)))


def without_exchange_s(seen: Sequence[Sequence[SeenStep]]) -> float:
    """What a step would take, in the median, were each exchange through at once: for each step, of all ranks the
    longest step less its exposed exchange. The wait for the slowest rank stays, and so does what exchanges that are
    hidden cost the passes. Worked out, not measured; no link makes these steps shorter."""
    steps = zip(*seen, strict=True)
    return float(median(max(each.step.end_s - each.parts["exchange"] for each in step) for step in steps))


def middle_step(seen: Sequence[SeenStep]) -> int:
    """The number, from 0, of the step whose length is the median one, or next above it."""
    order = sorted(range(len(seen)), key=lambda number: seen[number].step.end_s)
    return order[len(order) // 2]
