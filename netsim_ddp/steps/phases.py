"""The times of a step's phases: contiguous laps on one rank, and the waits that only all ranks together show.

A rank closes a lap whenever it changes phase, so that the laps of a step cover it without gaps and the phases add up
to it by construction. A lap on the wire mixes two things: waiting for the last rank to start the exchange, and moving
bytes. All ranks of one machine read the same monotonic clock, so :func:`step_records` separates them afterwards: until
the last rank has started the exchange a rank waits, from there on it communicates.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from netsim_ddp.link.bucket.schedule import Sent
from netsim_ddp.results.record import StepRecord

Phase = Literal["compute", "compress", "send", "wire", "decompress", "optimizer", "other"]
Interval = tuple[float, float]


class Clock(Protocol):
    """Marks moments; ``seconds`` turns marks into CLOCK_MONOTONIC seconds, once the step is over."""

    def mark(self) -> Any: ...

    def seconds(self, marks: Sequence[Any]) -> list[float]: ...


class HostClock:
    """The monotonic clock, for work that is done when the call returns."""

    def mark(self) -> float:
        return time.monotonic()

    def seconds(self, marks: Sequence[float]) -> list[float]:
        return list(marks)


@dataclass
class StepSample:
    """One rank's step: absolute times in seconds of CLOCK_MONOTONIC.

    Attributes:
        laps: (phase, begin, end), contiguous. "wire" is waiting for an exchange, "send" is starting one that
            other work runs beside.
        starts: when the exchange of each "wire" lap was started, in the order of those laps.
        sent: what each exchange was, in the order in which they were started; empty where nobody noted it.
        waited: which of them each "wire" lap waited for.
        until: (lap, moment): the lap was an emulated accelerator's, which computes until then.
        transfers: when exchanges ran that no lap of their own waits for.
        computing_from, computing_until: between these moments an accelerator computed beside whatever the laps say.
        elapsed: how long the step took this host where it was not played in its own time.
    """

    laps: list[tuple[Phase, float, float]]
    starts: list[float] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    waited: list[int] = field(default_factory=list)
    until: list[tuple[int, float]] = field(default_factory=list)
    transfers: list[Interval] = field(default_factory=list)
    computing_from: float = float("-inf")
    computing_until: float = float("-inf")
    elapsed: float | None = None
    loss: float | None = None

    @property
    def begin(self) -> float:
        return self.laps[0][1]

    @property
    def end(self) -> float:
        return self.laps[-1][2]


class StepTimer:
    """Takes one step's laps. ``begin``, then ``lap(phase)`` at the end of each piece, then ``finish``."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def begin(self) -> None:
        self._sample = StepSample([])
        self._marks: list[Any] = [self._clock.mark()]
        self._phases: list[Phase] = []
        self._started: dict[int, float] = {}
        self._numbers: dict[int, int] = {}

    def lap(self, phase: Phase, wire: object = None) -> None:
        """All since the last mark was ``phase``; ``wire`` is the exchange that a "wire" lap waited for."""
        self._marks.append(self._clock.mark())
        self._phases.append(phase)
        if phase == "wire":
            self._sample.starts.append(self._started[id(wire)])
            if id(wire) in self._numbers:
                self._sample.waited.append(self._numbers[id(wire)])

    def started(self, wire: object) -> None:
        """The exchange ``wire`` starts now."""
        self._started[id(wire)] = time.monotonic()

    def sent(self, wire: object, what: Sent) -> None:
        """``wire``, which has started, asks ``what`` of the link."""
        self._numbers[id(wire)] = len(self._sample.sent)
        self._sample.sent.append(what)

    def computing_until(self, moment: float) -> None:
        """An accelerator computes until ``moment``; the lap that ends next was its."""
        self._sample.computing_until = moment
        self._sample.until.append((len(self._phases), moment))

    def waited_for_data(self) -> None:
        """The accelerator begins to compute with the next lap."""
        self._sample.computing_from = self.last()

    def last(self) -> float:
        """The end of the last lap, seconds of CLOCK_MONOTONIC; waits for it where a GPU has yet to reach it."""
        return self._clock.seconds(self._marks[-1:])[0]

    def finish(self) -> StepSample:
        times = self._clock.seconds(self._marks)
        self._sample.laps = list(zip(self._phases, times, times[1:], strict=False))
        return self._sample


def covered(intervals: Sequence[Interval]) -> float:
    """Seconds that the union of ``intervals`` covers."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        fresh = max(begin, reached)
        if end > fresh:
            total += end - fresh
            reached = end
    return total


def step_records(samples: Sequence[StepSample]) -> list[StepRecord]:
    """The records of one step from every rank's sample, in rank order.

    Raises:
        ValueError: the ranks took a different number of laps on the wire.
    """
    if len({len(sample.starts) for sample in samples}) > 1:
        raise ValueError("ranks disagree on the number of wire operations in a step")
    last_starts = [max(starts) for starts in zip(*(sample.starts for sample in samples), strict=True)]
    return [_record(sample, last_starts) for sample in samples]


def _record(sample: StepSample, last_starts: Sequence[float]) -> StepRecord:
    """Returns the phases of one rank; while its accelerator computed, that is what the time went to."""
    phases: dict[str, float] = dict.fromkeys(
        ("compute", "compress", "communicate", "wait", "decompress", "optimizer", "other"), 0.0
    )
    exposed, transfers = 0.0, list(sample.transfers)
    wires = iter(zip(sample.starts, last_starts, strict=True))
    for phase, begin, end in sample.laps:
        visible = begin if end <= sample.computing_from else min(max(sample.computing_until, begin), end)
        phases["compute"] += visible - begin
        if phase == "wire":
            start, last_start = next(wires)
            waited = min(max(last_start - visible, 0.0), end - visible)
            phases["wait"] += waited
            phases["communicate"] += end - visible - waited
            exposed += end - visible
            transfers.append((start, end))
        else:
            phases["communicate" if phase == "send" else phase] += end - visible
    wall = sample.end - sample.begin
    return StepRecord(
        wall_s=wall,
        elapsed_s=wall if sample.elapsed is None else sample.elapsed,
        hidden_s=max(covered(transfers) - exposed, 0.0),
        loss=sample.loss,
        **{f"{phase}_s": seconds for phase, seconds in phases.items()},
    )
