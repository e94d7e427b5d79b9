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
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from netsim_ddp.communication.backend import DistributedBackend
from netsim_ddp.communication.comparison import Facts
from netsim_ddp.communication.parameters import (
    NamedParameters,
    model_parameters,
    without_prefixes,
)
from netsim_ddp.compression.kernels import NonFiniteGradient, all_finite
from netsim_ddp.errors import UsageError
from netsim_ddp.methods import DEFAULT


class CompressedAdam(torch.optim.Optimizer):
    """Does the exchange and the update: call :meth:`step` after ``backward()`` and nothing else.

    ::

        optimizer = CompressedAdam(model.named_parameters(), lr=1e-3, freeze_after=500, params={"ratio": 0.01})
        loss.backward()
        optimizer.step()

    With g_i a rank's gradient, m the momentum that all ranks share and v frozen, a step is m = mean of C(b1 m +
    (1 - b1) g_i), with C the method's compression and feedback, and x -= lr m / (1 - b1^t) / (sqrt(v) + eps). v has the
    correction that it had when it was frozen, so that the freeze itself changes no step.

    The parameters are the bare model's. DDP around it would average the gradients before this does, and its bytes
    would be saved by nobody: that is refused, unless forward and backward run within ``ddp.no_sync()``.

    Args:
        weight_decay: added to the gradient (Adam) or, with ``decoupled``, taken from the parameter (AdamW: Loshchilov
            and Hutter 2019).
        freeze_after: dense steps of plain Adam before that. About as many as the learning rate's warm-up takes: v must
            have settled.
        method, params: as :class:`DistributedBackend` takes them, for the steps that follow.

    Under a ``GradScaler`` write ``scaler.step(optimizer)``, after ``scaler.unscale_(optimizer)`` or without it. The
    ranks need not have one scale: each takes out its own. A gradient that overflows on one of them skips the step on
    all, and lowers the scale of that one.

    Raises:
        UsageError: an unknown method or option, or a bad value of one, at once; parameters without their names.
        ValueError: ``freeze_after`` below 1, a beta outside [0, 1), a rate, eps or decay that is no number from 0 on.
    """

    def __init__(
        self,
        named_parameters: NamedParameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled: bool = False,
        freeze_after: int = 500,
        method: str = DEFAULT.name,
        params: dict[str, Any] | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        for name, value in {"lr": lr, "eps": eps, "weight_decay": weight_decay}.items():
            if isinstance(value, bool | str) or not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r} must be a number of at least 0")
        if isinstance(freeze_after, bool) or not isinstance(freeze_after, int) or freeze_after < 1:
            raise ValueError(
                f"freeze_after={freeze_after!r} must be a whole number of at least 1: the second moment needs a "
                "dense step"
            )
        if not (len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"betas {betas} must be two numbers in [0, 1)")
        self._given = model_parameters(named_parameters)
        self._made_for = [(name, parameter) for name, parameter in self._given if parameter.requires_grad]
        self._named = self._made_for
        """Those that are trained now."""
        self.dense = DistributedBackend(process_group=process_group, scaler=None)
        """The exchange of the steps before the second moment is frozen."""
        self.sparse = DistributedBackend(
            method=method, params=params, process_group=process_group, scaler=None
        )
        """The exchange of the compressed steps that follow."""
        if self.sparse.params.get("momentum"):
            raise UsageError(
                f"CompressedAdam has a momentum of its own, and method {method!r} would add another",
                hint="leave momentum out of params",
            )
        for backend in (self.dense, self.sparse):
            backend.called = type(self).__name__
            backend.caller_s_facts = self._facts
        super().__init__(
            [parameter for _, parameter in self._named],
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay},
        )
        self._decoupled, self._freeze_after = decoupled, freeze_after
        self._skips = self.sparse.params.get("nonfinite") == "skip"
        self._room: dict[Tensor, Tensor] = {}
        """Where the next momentum is made; it changes places with the last one when the step has been taken."""
        self._steps = 0
        self._agreed: tuple[Any, ...] = ()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """One group is all there is.

        Raises:
            ValueError: there is one already.
        """
        if self.param_groups:
            raise ValueError("CompressedAdam has one group of parameters: make one optimizer per group")
        super().add_param_group(param_group)

    @property
    def frozen(self) -> bool:
        """Whether the next step is a compressed one."""
        return self._steps >= self._freeze_after

    _step_supports_amp_scaling = True
    """Has ``GradScaler.step`` call :meth:`step` in every case, with the scale in ``grad_scale`` (None where it is out
    already): the others wait in the exchange for a rank whose gradient overflowed."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> bool:  # type: ignore[override] # torch's answers a closure's loss
        """One update, the same bits on every rank.

        Returns:
            False where the step was skipped because a gradient was not finite (``nonfinite=skip``, or a scaler).

        Raises:
            NonFiniteGradient: a gradient was not finite; on every rank, and nothing has changed: no moment, residual,
                parameter, nor the number of steps.
            RanksDisagree: on every rank, when the first dense or compressed step, or the first after
                :meth:`load_state_dict` or another ``betas``, ``eps`` or ``weight_decay``, finds that the ranks are at
                different steps or have different options, ``lr`` among them.
            UsageError: DDP has averaged the gradients already.
        """
        if closure is not None:
            raise ValueError("a closure is not supported: the gradients must be there")
        group = self.param_groups[0]
        if self._agreed != (constants := (tuple(group["betas"]), group["eps"], group["weight_decay"])):
            self._agreed = constants
            self._compare_again()
        self._find_trained()
        self._unscale()
        for _, parameter in self._named:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        try:
            taken = self._compressed(group) if self.frozen else self._plain(group)
        except NonFiniteGradient:
            if (
                getattr(self, "found_inf", None) is None
            ):  # which a scaler sets: to it such a step is nothing special
                raise
            taken = False
        if taken:
            self._steps += 1
            if self._decoupled:
                for _, parameter in self._named:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
            self._update(group)
        return taken

    def _compare_again(self) -> None:
        for backend in (self.dense, self.sparse):
            backend.compare_again()

    def _facts(self) -> Facts:
        """What the ranks must have alike, beyond the exchange, for their parameters to stay the same. A learning rate
        may be another every step, and is compared whenever the rest is."""
        group = self.param_groups[0]
        lr, eps, decay = (repr(float(group[key])) for key in ("lr", "eps", "weight_decay"))
        return {
            "CompressedAdam's step": self._steps,
            "CompressedAdam's options": {
                "lr": lr,
                "betas": repr(tuple(map(float, group["betas"]))),
                "eps": eps,
                "weight_decay": decay,
                "decoupled": self._decoupled,
                "freeze_after": self._freeze_after,
            },
        }

    def _find_trained(self) -> None:
        """A parameter that was frozen meanwhile is left alone, with all that belongs to it."""
        made_for = {id(parameter) for _, parameter in self._made_for}
        for name, parameter in self._given:
            if parameter.requires_grad and id(parameter) not in made_for:
                raise ValueError(
                    f"{name} was frozen when this CompressedAdam was made, and is trained now: it has no second "
                    "moment. Make a new CompressedAdam, whose dense steps learn it"
                )
        self._named = [(name, parameter) for name, parameter in self._made_for if parameter.requires_grad]

    def _unscale(self) -> None:
        scale: Tensor | None = getattr(self, "grad_scale", None)
        if scale is None:
            return
        for _, parameter in self._named:
            if parameter.grad is not None:
                parameter.grad.div_(scale.to(parameter.device))

    def _plain(self, group: dict[str, Any]) -> bool:
        """Adam's two moments of the dense average."""
        self.dense.allreduce_gradients(self._given)
        for _, parameter in self._named:
            self._gradient(parameter).add_(parameter, alpha=0.0 if self._decoupled else group["weight_decay"])
        # Every rank has the same average, so every rank decides the same.
        if not all(_can_be_squared(self._gradient(parameter)) for _, parameter in self._named):
            if self._skips:
                return False
            raise NonFiniteGradient("the average of the gradients, or its square, is not finite", -1)
        first, second = group["betas"]
        for _, parameter in self._named:
            gradient, state = self._gradient(parameter), self._state_of(parameter)
            state["momentum"].lerp_(gradient, 1 - first)
            state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        return True

    def _compressed(self, group: dict[str, Any]) -> bool:
        """The shared momentum, from every rank's own. It is made beside the last one, and stands in for the gradient
        while it is exchanged."""
        first, decay = group["betas"][0], 0.0 if self._decoupled else group["weight_decay"]
        gradients = [self._gradient(parameter) for _, parameter in self._named]
        try:
            for (_, parameter), gradient in zip(self._named, gradients, strict=True):
                room = self._room.setdefault(parameter, torch.empty_like(parameter))
                torch.add(gradient, parameter, alpha=decay, out=room)
                room.mul_(1 - first).add_(self._state_of(parameter)["momentum"], alpha=first)
                parameter.grad = room
            taken = self.sparse.allreduce_gradients(self._given)
            if taken and not all(all_finite(self._gradient(parameter)) for _, parameter in self._named):
                raise NonFiniteGradient(
                    "the momentum is not finite", -1
                )  # with one rank; several have refused it
        finally:
            for (_, parameter), gradient in zip(self._named, gradients, strict=True):
                parameter.grad = gradient
        if taken:
            for _, parameter in self._named:
                state = self._state_of(parameter)
                state["momentum"], self._room[parameter] = self._room[parameter], state["momentum"]
        return taken

    def _update(self, group: dict[str, Any]) -> None:
        first, second = group["betas"]
        # A frozen second moment keeps the correction that it had. The momentum goes on as it began, so its correction
        # does too: without it, the step would change by a factor of 1 - b1 ** freeze_after at once.
        square_bias = 1 - second ** min(self._steps, self._freeze_after)
        bias = 1 - first**self._steps
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
        return {
            **super().state_dict(),
            "names": [name for name, _ in self._made_for],
            "steps": self._steps,
            "exchange": copy.copy(self.sparse.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` saved; moments go to the parameters of their names, whatever the order.

        Raises:
            ValueError: it is another rank's, or of other parameters or another number of ranks; nothing has changed
                then.
        """
        own = self._in_our_order(state)
        self.sparse.load_state_dict(state["exchange"])
        super().load_state_dict(own)
        self._steps = state["steps"]
        self._compare_again()

    def _in_our_order(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """torch's part of ``state``, which numbers parameters."""
        plain = {key: state[key] for key in ("state", "param_groups")}
        if "names" not in state:  # up to version 0.1.0 their order was all there was
            return plain
        places = {name: place for place, name in enumerate(without_prefixes(state["names"]))}
        ours = [name for name, _ in self._made_for]
        for name in (*places, *ours):
            if name not in places or name not in ours:
                here, there = ("is not here", "saved") if name in places else ("is here", "not saved")
                raise ValueError(f"{name} {here} and was {there}: moments belong to a parameter by its name")
        moments: dict[int, dict[str, Tensor]] = {}
        for place, (name, parameter) in enumerate(self._made_for):
            if (found := plain["state"].get(places[name])) is not None:
                if found["momentum"].shape != parameter.shape:
                    shapes = tuple(found["momentum"].shape), tuple(parameter.shape)
                    raise ValueError(f"{name} was saved with shape {shapes[0]}, and is {shapes[1]} now")
                moments[place] = found
        return {
            "state": moments,
            "param_groups": [{**group, "params": list(range(len(ours)))} for group in plain["param_groups"]],
        }


def _can_be_squared(gradient: Tensor) -> bool:
    """Whether neither the gradient nor its square is NaN or inf."""
    return bool((gradient.abs() <= torch.finfo(gradient.dtype).max ** 0.5).all())
