"""A recorded training's steps, played: its own moments and gradients, with any method on any link."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from netsim_ddp.communication.executor import Stage, pipeline, starts_first
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Group, Method
from netsim_ddp.results.recording import Step
from netsim_ddp.steps.execution import Execution
from netsim_ddp.steps.programs import Emulated, Say


@dataclass(frozen=True)
class Schedule:
    """One step without its communication, seconds since it began: when the first forward begins, when each bucket can
    be sent, and how long the step goes on when every exchange is through."""

    forward_s: float
    ready_s: list[float]
    after_s: float


def schedule_of(step: Step, scale: float) -> Schedule:
    """What ``step`` does where forward, backward and optimizer take ``scale`` times as long. What lies between two
    passes, and before the first, is not the accelerator's (loading data above all) and lasts what it lasted."""
    waits = [(0.0, step.passes[0].forward_s)] + [
        (one.end_s, other.forward_s) for one, other in itertools.pairwise(step.passes)
    ]

    def at(moment: float) -> float:
        waited = sum(min(max(moment - begin, 0.0), end - begin) for begin, end in waits)
        return waited + (moment - waited) * scale

    return Schedule(
        forward_s=step.passes[0].forward_s,
        ready_s=[at(moment) for moment in step.ready_s] or [at(step.computed_s)],
        after_s=step.after_s * scale,
    )


class RecordedTraining(Emulated):
    """Emulated in that nothing is computed; every moment is the recording's.

    Args:
        methods: one for every bucket of the recording, or one for all of them.
        schedules: the recorded steps, which take turns.
        number: which of the measured steps is played, counted from 0.
        as_ddp: exchanges are started as their buckets become full, and waited for after the last, as DDP does.
        divided: gradients are shares of the average already when a bucket is full: DDP divides as it fills one, which
            is part of the recorded moment, and only the sum is left to do.
    """

    def __init__(
        self,
        flat: FlatGradients,
        group: Group,
        methods: Sequence[Method],
        gradients: Sequence[Sequence[Tensor]],
        schedules: Sequence[Schedule],
        number: Callable[[], int],
        say: Say,
        *,
        as_ddp: bool,
        divided: bool,
    ) -> None:
        super().__init__(flat, group, methods, gradients, (), say)
        self._schedules, self._number = schedules, number
        self._in_order = starts_first if as_ddp else pipeline
        self._share = group.world_size if divided else 1
        if divided:
            self._stages = [[Stage(wire=each.wire) for each in stages] for stages in self._stages]

    def prepare(self) -> None:
        super().prepare()
        if self._share > 1:
            self.flat.data.div_(self._share)

    def play(self, execution: Execution) -> None:
        now = self._schedules[self._number() % len(self._schedules)]
        execution.waits_for_data(now.forward_s)
        last = len(self.methods) - 1
        for bucket in self._in_order(execution, self._stages):
            execution.until(now.ready_s[-1] if bucket == last else now.ready_s[bucket])
        execution.takes("optimizer", now.after_s)
