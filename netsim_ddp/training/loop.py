"""One rank's training step: micro-batches, scaling, clipping, the exchange, the update. Timed piece by piece."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from netsim_ddp.communication import cost
from netsim_ddp.communication.flat import FlatGradients, check_layout
from netsim_ddp.communication.framing import wire_bytes
from netsim_ddp.compression.kernels import NonFiniteGradient, all_finite
from netsim_ddp.errors import NetsimError
from netsim_ddp.ranks.channel import COMMUNICATING, COMPUTING
from netsim_ddp.scenario import TrainScenario
from netsim_ddp.steps.execution import Execution
from netsim_ddp.steps.phases import StepSample
from netsim_ddp.training.exchange import Exchange
from netsim_ddp.training.precision import LossScaler, autocast
from netsim_ddp.workloads.workload import Workload

SMALLEST_SCALE = 2.0**-10
"""A loss scale starts at 65536; what overflows still at this one is not finite."""
_REMEDY = "a lower --learning-rate, --warmup-epochs or --clip-norm 1"
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


@dataclasses.dataclass
class Pending:
    """What residuals held when all ranks but one were left: nothing is exchanged now, so it goes into the first step.

    Attributes:
        gradient: float32 [N].
        into_gradient: the factor with which it is added to the gradient; 0 where it holds momentum already, and the
            optimizer would multiply it: then the parameters take it as it is.
    """

    gradient: Tensor
    into_gradient: float


class Trainer:
    """Steps of one rank.

    Args:
        workload: at the batch that comes next.
        scenario: a resolved training scenario.
        alone: there is one rank. Nothing is exchanged, so what the method does to its own gradient before is done here.
        params: of the method; ``nonfinite=skip`` and ``clip`` matter.
    """

    def __init__(
        self,
        workload: Workload,
        flat: FlatGradients,
        exchange: Exchange,
        scaler: LossScaler | None,
        scenario: TrainScenario,
        say: Callable[[str], None],
        *,
        alone: bool,
        params: Mapping[str, Any],
    ) -> None:
        self.workload, self.flat, self.exchange, self.scaler = workload, flat, exchange, scaler
        self.totals = Totals()
        self.loss = 0.0
        """The loss of the last step, the mean over its micro-batches."""
        self.pending: Pending | None = None
        self._accumulate = scenario.accumulate
        clips = [scenario.clip_norm, params.get("clip") if alone else None]
        self._clip: float | None = min((clip for clip in clips if clip is not None), default=None)
        self._precision = scenario.precision
        self._say = say
        self._alone, self._forgiving = alone, params.get("nonfinite") == "skip"
        self._finite = self._taken = True
        self._gradient_scale = 1.0
        """The loss's scale, where this step's gradient still has it."""

    def step(self, execution: Execution, rate: float, where: str) -> StepSample:
        """One update of the parameters, at learning rate ``rate``. ``where`` names the step in an error.

        Raises:
            NetsimError: the loss, or outside of loss scaling a gradient, is not finite.
        """
        self._where, self._rate = where, rate
        for group in self.exchange.optimizer.param_groups:
            group["lr"] = rate
        sample = execution.step(self._play)
        sample.loss = self.loss
        self.totals.add(sample)
        self.totals.steps += 1
        self.totals.skipped += not self._taken
        return sample

    def _play(self, execution: Execution) -> None:
        execution.local("other", self._clear)
        for _ in range(self._accumulate):
            self._say(COMPUTING)
            execution.local("other", self._fetch)
            execution.local("compute", self._compute)
            execution.local("other", self._count_batch)
        execution.local("other", self._finish_gradient)
        self._say(COMMUNICATING)
        self._taken = self._finite and self._exchange(execution)
        if self.scaler is not None:
            self.scaler.update(taken=self._taken)
            if not self._taken:
                self._check_scale()

    def _exchange(self, execution: Execution) -> bool:
        if self.pending is not None:
            execution.local("other", self._apply_pending)
        try:
            taken = self.exchange.play(execution, None if self.scaler is None else self._gradient_scale)
        except NonFiniteGradient:  # on every rank
            if self.scaler is None:
                raise
            taken = False
        segments = list(self.exchange.wires)
        self.totals.payload_bytes += cost.payload_bytes(segments)
        self.totals.predicted_bytes += wire_bytes(cost.messages(segments))
        return taken

    def _clear(self) -> None:
        self.flat.clear()
        self.loss = 0.0

    def _fetch(self) -> None:
        check_layout(self.flat, self.workload.model)
        self._inputs, self._targets = self.workload.next_batch()

    def _compute(self) -> None:
        with autocast(self.workload.device, self._precision):
            self._outputs = self.workload.model(self._inputs)
            loss = self.workload.loss(self._outputs, self._targets)
        self._loss = float(loss.detach())
        if not math.isfinite(self._loss):
            self._say(COMPUTING)
            raise NetsimError(self._lost(loss), hint=_REMEDY)
        scaled = loss / self._accumulate if self._accumulate > 1 else loss
        if self.scaler is not None:
            scaled = scaled * self.scaler.scale
        scaled.backward()  # type: ignore[no-untyped-call]

    def _lost(self, loss: Tensor) -> str:
        """What to say of a loss that is not finite."""
        with autocast(
            self.workload.device, self._precision
        ):  # what overflows in half precision does so only there
            layer = activation_fault(self.workload.model, self._inputs)
        text = f"the loss is not finite ({self._loss}) at {self._where}"
        if layer is not None:
            return f"{text}: the first such output is that of layer {layer}"
        loss.backward()  # type: ignore[no-untyped-call]
        parameter = gradient_fault(self.flat)
        return text if parameter is None else f"{text}: so is the gradient of {parameter}"

    def _count_batch(self) -> None:
        totals = self.totals
        correct, counted = self.workload.correct(self._outputs, self._targets)
        totals.correct += int(correct)
        totals.counted += counted
        totals.batches += 1
        totals.loss += self._loss
        self.loss += self._loss / self._accumulate

    def _finish_gradient(self) -> None:
        data = self.flat.data
        self.flat.gather()
        self._gradient_scale = 1.0
        if self.scaler is not None and self.exchange.takes_scaled:
            self._gradient_scale = self.scaler.scale
        elif self.scaler is not None:
            data.div_(self.scaler.scale)
        # Several ranks under a scaler learn from the exchange that one of them has overflowed.
        if self._alone or not (self._forgiving or self.scaler is not None):
            self._finite = all_finite(data)
            if not self._finite and not self._forgiving and self.scaler is None:
                raise NetsimError(
                    f"the gradient of {gradient_fault(self.flat)} is not finite at {self._where}",
                    hint=_REMEDY,
                )
        if self._clip is not None:
            norm = float(torch.linalg.vector_norm(data, dtype=torch.float64))
            if norm > self._clip * self._gradient_scale:
                data.mul_(self._clip * self._gradient_scale / norm)

    def _check_scale(self) -> None:
        """A gradient that is not finite at any scale would have every step skipped, without a word."""
        assert self.scaler is not None
        if self.scaler.scale < SMALLEST_SCALE and (parameter := gradient_fault(self.flat)) is not None:
            raise NetsimError(
                f"the gradient of {parameter} is not finite at {self._where}, however small the loss is scaled",
                hint=_REMEDY,
            )

    def _apply_pending(self) -> None:
        """Give the first step that is taken what a residual held."""
        pending, self.pending = self.pending, None
        assert pending is not None
        if pending.into_gradient:
            self.flat.data.add_(pending.gradient, alpha=pending.into_gradient)
            return
        with torch.no_grad():
            views = self.flat.views_of(pending.gradient)
            for parameter, view in zip(self.flat.parameters, views, strict=True):
                parameter.add_(view, alpha=-self._rate)


def gradient_fault(flat: FlatGradients) -> str | None:
    """The first parameter, in the model's order, whose gradient holds a NaN or inf."""
    named = zip(flat.names, flat.views, strict=True)
    return next((name for name, view in named if not bool(torch.isfinite(view).all())), None)


def activation_fault(model: nn.Module, inputs: Tensor) -> str | None:
    """The first layer, in the order of the forward pass, whose output for ``inputs`` holds a NaN or inf.

    Runs the forward pass once more; a layer that draws random numbers may behave differently this time.
    """
    found: list[str] = []
    hooks = []
    for name, layer in model.named_modules():
        if next(layer.children(), None) is None:

            def look(_: nn.Module, __: object, output: object, name: str = name) -> None:
                if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                    found.append(name or "the model itself")

            hooks.append(layer.register_forward_hook(look))
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
