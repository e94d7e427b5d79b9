"""The programs that one rank can run: what a step does, in which order, piece by piece.

A program is written against :class:`netsim_ddp.steps.execution.Execution`, which times its pieces as they come or
measures and replays them.
"""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from netsim_ddp.communication.averaging import statistics_of
from netsim_ddp.communication.executor import pipeline, stages
from netsim_ddp.communication.flat import FlatGradients, check_layout
from netsim_ddp.communication.segments import Group, Method, Wire
from netsim_ddp.compression.statistics import Statistics
from netsim_ddp.ranks.channel import COMMUNICATING, COMPUTING
from netsim_ddp.steps.execution import Concurrent, Execution, Replayed
from netsim_ddp.steps.phases import StepSample
from netsim_ddp.workloads.workload import Workload

Say = Callable[[str], None]


class Program(ABC):
    """One rank's step, and what it must have sent.

    Args:
        methods: one for every bucket of ``flat``, or one for all of it.
    """

    def __init__(self, flat: FlatGradients, group: Group, methods: Sequence[Method], say: Say) -> None:
        self.flat, self.methods, self.say = flat, methods, say
        # One rank has nobody to exchange with; what it would compress and put back is left as it is.
        self._stages = [stages(method.segments()) if group.world_size > 1 else [] for method in methods]
        self.wires: Sequence[Wire] = [
            stage.wire for bucket in self._stages for stage in bucket if stage.wire is not None
        ]
        self.residual_bytes = sum(method.residual_bytes for method in methods)
        # Small buckets may prefer another collective than large ones.
        self.collective = "+".join(sorted({each.collective for each in methods if each.collective})) or None

    def statistics(self, *, layers: bool) -> Statistics | None:
        """What this rank's methods sent and kept back in the last step; None where none selects."""
        return statistics_of(self.methods, self.wires, layers=layers) if self.wires else None

    def step(self, execution: Execution) -> StepSample:
        """Run one step."""
        self.prepare()
        sample = execution.step(self.play)
        sample.loss = self.loss()
        return sample

    @abstractmethod
    def prepare(self) -> None:
        """What the next step needs and nobody waits for: its batch, or its recorded gradient."""

    @abstractmethod
    def play(self, execution: Execution) -> None:
        """The step's pieces."""

    @abstractmethod
    def reduced(self) -> Tensor:
        """What must be the same bits on every rank after a step."""

    def loss(self) -> float | None:
        """The loss of the last step; None where nothing is trained."""
        return None


class RealTraining(Program):
    """Forward, backward and optimizer of a real model; a subclass says when what is exchanged."""

    def __init__(
        self,
        workload: Workload,
        flat: FlatGradients,
        group: Group,
        methods: Sequence[Method],
        optimizer: torch.optim.Optimizer,
        say: Say,
    ) -> None:
        super().__init__(flat, group, methods, say)
        self.workload, self.optimizer = workload, optimizer
        self._model = workload.model
        self._loss = torch.zeros(())

    def prepare(self) -> None:
        check_layout(self.flat, self.workload.model)
        self._inputs, self._targets = self.workload.next_batch()
        self.say(COMPUTING)

    def _backward(self) -> None:
        self._loss = self.workload.loss(self._model(self._inputs), self._targets)
        self._loss.backward()  # type: ignore[no-untyped-call]

    def _update(self) -> None:
        """Give the optimizer every average; it leaves parameters alone whose bucket the ranks skipped."""
        for method in self.methods if self.wires else ():
            if method.skipped:
                for parameter in method.flat.parameters:
                    parameter.grad = None
            else:
                method.flat.attach(method.average)
                method.flat.scatter(method.average)  # to parameters that are not float32
        self.optimizer.step()

    def loss(self) -> float:
        return self._loss.item()

    def reduced(self) -> Tensor:
        return parameters_of(self.workload.model)


class Training(RealTraining):
    """Nothing overlaps: forward, backward, the method's segments, optimizer."""

    def play(self, execution: Execution) -> None:
        execution.local("other", self.flat.clear)
        execution.compute(self._compute)
        execution.local("other", lambda: self.say(COMMUNICATING))
        for _ in pipeline(execution, self._stages):
            pass  # there is one bucket, and it is there
        execution.local("optimizer", self._update)

    def _compute(self) -> None:
        self._backward()
        self.flat.gather()


class BucketedTraining(RealTraining):
    """DDP's schedule with any method: a bucket's exchange starts as soon as backward has filled it and those before
    it. ``methods`` are the buckets'."""

    def __init__(
        self,
        workload: Workload,
        flat: FlatGradients,
        group: Group,
        methods: Sequence[Method],
        optimizer: torch.optim.Optimizer,
        say: Say,
    ) -> None:
        super().__init__(workload, flat, group, methods, optimizer, say)
        self._sizes = [len(method.flat.parameters) for method in methods]
        self._missing = list(self._sizes)
        self._filled: Callable[[int], None] = _nothing
        for number, method in enumerate(methods):
            for parameter in method.flat.parameters:
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    lambda _, number=number: self._count_gradient(number)
                )

    def _count_gradient(self, number: int) -> None:
        self._missing[number] -= 1
        if self._missing[number] == 0:
            self.methods[number].flat.gather()
            self._filled(number)

    def _compute(self) -> None:
        self._backward()
        # Buckets with parameters that took no part are as full as they get.
        for number, missing in enumerate(self._missing):
            if missing:
                self.methods[number].flat.gather()
                self._missing[number] = 0

    def play(self, execution: Execution) -> None:
        execution.local("other", self._clear)
        if isinstance(execution, Replayed):
            self._filled = _nothing
            execution.compute_once(self._compute)
            for bucket in pipeline(execution, self._stages):
                execution.filled(bucket)
        else:
            assert isinstance(execution, Concurrent)
            self._overlap(execution)
        execution.local("optimizer", self._update)

    def take(self) -> list[float]:
        """One pass without any exchange; see :class:`netsim_ddp.steps.compute_times.Passes`."""
        self.prepare()
        self._clear()
        moments: dict[int, float] = {}

        def filled(number: int) -> None:
            moments[number] = time.monotonic()

        self._filled = filled
        self._synchronize()
        begin = time.monotonic()
        self._compute()
        self._synchronize()
        end = time.monotonic()
        self.optimizer.step()
        # A bucket that never filled is there when backward is through; the last one is the end of it.
        last = len(self._sizes) - 1
        times = [end if number == last else moments.get(number, end) for number in range(last + 1)]
        # A bucket that fills before an earlier one waits for its turn.
        reached = list(itertools.accumulate(times, max))
        return [now - then for then, now in zip([begin, *reached], reached, strict=False)]

    def _synchronize(self) -> None:
        if self.workload.device.type == "cuda":
            torch.cuda.synchronize()

    def _overlap(self, execution: Concurrent) -> None:
        """Exchange buckets while backward goes on."""
        buckets = pipeline(execution, self._stages)
        wanted = next(buckets, None)

        def advance(_: int) -> None:
            nonlocal wanted
            while wanted is not None and self._missing[wanted] == 0:
                execution.computed()
                wanted = next(buckets, None)

        # The last bucket's exchange is waited for outside of backward.
        self._filled = lambda number: advance(number) if wanted != len(self._sizes) - 1 else None
        self._compute()
        execution.computed()
        advance(0)

    def _clear(self) -> None:
        self.flat.clear()
        self._missing = list(self._sizes)


class Emulated(Program):
    """An accelerator that takes its time for forward, backward and optimizer; real gradients, compression and traffic.

    Args:
        gradients: sets of recorded gradients, which take turns; loading them is outside the clock.
        full: for each of ``methods`` when its gradient is there, seconds after the step's begin.
    """

    def __init__(
        self,
        flat: FlatGradients,
        group: Group,
        methods: Sequence[Method],
        gradients: Sequence[Sequence[Tensor]],
        full: Sequence[float],
        say: Say,
    ) -> None:
        super().__init__(flat, group, methods, say)
        self._gradients, self._full = itertools.cycle(gradients), full

    def prepare(self) -> None:
        for view, gradient in zip(self.flat.views, next(self._gradients), strict=True):
            view.copy_(gradient)
        self.say(COMPUTING)

    def play(self, execution: Execution) -> None:
        for bucket in pipeline(execution, self._stages):
            execution.until(self._full[bucket])

    def reduced(self) -> Tensor:
        averages = [method.average for method in self.methods]
        return averages[0] if len(averages) == 1 else torch.cat(averages)


def parameters_of(model: nn.Module) -> Tensor:
    """All parameters of ``model``, float32 [N]."""
    return torch.cat([parameter.detach().reshape(-1).float() for parameter in model.parameters()])


def _nothing(_: int) -> None:
    """Does nothing: no one waits for the bucket that is full."""
