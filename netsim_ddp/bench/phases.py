"""Where a step's time went: contiguous laps on one rank, and the waits that only all ranks together show.

A rank closes a lap whenever it changes phase, so that the laps of a step cover it without gaps and the phases add up
to it by construction. A lap on the wire mixes two things: waiting for the last rank to arrive and moving bytes. All
ranks of one machine read the same monotonic clock, so :func:`settle` separates them afterwards: until the last rank's
arrival a rank waits, from there on it communicates.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from netsim_ddp.results.record import StepRecord

Phase = Literal["compute", "compress", "wire", "decompress", "optimizer", "other"]
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


class CudaClock:
    """CUDA events, for work that is only queued when the call returns; no synchronisation within the step."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        last.record()
        last.synchronize()
        now = time.monotonic()
        return [now - mark.elapsed_time(last) / 1e3 for mark in marks]


@dataclass
class StepSample:
    """One rank's step: absolute times in seconds. ``transfers`` are operations that ran beside a lap."""

    laps: list[tuple[Phase, float, float]]
    transfers: list[Interval] = field(default_factory=list)
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
        self._marks: list[Any] = []
        self._phases: list[Phase] = []

    def begin(self) -> None:
        self._marks = [self._clock.mark()]
        self._phases = []

    def lap(self, phase: Phase) -> None:
        """All since the last mark was ``phase``."""
        self._marks.append(self._clock.mark())
        self._phases.append(phase)

    def finish(self) -> StepSample:
        times = self._clock.seconds(self._marks)
        return StepSample(list(zip(self._phases, times, times[1:], strict=False)))


def covered(intervals: Sequence[Interval], until: float) -> float:
    """Seconds that the union of ``intervals`` covers before ``until``."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        fresh, stop = max(begin, reached), min(end, until)
        if stop > fresh:
            total += stop - fresh
            reached = stop
    return total


def settle(samples: Sequence[StepSample]) -> list[StepRecord]:
    """The records of one step from every rank's sample, in rank order.

    Raises:
        ValueError: the ranks took a different number of laps on the wire.
    """
    wires = [[lap for lap in sample.laps if lap[0] == "wire"] for sample in samples]
    if len({len(laps) for laps in wires}) > 1:
        raise ValueError("ranks disagree on the number of wire operations in a step")
    arrivals = [max(begin for _, begin, _ in laps) for laps in zip(*wires, strict=True)]
    return [_record(sample, laps, arrivals) for sample, laps in zip(samples, wires, strict=True)]


def _record(
    sample: StepSample, wires: Sequence[tuple[Phase, float, float]], arrivals: Sequence[float]
) -> StepRecord:
    phases: dict[str, float] = dict.fromkeys(
        ("compute", "compress", "communicate", "wait", "decompress", "optimizer", "other"), 0.0
    )
    for phase, begin, end in sample.laps:
        if phase != "wire":
            phases[phase] += end - begin
    for (_, begin, end), arrival in zip(wires, arrivals, strict=True):
        waited = min(max(arrival - begin, 0.0), end - begin)
        phases["wait"] += waited
        phases["communicate"] += end - begin - waited
    wall = sample.end - sample.begin
    exposed_from = wires[-1][1] if wires else sample.end
    return StepRecord(
        wall_s=wall,
        elapsed_s=wall,
        hidden_s=covered(sample.transfers, exposed_from),
        loss=sample.loss,
        **{f"{phase}_s": seconds for phase, seconds in phases.items()},
    )
