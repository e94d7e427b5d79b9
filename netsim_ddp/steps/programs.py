"""The programs that one rank can run: what a step does, in which order, piece by piece.

A program is written against :class:`netsim_ddp.steps.execution.Execution`, which times its pieces as they come or
measures and replays them.
"""

from __future__ import annotations

import functools
import itertools
import operator
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from netsim_ddp.communication.cost import payload_bytes
from netsim_ddp.communication.flat import FlatGradients, check_layout
from netsim_ddp.communication.pipeline import Stage, ddp_buckets, pipeline, stages
from netsim_ddp.communication.segments import Group, Method, Wire
from netsim_ddp.compression.statistics import Statistics
from netsim_ddp.ranks.channel import COMMUNICATING, COMPUTING
from netsim_ddp.results.ready import ReadyTimes
from netsim_ddp.steps.execution import Concurrent, Execution, Replayed
from netsim_ddp.steps.phases import StepSample
from netsim_ddp.workloads.workload import Workload

Say = Callable[[str], None]


class Program(ABC):
    """One rank's step, and what it must have sent."""

    residual_bytes: int = 0
    wires: Sequence[Wire] = ()
    collective: str | None = None
    methods: Sequence[Method] = ()

    def statistics(self, *, layers: bool) -> Statistics | None:
        """What this rank's methods sent and kept back in the last step; None where none selects."""
        found = [each for method in self.methods if (each := method.statistics(layers=layers)) is not None]
        if not found or not self.wires:
            return None
        return replace(functools.reduce(operator.add, found), payload_bytes=payload_bytes(self.wires))

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
        """Of the last step; None where nothing is trained."""
        return None


def _collective(methods: Sequence[Method]) -> str | None:
    """What the methods of all buckets use; small buckets may prefer another than large ones."""
    used = sorted({method.collective for method in methods if method.collective is not None})
    return "+".join(used) or None


def _staged(method: Method, group: Group) -> list[Stage]:
    """One rank has nobody to exchange with; what it would compress and put back is left as it is."""
    return stages(method.segments()) if group.world_size > 1 else []


def _apply(methods: Sequence[Method]) -> None:
    """Give the optimizer every average; parameters of a bucket that the ranks skipped have none, so it leaves them."""
    for method in methods:
        if method.skipped:
            for parameter in method.flat.parameters:
                parameter.grad = None
        else:
            method.flat.attach(method.average)
            method.flat.scatter(method.average)  # to parameters that are not float32


def _wires(buckets: Sequence[Sequence[Stage]]) -> list[Wire]:
    return [stage.wire for bucket in buckets for stage in bucket if stage.wire is not None]


class Training(Program):
    """Real training: forward, backward, the method's segments, optimizer; nothing overlaps."""

    def __init__(
        self,
        workload: Workload,
        method: Method,
        group: Group,
        optimizer: torch.optim.Optimizer,
        say: Say,
    ) -> None:
        self.workload, self.method, self.optimizer, self.say = workload, method, optimizer, say
        self.methods = [method]
        self.flat = method.flat
        self._stages = [_staged(method, group)]
        self.wires = _wires(self._stages)
        self.residual_bytes = method.residual_bytes
        self.collective = _collective([method])
        self._loss = torch.zeros(())

    def prepare(self) -> None:
        check_layout(self.flat, self.workload.model)
        self._inputs, self._targets = self.workload.next_batch()
        self.say(COMPUTING)

    def play(self, execution: Execution) -> None:
        execution.local("other", self._clear)
        execution.compute(self._compute)
        execution.local("other", lambda: self.say(COMMUNICATING))
        for _ in pipeline(execution, self._stages):
            pass  # there is one bucket, and it is there
        execution.local("optimizer", self._update)

    def _clear(self) -> None:
        self.flat.clear()

    def _compute(self) -> None:
        self._loss = self.workload.loss(self.workload.model(self._inputs), self._targets)
        self._loss.backward()  # type: ignore[no-untyped-call]
        self.flat.gather()

    def _update(self) -> None:
        if self.wires:
            _apply(self.methods)
        self.optimizer.step()

    def loss(self) -> float:
        return self._loss.item()

    def reduced(self) -> Tensor:
        return parameters_of(self.workload.model)


class BucketedTraining(Program):
    """Real training on DDP's schedule with any method: a bucket's exchange starts as soon as backward has filled it
    and those before it."""

    def __init__(
        self,
        workload: Workload,
        flat: FlatGradients,
        group: Group,
        build: Callable[[FlatGradients], Method],
        optimizer: torch.optim.Optimizer,
        say: Say,
    ) -> None:
        self.workload, self.optimizer, self.say, self.flat = workload, optimizer, say, flat
        parts = [flat.part(first, last) for first, last in ddp_buckets(flat)]
        self.methods = [build(part) for part in parts]
        self._stages = [_staged(method, group) for method in self.methods]
        self.wires = _wires(self._stages)
        self.residual_bytes = sum(method.residual_bytes for method in self.methods)
        self.collective = _collective(self.methods)
        self._loss = torch.zeros(())
        self._sizes = [len(part.parameters) for part in parts]
        self._missing = list(self._sizes)
        self._filled: Callable[[int], None] = lambda _: None
        for number, part in enumerate(parts):
            for parameter in part.parameters:
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    lambda _, number=number: self._arrived(number)
                )

    def _arrived(self, number: int) -> None:
        self._missing[number] -= 1
        if self._missing[number] == 0:
            self.methods[number].flat.gather()
            self._filled(number)

    def _end_of_backward(self) -> None:
        """Buckets with parameters that took no part are as full as they get."""
        for number, missing in enumerate(self._missing):
            if missing:
                self.methods[number].flat.gather()
                self._missing[number] = 0

    def prepare(self) -> None:
        check_layout(self.flat, self.workload.model)
        self._inputs, self._targets = self.workload.next_batch()
        self.say(COMPUTING)

    def play(self, execution: Execution) -> None:
        execution.local("other", self._clear)
        if isinstance(execution, Replayed):
            self._one_after_the_other(execution)
        else:
            assert isinstance(execution, Concurrent)
            self._as_it_comes(execution)
        execution.local("optimizer", self._update)

    def _one_after_the_other(self, execution: Replayed) -> None:
        execution.compute_once(self._whole_backward)
        for bucket in pipeline(execution, self._stages):
            execution.filled(bucket)

    def _whole_backward(self) -> None:
        self._filled = lambda _: None
        self._compute()
        self._end_of_backward()

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
        self._end_of_backward()
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

    def _as_it_comes(self, execution: Concurrent) -> None:
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
        self._end_of_backward()
        execution.computed()
        advance(0)

    def _clear(self) -> None:
        self.flat.clear()
        self._missing = list(self._sizes)

    def _compute(self) -> None:
        self._loss = self.workload.loss(self.workload.model(self._inputs), self._targets)
        self._loss.backward()  # type: ignore[no-untyped-call]

    def _update(self) -> None:
        if self.wires:
            _apply(self.methods)
        self.optimizer.step()

    def loss(self) -> float:
        return self._loss.item()

    def reduced(self) -> Tensor:
        return parameters_of(self.workload.model)


class Emulated(Program):
    """An accelerator that takes ``compute_s`` for forward, backward and optimizer; real gradients, compression and
    traffic. With ``ready`` they are exchanged in DDP's buckets, each as soon as a real backward pass has it full;
    without, as a whole at the end."""

    def __init__(
        self,
        flat: FlatGradients,
        group: Group,
        build: Callable[[FlatGradients], Method],
        gradients: list[list[Tensor]],
        compute_s: float,
        ready: ReadyTimes | None,
        say: Say,
    ) -> None:
        self.flat, self.say = flat, say
        self._source = _Recorded(flat, gradients)
        parts, self._full = [flat], [compute_s]
        if ready is not None:
            parts = [flat.part(begin, end) for begin, end in ddp_buckets(flat)]
            self._full = ready.bucket_times(compute_s, [part.names for part in parts])
        self.methods = [build(part) for part in parts]
        self._stages = [_staged(method, group) for method in self.methods]
        self.wires = _wires(self._stages)
        self.residual_bytes = sum(method.residual_bytes for method in self.methods)
        self.collective = _collective(self.methods)

    def prepare(self) -> None:
        self._source.load_next()
        self.say(COMPUTING)

    def play(self, execution: Execution) -> None:
        for bucket in pipeline(execution, self._stages):
            execution.until(self._full[bucket])

    def reduced(self) -> Tensor:
        return torch.cat([method.average for method in self.methods])


@dataclass
class _Recorded:
    """Recorded gradients in rotation; loading them is outside the clock."""

    flat: FlatGradients
    sets: list[list[Tensor]]
    next: int = 0

    def load_next(self) -> None:
        for view, gradient in zip(self.flat.views, self.sets[self.next], strict=True):
            view.copy_(gradient)
        self.next = (self.next + 1) % len(self.sets)


def parameters_of(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1).float() for parameter in model.parameters()])
