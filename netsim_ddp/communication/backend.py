"""The public way in: average a model's gradients over ranks by a named method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from netsim_ddp.communication.bf16 import BFloat16Exchange
from netsim_ddp.communication.building import description
from netsim_ddp.communication.collective import topk
from netsim_ddp.communication.comparison import same_on_all_ranks
from netsim_ddp.communication.cost import payload_bytes
from netsim_ddp.communication.dense import DenseAllReduce, Float16AllReduce
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.membership import Membership
from netsim_ddp.communication.parameters import Named, model_parameters
from netsim_ddp.communication.pipeline import Carrier, pipeline, stages
from netsim_ddp.communication.powersgd import PowerSGD
from netsim_ddp.communication.scaling import LossScale, Scaler
from netsim_ddp.communication.segments import LARGEST, Group, Method, Segment
from netsim_ddp.communication.sparse import TopKAllGather, TopKDense
from netsim_ddp.communication.user import build_user_method
from netsim_ddp.compression.feedback import ErrorFeedbackBuffer
from netsim_ddp.compression.kernels import NonFiniteGradient
from netsim_ddp.compression.statistics import Statistics
from netsim_ddp.compression.topk import TopKCompressor
from netsim_ddp.errors import UsageError
from netsim_ddp.names import is_reference

METHODS: dict[str, Callable[..., Method]] = {
    "topk": topk,
    **{
        method.name: method
        for method in (BFloat16Exchange, DenseAllReduce, Float16AllReduce, PowerSGD, TopKAllGather, TopKDense)
    },
}
"""Every method by its name on the command line."""


def build_method(name: str, flat: FlatGradients, group: Group, **params: Any) -> Method:
    """The method ``name`` over ``flat``; a user's own is ``my_module:factory``.

    Raises:
        UsageError: unknown name, or a factory that does not give a method.
    """
    if is_reference(name):
        return build_user_method(name, flat, group, list(METHODS), **params)
    _check_known(name)
    return METHODS[name](flat, group, **params)


def _check_known(name: str) -> None:
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}", hint=f"known: {', '.join(METHODS)}, my_module:factory")


class DistributedBackend:
    """Averages gradients over the ranks of a process group.

    ::

        backend = DistributedBackend(TopKCompressor(0.01), ErrorFeedbackBuffer(), world_size, rank)
        loss.backward()
        backend.allreduce_gradients(model.named_parameters())
        optimizer.step()

    Args:
        compressor: None for dense float32; a :class:`TopKCompressor` for ``topk``.
        error_buffer: keeps what the compressor leaves out; None switches error feedback off.
        world_size, rank: default to torch.distributed's, as it is when the first exchange comes; with one rank nothing
            is sent or changed.
        method: another method by name, with ``params`` for it; ``compressor`` must then be None.
        process_group: default to torch's default group.
        scaler: the ``GradScaler`` that scales the loss, as :class:`~netsim_ddp.HookState` takes it; also the attribute
            ``scaler``.

    Raises:
        UsageError: unknown method.
        ValueError: ``compressor`` and ``method`` both given, or a compressor that no method takes.
    """

    def __init__(
        self,
        compressor: TopKCompressor | None = None,
        error_buffer: ErrorFeedbackBuffer | None = None,
        world_size: int | None = None,
        rank: int | None = None,
        *,
        method: str | None = None,
        params: dict[str, Any] | None = None,
        process_group: dist.ProcessGroup | None = None,
        scaler: Scaler = "auto",
    ) -> None:
        self.scaler = scaler
        if compressor is not None and method is not None:
            raise ValueError("give a compressor or a method, not both")
        if compressor is not None and not isinstance(compressor, TopKCompressor):
            raise ValueError(f"no method takes a {type(compressor).__name__}")
        self._membership = Membership(process_group, rank=rank, world_size=world_size)
        self._name = method or ("topk" if compressor is not None else "dense")
        if not is_reference(self._name):
            _check_known(self._name)
        self._params = dict(params or {})
        if compressor is not None:
            feedback = error_buffer is not None
            self._params |= {"ratio": compressor.ratio, "feedback": feedback, "error_buffer": error_buffer}
        self._flat: FlatGradients | None = None
        self._built_for: Group | None = None
        self._segments: list[Segment] = []
        self.method: Method | None = None
        """The method at work; built by the first call, when the parameters are known."""
        self._saved: dict[str, Any] = {}
        self.carrier: Carrier | None = None
        """Who carries the exchange's pieces out, where somebody times them."""

    @property
    def group(self) -> Group:
        """This rank's place, as it is now: a backend may be made before ``init_process_group``.

        Raises:
            RuntimeError: there is no process group, and the environment or the caller says that there are more ranks.
            ValueError: it is not of the rank and size that the caller said.
        """
        return self._membership.group()

    @group.setter
    def group(self, group: Group) -> None:
        self._membership = Membership.fixed(group)

    @property
    def scaler(self) -> Scaler:
        """Who scales the loss."""
        return self._loss_scale.scaler

    @scaler.setter
    def scaler(self, scaler: Scaler) -> None:
        self._loss_scale = LossScale(scaler)

    @property
    def segments(self) -> list[Segment]:
        """Of the method at work; empty before the first call."""
        return self._segments

    def allreduce_gradients(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> bool:
        """Replace every ``grad`` by its average over ranks, in place; all ranks get the same bits.

        Collective: every rank must call it with the same parameters in the same order. A parameter whose gradient
        is missing counts as zero here and receives the average of the others.

        Under a ``GradScaler`` it comes between ``scaler.scale(loss).backward()`` and ``scaler.unscale_`` or
        ``scaler.step``: gradients keep the scale that they came with.

        Returns:
            False where the ranks skipped the step: no rank's state has changed. With ``nonfinite=skip`` every ``grad``
            is 0 then, and ``optimizer.step()`` should be left out. Under a scaler every ``grad`` is NaN, whatever
            ``nonfinite`` says: call ``scaler.step()`` and ``update()`` as always, they skip and lower the scale.

        Raises:
            UnusableParameter: a parameter or gradient of a type that is not exchanged, or two of one name.
            RanksDisagree: on every rank, when the first exchange, or the first after a change of the parameters, finds
                that they have other parameters, options or versions.
            RankTimeout: a rank did not come to that comparison within the process group's timeout.
            NonFiniteGradient: on every rank, when one rank's gradient or the ranks' sum is not finite, without a scaler
                (``topk`` with ``nonfinite=raise``, ``powersgd``). No rank's state has changed.
            UsageError: the gradients have been unscaled already, or several scalers could be meant.
        """
        if self.group.world_size == 1:
            return True
        flat = self._prepare(model_parameters(named_parameters))
        assert self.method is not None
        scale = 1.0 if self.method.stateless else self._loss_scale.now()
        self._loss_scale.check_still_scaled(flat.parameters)
        self.method.limit = LARGEST / scale
        flat.gather(scale)
        try:
            self._exchange()
        except NonFiniteGradient:
            if not self._loss_scale.active:
                raise
            taken = False
        else:
            taken = not self.method.skipped
        if taken:
            flat.scatter(self.method.settled(), scale)
        else:
            flat.fill_gradients(torch.nan if self._loss_scale.active else 0.0)
        return taken

    def _exchange(self) -> None:
        if self.carrier is None:
            for segment in self._segments:
                segment.run()
        else:
            for _ in pipeline(self.carrier, [stages(self._segments)]):
                pass  # there is one bucket, and it is there

    def statistics(self, *, layers: bool = False) -> Statistics | None:
        """What this rank sent and kept back in the last step; None before the first, and for a method that selects
        nothing. Costs a pass over the residual; nothing is counted unless you ask.

        Args:
            layers: the same of every parameter, in ``layers`` of the answer.
        """
        found = self.method.statistics(layers=layers) if self.method else None
        return found and replace(found, payload_bytes=payload_bytes(self._segments))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of this rank must keep: residuals and whatever else the method goes on from."""
        return self.method.state_dict() if self.method else self._saved

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` saved; before the first step it is checked when that comes.

        Raises:
            ValueError: it is another rank's, or of other parameters or another number of ranks.
        """
        if self.method:
            self.method.load_state_dict(state)
        else:
            self._saved = dict(state)

    def _prepare(self, parameters: Named) -> FlatGradients:
        """The layout for these parameters; nothing has changed where it cannot be built, or the ranks differ."""
        group = self.group
        if self._flat is not None and self._built_for is group and self._flat.holds(parameters):
            return self._flat
        with same_on_all_ranks(None if self._membership.is_fixed else group) as facts:
            flat = FlatGradients(parameters)
            flat.check()
            method = build_method(self._name, flat, group.renewed(), **self._params)
            if state := self.state_dict():
                method.load_state_dict(state)
            facts.update(description(self._name, self._params, parameters, [method]))
        self._flat, self._built_for, self.method = flat, group, method
        self._segments = method.segments()
        return flat
