"""SGD for gradients that carry their momentum already."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from netsim_ddp.communication.ddp_checks import check_corrected, watch


class CorrectedSGD(torch.optim.Optimizer):
    """Takes averages whose momentum was accumulated before they were sent (momentum correction, Lin et al. 2018), and
    gives weight decay the momentum that it has in plain SGD.

    ``torch.optim.SGD`` with momentum m adds the decay to the gradient, so that it acts 1 / (1 - m) times in the end.
    Where the method has the momentum and the optimizer none, the decay would lose that factor. Here it has a velocity
    of its own, which every rank computes alike: v = m v + weight_decay x, then x -= lr (average + v). At ratio 1 this
    is SGD with momentum.

    Args:
        momentum: the method's, in [0, 1).
        weight_decay: as that of ``torch.optim.SGD``.

    Raises:
        ValueError: ``momentum`` outside [0, 1), or ``weight_decay`` below 0.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        if isinstance(lr, bool | str) or not 0 <= lr < math.inf:
            raise ValueError(f"lr={lr!r} must be a number of at least 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum {momentum} must be in [0, 1)")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"weight_decay {weight_decay} must be at least 0")
        watch()
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    takes_corrected = True
    """Its momentum is that of the gradients, and not applied again."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override] # torch's answers a closure's loss
        """One update from ``grad``; a parameter without one is left alone.

        Raises:
            UsageError: DDP's or the backend's gradients do not carry the momentum that this takes for granted.
        """
        if closure is not None:
            raise ValueError("a closure is not supported: the gradients must be there")
        for group in self.param_groups:
            if group["momentum"]:
                check_corrected(group["params"], group["momentum"])
            rate, decay = group["lr"], group["weight_decay"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if decay:
                    velocity = self._velocity_of(parameter)
                    velocity.mul_(group["momentum"]).add_(parameter, alpha=decay)
                    parameter.add_(velocity, alpha=-rate)
                parameter.add_(parameter.grad, alpha=-rate)

    def _velocity_of(self, parameter: Tensor) -> Tensor:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state[DECAY] = torch.zeros_like(parameter)
        return state[DECAY]


DECAY = "decay_velocity"
"""The key of a parameter's state."""
