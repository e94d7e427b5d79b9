"""Mixed precision: autocast, and a loss scale that all ranks change together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from netsim_ddp.communication.agreement import Agreement
from netsim_ddp.communication.segments import Group, Wire
from netsim_ddp.compression.kernels import all_finite

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Forward passes inside run in ``precision``; the parameters stay float32."""
    return torch.autocast(device.type, DTYPES.get(precision, torch.float32), enabled=precision in DTYPES)


class LossScaler:
    """Loss scaling for float16 (Micikevicius et al. 2018, Sec. 3.2), with the rule of torch's GradScaler: half the
    scale after a gradient that overflowed, twice after ``interval`` steps without one.

    torch's own decides alone: a rank that skipped a step would leave the others waiting in the exchange, or feed an
    infinite gradient to error feedback, which never forgets it. Here the ranks agree, by one byte to each peer, before
    any of them compresses; a step that one of them must skip is skipped by all, and no residual has changed.
    """

    def __init__(self, group: Group, device: torch.device, *, scale: float = 65536.0, interval: int = 2000):
        self.scale, self.interval = scale, interval
        self._good = 0
        self._agreement = Agreement(group, device) if group.world_size > 1 else None
        self._overflowed = False

    @property
    def exchange(self) -> Wire | None:
        """To be run between :meth:`unscale` and :meth:`decide`; None where there is nobody to agree with."""
        return None if self._agreement is None else self._agreement.exchange

    def unscale(self, gradient: Tensor) -> None:
        """Take the scale out of ``gradient`` [N], in place, and vote."""
        gradient.mul_(1.0 / self.scale)
        self._overflowed = not all_finite(gradient)
        if self._agreement is not None:
            self._agreement.object(self._overflowed)

    def decide(self) -> bool:
        """Whether all ranks can take the step; the scale follows."""
        overflowed = self._overflowed if self._agreement is None else bool(self._agreement.objectors)
        if overflowed:
            self.scale, self._good = self.scale * 0.5, 0
            return False
        self._good += 1
        if self._good == self.interval:
            self.scale, self._good = self.scale * 2.0, 0
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale, "good": self._good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scale, self._good = float(state["scale"]), int(state["good"])
