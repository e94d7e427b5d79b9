"""Mixed precision: autocast, and a loss scale that all ranks change together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Forward passes inside run in ``precision``; the parameters stay float32."""
    return torch.autocast(device.type, DTYPES.get(precision, torch.float32), enabled=precision in DTYPES)


class LossScaler:
    """Loss scaling for float16 (Micikevicius et al. 2018, Sec. 3.2), with the rule of torch's GradScaler: half the
    scale after a gradient that overflowed, twice after ``interval`` steps without one.

    torch's own decides on each rank by itself. Here the exchange decides, which all ranks refuse alike: the average is
    not finite, or the method has found that a rank's gradient is not, and then nothing that it keeps has changed.
    """

    def __init__(self, *, scale: float = 65536.0, interval: int = 2000) -> None:
        self.scale, self.interval = scale, interval
        self._good = 0

    def update(self, *, taken: bool) -> None:
        """All ranks have taken the step, or none."""
        if not taken:
            self.scale, self._good = self.scale * 0.5, 0
            return
        self._good += 1
        if self._good == self.interval:
            self.scale, self._good = self.scale * 2.0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale, "good": self._good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scale, self._good = float(state["scale"]), int(state["good"])
