"""DDP communication hooks: any method of :mod:`netsim_ddp.communication.backend` under DistributedDataParallel.

::

    model = DistributedDataParallel(model)
    state = TopKState(model.named_parameters(), ratio=0.01)
    model.register_comm_hook(state, topk_hook)

DDP cuts gradients into buckets of its own and cuts them anew after the first step, in the order in which gradients
came; residuals kept by bucket are then another parameter's. Here the layout follows from the model's parameters
alone: a hook call copies DDP's bucket to the places of its parameters, and an exchange starts when all gradients it
covers are there. Everything happens in the hook calls themselves, which DDP makes in one order on all ranks: nothing
is chained to a future, so that no two ranks can start their exchanges in different orders.

No ``from __future__ import annotations`` here: DDP compares a hook's annotations with the types themselves.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket

from netsim_ddp.communication.backend import build_method
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.pipeline import InOrder, ddp_buckets, pipeline, stages
from netsim_ddp.communication.segments import Group, Method
from netsim_ddp.compression.kernels import NonFiniteGradient


class HookState:
    """State of :func:`method_hook`: a method over a model's parameters, and what it keeps between steps.

    Args:
        named_parameters: of the model, before or after it was wrapped. Only they may reach the hook.
        method: by its name on the command line; ``params`` are for it.
        process_group: the one that DDP was given; default torch's.
        overlap: exchange in DDP's default bucket sizes while backward goes on. Off, the whole gradient is one
            exchange when backward is through: fewer messages, and the bits of :class:`DistributedBackend`.

    One rank's NaN or inf makes the whole step's gradients NaN on every rank, with a warning: as under DDP without a
    hook, so that ``GradScaler`` skips the step. Residuals stay finite; with ``overlap``, what other buckets had under
    way is lost to them.

    A parameter that no rank used in a step (``find_unused_parameters``) is skipped by DDP itself, which then drops what
    the ranks sent for it from their residuals.

    :meth:`state_dict` is for checkpoints, one per rank. A pickled state carries the same and comes back without
    parameters and process group, neither of which can be pickled usefully: :meth:`bind` gives it new ones.

    Raises:
        UsageError: unknown method.
        ValueError: no parameter needs a gradient, or they live on several devices.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        method: str = "topk",
        *,
        process_group: dist.ProcessGroup | None = None,
        overlap: bool = False,
        **params: Any,
    ) -> None:
        self.method, self.overlap, self.params = method, overlap, params
        self._saved: dict[str, Any] | None = None
        self.bind(named_parameters, process_group)

    def bind(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        """Work on these parameters from now on; after unpickling, with the residuals that were pickled.

        Raises:
            ValueError: what was pickled is of other parameters, or of another rank.
        """
        initialized = dist.is_available() and dist.is_initialized()
        rank = dist.get_rank(process_group) if initialized else 0
        world_size = dist.get_world_size(process_group) if initialized else 1
        self.group = Group(rank, world_size, process_group)
        self._flat = FlatGradients(_unwrapped(named_parameters))
        self._place = {id(parameter): i for i, parameter in enumerate(self._flat.parameters)}
        cuts = ddp_buckets(self._flat) if self.overlap else [(0, len(self._flat.parameters))]
        self._part_of = [0] * len(self._flat.parameters)
        for number, (first, last) in enumerate(cuts):
            self._part_of[first:last] = [number] * (last - first)
        parts = [self._flat.part(first, last) for first, last in cuts]
        self._methods = [build_method(self.method, part, self.group, **self.params) for part in parts]
        self._stages = [stages(method.segments()) for method in self._methods]
        self._cuts = cuts
        self._carrier = InOrder()
        self._begin()
        if self._saved is not None:
            saved, self._saved = self._saved, None
            self.load_state_dict(saved)

    def _begin(self) -> None:
        """A new step: no gradient is there."""
        self._absent = set(range(len(self._flat.parameters)))
        self._missing = [last - first for first, last in self._cuts]
        self._calls: list[_Call] = []
        self._refused = False
        self._turns: Iterator[int] = pipeline(self._carrier, self._stages)
        self._wanted = next(self._turns, None)

    def take(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """DDP's ``bucket`` is there. The future holds its average once the step's last bucket has been taken.

        Raises:
            RuntimeError: the state was unpickled and not bound.
            ValueError: the bucket holds a parameter that this state was not made for.
        """
        if self._saved is not None:
            raise RuntimeError("this state was unpickled: call state.bind(model.named_parameters()) first")
        call = _Call(bucket)
        if self.group.world_size == 1:
            call.answer()
            return call.future
        if bucket.index() == 0:
            self._begin()  # whatever an interrupted backward left is void
        self._receive(call, bucket.parameters())
        # The last part waits for the last bucket, whose call waits for everything anyway.
        while (
            self._wanted is not None
            and self._wanted < len(self._cuts) - 1
            and not self._missing[self._wanted]
        ):
            self._advance()
        if bucket.is_last():
            self._complete()
        return call.future

    def _advance(self) -> None:
        """The gradients that the pipeline waits for are there. All ranks refuse a step at the same piece of it."""
        try:
            self._wanted = next(self._turns, None)
        except NonFiniteGradient as error:
            self._wanted, self._refused = None, True
            self._carrier.drain()
            warnings.warn(
                f"{error}: this step's gradients are NaN on every rank", RuntimeWarning, stacklevel=2
            )

    def _receive(self, call: "_Call", parameters: list[Tensor]) -> None:
        for parameter, gradient in zip(parameters, call.gradients, strict=True):
            place = self._place.get(id(parameter))
            if place is None:
                shape = "x".join(map(str, parameter.shape))
                raise ValueError(f"DDP sends a parameter of shape {shape} that this state was not made for")
            self._flat.views[place].copy_(gradient.view_as(parameter))
            self._absent.discard(place)
            self._missing[self._part_of[place]] -= 1
            call.places.append(place)
        self._calls.append(call)
        # The last part waits for the last bucket, whose call waits for everything anyway.
        while (
            self._wanted is not None
            and self._wanted < len(self._cuts) - 1
            and not self._missing[self._wanted]
        ):
            self._wanted = next(self._turns, None)

    def _complete(self) -> None:
        """Every gradient that will come is there; one that DDP was told to ignore counts as zero."""
        for place in self._absent:
            self._flat.views[place].zero_()
        while self._wanted is not None:
            self._advance()
        if self._refused:
            for call in self._calls:
                call.buffer.fill_(torch.nan)
        else:
            self._write()
        for call in self._calls:
            call.answer()
        self._calls = []

    def _write(self) -> None:
        """Put the averages where DDP looks for them."""
        averages = [view for method in self._by_place() for view in method.flat.views_of(method.average)]
        for call in self._calls:
            for place, gradient in zip(call.places, call.gradients, strict=True):
                gradient.copy_(averages[place].view_as(gradient))

    @property
    def skipped(self) -> bool:
        """Whether the ranks skipped the last step, or a bucket of it (``nonfinite=skip``): its gradients are 0 and the
        optimizer should leave the step out."""
        return any(method.skipped for method in self._methods)

    def _by_place(self) -> list[Method]:
        """The methods in parameter order; buckets go from the last parameter to the first."""
        return [
            method for _, method in sorted(zip(self._cuts, self._methods, strict=True), key=lambda x: x[0])
        ]

    def state_dict(self) -> dict[str, Any]:
        """What this rank's checkpoint must keep."""
        if self._saved is not None:
            return self._saved
        return {
            "method": self.method,
            "overlap": self.overlap,
            "rank": self.group.rank,
            "world_size": self.group.world_size,
            "parts": [method.state_dict() for method in self._methods],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` saved.

        Raises:
            ValueError: it is another rank's, or of another number of ranks, method, overlap or parameters.
        """
        here = self.state_dict()
        for key in ("method", "overlap", "rank", "world_size"):
            if state[key] != here[key]:
                raise ValueError(f"the state was saved with {key} {state[key]}, this is {here[key]}")
        for method, saved in zip(self._methods, state["parts"], strict=True):
            method.load_state_dict(saved)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "overlap": self.overlap,
            "params": self.params,
            "_saved": self.state_dict(),
        }


class TopKState(HookState):
    """State of :func:`topk_hook`: Top-K with error feedback.

    Args:
        named_parameters: as :class:`HookState`, whose other arguments may follow.
        ratio: kept fraction k/N.
        options: of the method ``topk``: ``values="fp16"``, ``collective="split"`` ...
    """

    def __init__(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], ratio: float = 0.01, **options: Any
    ) -> None:
        super().__init__(named_parameters, "topk", ratio=ratio, **options)


def method_hook(state: HookState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Average ``bucket`` over ranks by the state's method; for ``register_comm_hook``."""
    return state.take(bucket)


def topk_hook(state: TopKState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Average ``bucket`` over ranks by Top-K with error feedback; for ``register_comm_hook``."""
    return state.take(bucket)


class _Call:
    """One call of the hook: DDP's memory, and the future that DDP waits for."""

    def __init__(self, bucket: GradBucket) -> None:
        self.buffer, self.gradients = bucket.buffer(), bucket.gradients()
        self.places: list[int] = []
        devices: list[int | str | torch.device] | None = [self.buffer.device] if self.buffer.is_cuda else None
        self.future: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)

    def answer(self) -> None:
        self.future.set_result(self.buffer)


def _unwrapped(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> list[tuple[str, nn.Parameter]]:
    """The names that the model has without DDP around it, so that a checkpoint does not depend on that."""
    named = list(named_parameters)
    if all(name.startswith("module.") for name, _ in named):
        return [(name.removeprefix("module."), parameter) for name, parameter in named]
    return named
