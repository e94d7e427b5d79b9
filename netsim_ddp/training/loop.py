"""One rank's training step: micro-batches, scaling, clipping, the exchange, the update. Timed piece by piece."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from netsim_ddp.bench.execution import Execution
from netsim_ddp.bench.phases import StepSample
from netsim_ddp.communication import cost
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.framing import wire_bytes
from netsim_ddp.communication.segments import Segment
from netsim_ddp.compression.kernels import all_finite
from netsim_ddp.errors import NetsimError
from netsim_ddp.training.exchange import Exchange
from netsim_ddp.training.faults import activation_fault, gradient_fault
from netsim_ddp.training.precision import LossScaler, autocast
from netsim_ddp.workloads import Workload

_SHOWN_AS = {"send": "communicate", "wire": "communicate"}


@dataclasses.dataclass
class Totals:
    """What one rank has done of an epoch; plain numbers, so that a checkpoint can keep them.

    ``clock_s`` is the time its steps took: the training clock stands still between them.
    """

    steps: int = 0
    skipped: int = 0
    batches: int = 0
    loss: float = 0.0
    correct: int = 0
    counted: int = 0
    payload_bytes: int = 0
    predicted_bytes: int = 0
    clock_s: float = 0.0
    phases_s: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, sample: StepSample) -> None:
        """Count the laps of a step."""
        self.clock_s += sample.end - sample.begin
        for phase, begin, end in sample.laps:
            name = _SHOWN_AS.get(phase, phase)
            self.phases_s[name] = self.phases_s.get(name, 0.0) + end - begin


class Trainer:
    """Steps of one rank.

    Args:
        workload: at the batch that comes next.
        scenario: a resolved training scenario, as JSON carries it.
        pending: float32 [N], added to the first gradient: what a residual held that has nowhere else to go.
    """

    def __init__(
        self,
        workload: Workload,
        flat: FlatGradients,
        exchange: Exchange,
        scaler: LossScaler | None,
        scenario: Mapping[str, Any],
        say: Callable[[str], None],
        *,
        forgiving: bool = False,
    ) -> None:
        self.workload, self.flat, self.exchange, self.scaler = workload, flat, exchange, scaler
        self.totals = Totals()
        self.loss = 0.0
        """Of the last step, the mean over its micro-batches."""
        self.pending: Tensor | None = None
        self._accumulate: int = scenario["accumulate"]
        self._clip: float | None = scenario["clip_norm"]
        self._precision: str = scenario["precision"]
        self._say = say
        self._forgiving = forgiving
        """The method itself skips a step whose gradient is not finite."""
        self._where = ""

    def step(self, execution: Execution, rate: float, where: str) -> StepSample:
        """One update of the parameters, at learning rate ``rate``. ``where`` names the step in an error.

        Raises:
            NetsimError: the loss, or outside of loss scaling a gradient, is not finite.
        """
        self._where = where
        for group in self.exchange.optimizer.param_groups:
            group["lr"] = rate
        taken = True

        def play(run: Execution) -> None:
            nonlocal taken
            taken = self._play(run)

        sample = execution.step(play)
        sample.loss = self.loss
        totals = self.totals
        totals.add(sample)
        totals.steps += 1
        totals.skipped += not taken
        return sample

    def _play(self, execution: Execution) -> bool:
        self._say("compute")
        execution.local("other", self._clear)
        for _ in range(self._accumulate):
            execution.local("other", self._fetch)
            execution.local("compute", self._compute)
            execution.local("other", self._look_at_the_batch)
        execution.local("other", self._finish_gradient)
        self._say("communicate")
        if self.scaler is not None:
            if (vote := self.scaler.exchange) is not None:
                execution.start(vote)
                execution.finish(vote)
                self._count([vote])
            if not self.scaler.decide():
                return False
        taken = self.exchange.play(execution)
        self._count(self.exchange.wires)
        return taken

    def _count(self, wires: Any) -> None:
        segments: list[Segment] = list(wires)
        self.totals.payload_bytes += cost.payload_bytes(segments)
        self.totals.predicted_bytes += wire_bytes(cost.messages(segments))

    def _clear(self) -> None:
        self.flat.attach()
        self.flat.data.zero_()
        self.loss = 0.0

    def _fetch(self) -> None:
        self._inputs, self._targets = self.workload.next_batch()

    def _compute(self) -> None:
        with autocast(self.workload.device, self._precision):
            self._outputs = self.workload.model(self._inputs)
            loss = self.workload.loss(self._outputs, self._targets)
        self._loss = float(loss.detach())
        if not math.isfinite(self._loss):
            self._say("compute")
            raise NetsimError(self._lost(loss), hint=_REMEDY)
        scaled = loss / self._accumulate if self._accumulate > 1 else loss
        if self.scaler is not None:
            scaled = scaled * self.scaler.scale
        scaled.backward()  # type: ignore[no-untyped-call]

    def _lost(self, loss: Tensor) -> str:
        """What to say of a loss that is not finite."""
        layer = activation_fault(self.workload.model, self._inputs)
        text = f"the loss is not finite ({self._loss}) at {self._where}"
        if layer is not None:
            return f"{text}: the first such output is that of layer {layer}"
        loss.backward()  # type: ignore[no-untyped-call]
        parameter = gradient_fault(self.flat)
        return text if parameter is None else f"{text}: so is the gradient of {parameter}"

    def _look_at_the_batch(self) -> None:
        totals = self.totals
        correct, counted = self.workload.correct(self._outputs.detach(), self._targets)
        totals.correct += int(correct)
        totals.counted += counted
        totals.batches += 1
        totals.loss += self._loss
        self.loss += self._loss / self._accumulate

    def _finish_gradient(self) -> None:
        data = self.flat.data
        self.flat.gather()
        if self.scaler is not None:
            self.scaler.unscale(data)
        elif not self._forgiving and not all_finite(data):
            raise NetsimError(
                f"the gradient of {gradient_fault(self.flat)} is not finite at {self._where}", hint=_REMEDY
            )
        if self._clip is not None:
            norm = float(torch.linalg.vector_norm(data, dtype=torch.float64))
            if norm > self._clip:
                data.mul_(self._clip / norm)
        if self.pending is not None:
            data.add_(self.pending)
            self.pending = None


_REMEDY = "a lower --learning-rate, --warmup-epochs or --clip-norm 1"
