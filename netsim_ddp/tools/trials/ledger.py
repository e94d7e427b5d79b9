"""What was owed and what has come, so that both too little and too much can be told by name."""

from __future__ import annotations

import torch
from torch import Tensor

ENOUGH = 0.01
"""Of the gradient may be missing: bfloat16's rounding loses 0.3%."""
ALIKE = 0.05
"""By which a multiple of the gradient may differ from that multiple and still be called it."""


class Ledger:
    """Sums, in float64 [N], of the ranks' mean gradients and of a method's averages."""

    def __init__(self, numel: int) -> None:
        self.owed = torch.zeros(numel, dtype=torch.float64)
        self.came = torch.zeros(numel, dtype=torch.float64)

    def note(self, mean: Tensor, average: Tensor) -> None:
        self.owed += mean
        self.came += average

    @property
    def share(self) -> float:
        """||owed - came|| / ||owed||: what is missing, or too much."""
        return float((self.owed - self.came).norm() / self.owed.norm())

    @property
    def times(self) -> float:
        """The projection of what came on what was owed."""
        return float(self.came.dot(self.owed) / self.owed.dot(self.owed))

    def judge(self, ranks: int, when: str) -> str:
        """What is wrong, in words; ``when`` says how long was waited."""
        if not bool(self.came.isfinite().all()):
            return f"at {ranks} ranks the updates grow without limit: {APPLIED_TWICE}"
        times = self.times
        if float((self.came - times * self.owed).norm()) < ALIKE * float(self.came.norm()):
            if abs(times / ranks - 1) < ALIKE:
                return f"at {ranks} ranks {times:.2f} times the mean of the gradients comes: {DIVIDE}"
            if abs(times * ranks - 1) < ALIKE:
                return f"at {ranks} ranks {times:.2f} of the mean of the gradients comes: {DIVIDED_TWICE}"
        size = float(self.owed.norm())
        forward = self.came * self.owed.sign() - self.owed.abs()
        surplus, lack = (float(part.clamp(min=0).norm()) / size for part in (forward, -forward))
        if surplus > lack:
            return f"at {ranks} ranks {surplus:.1%} of the gradient came twice or more: {APPLIED_TWICE}"
        return f"at {ranks} ranks {lack:.1%} of the gradient has not come {when}"


DIVIDE = "divide the sum by the number of ranks"
DIVIDED_TWICE = "it is divided by the number of ranks twice"
APPLIED_TWICE = "take what was sent out of the residual, and apply each entry once"
