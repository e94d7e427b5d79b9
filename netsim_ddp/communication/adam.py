"""Adam and AdamW over a compressed exchange: the second moment is learnt from dense gradients, then frozen.

Error feedback promises that what is sent adds up to what was meant. Adam divides by the root of the second moment, and
a compressed gradient's second moment is another: an entry that arrives once in a hundred steps, with a hundred steps'
gradient, has a root ten times as large, so Adam on top of compressed gradients takes a tenth of its steps there.
1-bit Adam (Tang et al. 2021, Algorithm 1) therefore runs plain Adam for some steps, freezes the second moment v, and
compresses the momentum: with v constant the update is linear in what is sent, and error feedback's promise holds again.
Their analysis asks no more of the compressor than Top-K gives. COMP-AMS (Li et al. 2022) needs no dense steps, but
keeps learning v from compressed gradients and so keeps the lag.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from netsim_ddp.communication.backend import DistributedBackend
from netsim_ddp.communication.parameters import NamedParameters, named_list
from netsim_ddp.compression.kernels import NonFiniteGradient, all_finite


class CompressedAdam(torch.optim.Optimizer):
    """Does the exchange and the update: call :meth:`step` after ``backward()`` and nothing else.

    ::

        optimizer = CompressedAdam(model.named_parameters(), lr=1e-3, freeze_after=500, params={"ratio": 0.01})
        loss.backward()
        optimizer.step()

    With g_i a rank's gradient, m the momentum that all ranks share and v frozen, a step is m = mean of C(b1 m +
    (1 - b1) g_i), with C the method's compression and feedback, and x -= lr m / (sqrt(v) + eps).

    Args:
        weight_decay: added to the gradient (Adam) or, with ``decoupled``, taken from the parameter (AdamW: Loshchilov
            and Hutter 2019).
        freeze_after: dense steps of plain Adam before that. About as many as the learning rate's warm-up takes: v must
            have settled.
        method, params: as :class:`DistributedBackend` takes them, for the steps that follow.

    Raises:
        ValueError: ``freeze_after`` below 1, or a beta outside [0, 1).
    """

    def __init__(
        self,
        named_parameters: NamedParameters | nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled: bool = False,
        freeze_after: int = 500,
        method: str = "topk",
        params: dict[str, Any] | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        if freeze_after < 1:
            raise ValueError(f"freeze_after={freeze_after}: the second moment needs a dense step at least")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas {betas} must be in [0, 1)")
        named = named_list(named_parameters)
        self._named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__([parameter for _, parameter in self._named], defaults)
        self._decoupled, self._freeze_after = decoupled, freeze_after
        self._skips = (params or {}).get("nonfinite") == "skip"
        self._dense = DistributedBackend(process_group=process_group)
        self._sparse = DistributedBackend(method=method, params=params, process_group=process_group)
        self._steps = 0

    @property
    def frozen(self) -> bool:
        """Whether the next step is a compressed one."""
        return self._steps >= self._freeze_after

    @property
    def dense(self) -> DistributedBackend:
        """The exchange of the steps before that."""
        return self._dense

    @property
    def sparse(self) -> DistributedBackend:
        """The exchange of compressed steps."""
        return self._sparse

    @torch.no_grad()
    def step(self, closure: Any = None) -> bool:  # type: ignore[override] # torch's answers a closure's loss
        """One update, the same bits on every rank.

        Returns:
            False where the step was skipped because a gradient was not finite (``nonfinite=skip``).

        Raises:
            NonFiniteGradient: a gradient was not finite; on every rank, and nothing has changed.
        """
        if closure is not None:
            raise ValueError("a closure is not supported: the gradients must be there")
        group = self.param_groups[0]
        self._add_decay(group)
        taken = self._compressed(group) if self.frozen else self._plain(group)
        if taken:
            self._steps += 1
            if self._decoupled:
                for _, parameter in self._named:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
            self._update(group)
        return taken

    def _add_decay(self, group: dict[str, Any]) -> None:
        for _, parameter in self._named:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if not self._decoupled:
                parameter.grad.add_(parameter, alpha=group["weight_decay"])

    def _plain(self, group: dict[str, Any]) -> bool:
        """Adam's two moments of the dense average."""
        self._dense.allreduce_gradients(self._named)
        # Every rank has the same average, so every rank decides the same.
        if not all(all_finite(self._gradient(parameter)) for _, parameter in self._named):
            if self._skips:
                return False
            raise NonFiniteGradient("the average of the gradients is not finite", -1)
        first, second = group["betas"]
        for _, parameter in self._named:
            gradient, state = self._gradient(parameter), self._state_of(parameter)
            state["momentum"].lerp_(gradient, 1 - first)
            state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        return True

    def _compressed(self, group: dict[str, Any]) -> bool:
        """The shared momentum, from every rank's own."""
        first = group["betas"][0]
        for _, parameter in self._named:
            self._gradient(parameter).mul_(1 - first).add_(self._state_of(parameter)["momentum"], alpha=first)
        if not self._sparse.allreduce_gradients(self._named):
            return False
        for _, parameter in self._named:
            self._state_of(parameter)["momentum"].copy_(self._gradient(parameter))
        return True

    def _update(self, group: dict[str, Any]) -> None:
        first, second = group["betas"]
        # A frozen second moment keeps the correction that it had; the momentum needs none by then.
        square_bias = 1 - second ** min(self._steps, self._freeze_after)
        bias = 1 - first**self._steps if self._steps <= self._freeze_after else 1.0
        for _, parameter in self._named:
            state = self._state_of(parameter)
            root = (state["square"] / square_bias).sqrt_().add_(group["eps"])
            parameter.addcdiv_(state["momentum"], root, value=-group["lr"] / bias)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["momentum"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state

    @staticmethod
    def _gradient(parameter: Tensor) -> Tensor:
        assert parameter.grad is not None
        return parameter.grad

    def state_dict(self) -> dict[str, Any]:
        """Of this rank: moments, residuals and the number of steps."""
        exchange = copy.copy(self._sparse.state_dict())
        return {**super().state_dict(), "steps": self._steps, "exchange": exchange}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` saved.

        Raises:
            ValueError: it is another rank's, or of other parameters or another number of ranks.
        """
        super().load_state_dict({key: state[key] for key in ("state", "param_groups")})
        self._steps = state["steps"]
        self._sparse.load_state_dict(state["exchange"])
