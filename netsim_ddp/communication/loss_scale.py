"""The scale of the loss: residuals, velocity and limits are kept in the units of the gradient without it.

A residual of scaled gradients would be worth twice as much after the scale has doubled, and half after an overflow.
So what a method gets is divided by the scale, and the average is multiplied by it again, within the copies that are
made anyway; ``scaler.unscale_`` and ``scaler.step`` then find what they expect.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch.amp import GradScaler
from torch.amp.grad_scaler import OptState

from netsim_ddp.errors import UsageError

Scaler = GradScaler | Literal["auto"] | None


class LossScale:
    """What the gradients of this process are multiplied by.

    Args:
        scaler: who scales the loss; None where nobody does. ``"auto"`` looks once, when the first gradients are there,
            for the only ``GradScaler`` of this process that has scaled a loss.

    Raises:
        UsageError: ``scaler`` is something else.
    """

    def __init__(self, scaler: Scaler = "auto") -> None:
        if not (scaler is None or isinstance(scaler, GradScaler) or scaler == "auto"):
            raise UsageError(
                f"scaler={scaler!r} is not a torch.amp.GradScaler",
                hint='give the GradScaler that scales this loss, None if there is none, or "auto"',
            )
        self.scaler: Scaler = scaler

    def now(self) -> float:
        """The factor that this step's gradients carry; 1 where nobody scales.

        Raises:
            UsageError: several scalers could be meant.
        """
        if self.scaler == "auto":
            self.scaler = _only_scaler()
        scaler = self._enabled()
        return 1.0 if scaler is None else scaler.get_scale()

    @property
    def active(self) -> bool:
        """Whether a scaler will look at the gradients, and skips the step where they are not finite."""
        return self._enabled() is not None

    def _enabled(self) -> GradScaler | None:
        return self.scaler if isinstance(self.scaler, GradScaler) and self.scaler.is_enabled() else None

    def check_still_scaled(self, parameters: Iterable[torch.Tensor]) -> None:
        """Refuse gradients that the scaler has unscaled already: each rank has then looked at its own gradient alone,
        and would skip a step that the others take.

        Raises:
            UsageError: it has.
        """
        stages: dict[int, dict[str, Any]] = getattr(self._enabled(), "_per_optimizer_states", {})
        unscaled = {key for key, state in stages.items() if state["stage"] is OptState.UNSCALED}
        if not unscaled:
            return
        ours = {id(parameter) for parameter in parameters}
        for optimizer in instances(torch.optim.Optimizer):
            if id(optimizer) in unscaled and any(
                id(parameter) in ours for group in optimizer.param_groups for parameter in group["params"]
            ):
                raise UsageError(
                    "these gradients have been through scaler.unscale_(optimizer): every rank has then decided for "
                    "itself whether to skip the step",
                    hint="call allreduce_gradients() between backward() and scaler.unscale_(optimizer)",
                )


def _only_scaler() -> GradScaler | None:
    """The one enabled scaler that has scaled a loss in this process."""
    found: list[GradScaler] = [
        scaler
        for scaler in instances(GradScaler)
        if scaler.is_enabled() and getattr(scaler, "_scale", None) is not None
    ]
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} GradScalers are in use in this process, and netsim cannot tell whose scale these gradients "
            "carry",
            hint="name it: scaler=my_scaler, or scaler=None where this model's loss is not scaled",
        )
    if not found:
        return None
    warnings.warn(
        f"a GradScaler is in use (scale {found[0].get_scale():g}): gradients are taken to carry its scale. Name it to "
        "be sure, scaler=my_scaler, or scaler=None where this model's loss is not scaled",
        UserWarning,
        stacklevel=2,
    )
    return found[0]


def instances(kind: type[Any]) -> list[Any]:
    """Returns every live object of ``kind``. By its type alone: some objects do things when they are asked for their
    class; and by the type's identity, since a process has half a million objects."""
    kinds = {id(kind)}
    waiting = [kind]
    while waiting:
        waiting += (below := waiting.pop().__subclasses__())
        kinds |= {id(each) for each in below}
    return [each for each in gc.get_objects() if id(type(each)) in kinds]
