"""The public way in: average a model's gradients over ranks by a named method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from netsim_ddp.communication.averaging import GradientAveraging, own_modes, statistics_of
from netsim_ddp.communication.building import build_method, checked_params
from netsim_ddp.communication.comparison import Facts, same_on_all_ranks
from netsim_ddp.communication.ddp_checks import check_not_averaged, watch
from netsim_ddp.communication.executor import Executor, pipeline, stages
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.loss_scale import Scaler
from netsim_ddp.communication.membership import Membership
from netsim_ddp.communication.own_compressor import CONTRACT, OwnCompressor, own_arithmetic
from netsim_ddp.communication.parameters import Named, NamedParameters, model_parameters
from netsim_ddp.communication.saved_state import RESIDUALS, apply_alone, unless_refused
from netsim_ddp.communication.segments import LARGEST, Group, Method, Segment, segments_of
from netsim_ddp.communication.sparse import SelectedEntries
from netsim_ddp.compression.feedback import ErrorFeedbackBuffer
from netsim_ddp.compression.kernels import NonFiniteGradient
from netsim_ddp.compression.statistics import Statistics
from netsim_ddp.compression.topk import TopKCompressor
from netsim_ddp.errors import UsageError
from netsim_ddp.methods import BASELINE
from netsim_ddp.methods.topk import TOPK
from netsim_ddp.names import is_reference


class DistributedBackend(GradientAveraging):
    """Averages gradients over the ranks of a process group.

    ::

        backend = DistributedBackend(TopKCompressor(0.01), ErrorFeedbackBuffer(), world_size, rank)
        loss.backward()
        backend.allreduce_gradients(model.named_parameters())
        optimizer.step()

    Args:
        compressor: None for dense float32; a :class:`TopKCompressor` for ``topk``, which counts in its ``stats`` and
            may get another ``ratio`` between steps. One that overrides ``compress`` or ``decompress`` is called for
            every parameter.
        error_buffer: keeps what the compressor leaves out, and what it holds already; None switches error feedback
            off. One that overrides ``compensate`` or ``update``, or lives on another device than gradients, is called
            for every parameter.
        world_size, rank: default to torch.distributed's, as it is when the first exchange comes; with one rank nothing
            is sent or changed.
        method: another method by name; ``compressor`` must then be None.
        params: options of the method, as ``--method`` takes them.
        process_group: default to torch's default group.
        scaler: the ``GradScaler`` that scales the loss, as :class:`~netsim_ddp.HookState` takes it; also the attribute
            ``scaler``.

    Raises:
        UsageError: unknown method or option, or a bad value; or a buffer that the method would not use.
        ValueError: ``compressor`` and ``method`` both given, or a compressor that no method takes.
    """

    between_steps = (
        "write optimizer.zero_grad() after every step; to accumulate, exchange once, when the last backward pass of "
        "the step is over"
    )

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
            raise ValueError(f"no method takes a {type(compressor).__name__} as its compressor: {CONTRACT}")
        self._membership = Membership(process_group, rank=rank, world_size=world_size)
        self._method_name = method or (TOPK.name if compressor is not None else BASELINE.name)
        self._compressor, self._buffer = compressor, error_buffer
        self.params: dict[str, Any] = self._typed(params or {})
        """The method's options, typed."""
        self._start_anew()
        self._segments: list[Segment] = []
        self._saved, self._loaded = None, False
        self.caller_s_facts: Callable[[], Facts] = dict
        """What the ranks must have alike beyond what this exchange knows; asked whenever they compare."""
        self.called = type(self).__name__
        """What a user knows this exchange as."""
        watch()
        self._known_names: set[str] = set()
        self.executor: Executor | None = None
        """Who carries the exchange's pieces out, where somebody times them."""

    @property
    def _name(self) -> str:
        return self._method_name

    @property
    def _known(self) -> set[str] | None:
        return self._known_names if self._methods else None

    @property
    def method(self) -> Method | None:
        """The method at work; built by the first call, when the parameters are known."""
        return self._methods[0] if self._methods else None

    def _typed(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The method's options, with what the compressor and the buffer say."""
        if isinstance(params, Mapping) and params.get("overlap") not in (None, False, "off"):
            raise UsageError(
                "a DistributedBackend exchanges when the backward pass is through, so nothing overlaps",
                hint="leave overlap out, or register a HookState(..., overlap=True) with DDP",
            )
        if self._compressor is None:
            if self._buffer is None or (
                self._name == BASELINE.name and not params
            ):  # which has nothing to keep
                return checked_params(self._name, params)
            if is_reference(self._name):
                raise UsageError(
                    f"method {self._name!r} keeps what it likes itself", hint="leave error_buffer out"
                )
            return checked_params(self._name, {**params, "error_buffer": self._buffer})
        given = checked_params(self._name, params)
        if twice := [key for key in ("ratio", "feedback", "error_buffer") if key in given]:
            raise UsageError(
                f"{twice[0]} follows from the compressor and the buffer",
                hint=f"leave {twice[0]} out of params",
            )
        if given and own_arithmetic(self._compressor, self._buffer):
            raise UsageError(
                f"{type(self._compressor).__name__} and the buffer do their own arithmetic, without topk's options",
                hint=f"leave {', '.join(given)} out of params",
            )
        given |= {"ratio": self._compressor.ratio, "feedback": self._buffer is not None}
        return checked_params(self._name, {**given, "error_buffer": self._buffer})

    @property
    def segments(self) -> list[Segment]:
        """Of the method at work; empty before the first call."""
        return self._segments

    def allreduce_gradients(self, named_parameters: NamedParameters) -> bool:
        """Replace every ``grad`` by its average over ranks, in place; all ranks get the same bits.

        Collective: every rank must call it with the same parameters in the same order. A parameter whose gradient
        is missing counts as zero here and receives the average of the others.

        Under a ``GradScaler`` it comes between ``scaler.scale(loss).backward()`` and ``scaler.unscale_`` or
        ``scaler.step``: gradients keep the scale that they came with.

        The parameters may be others than in the step before, on all ranks alike: unfrozen, frozen, in another order.
        What is pending goes on by name. A new parameter begins with nothing; what is pending for one that is frozen
        waits until it is trained again. Keep frozen ones in the list, as ``model.named_parameters()`` does: for one
        that is not there at all a warning says that something waits.

        Returns:
            False where the ranks skipped the step: no rank's state has changed. With ``nonfinite=skip`` every ``grad``
            is 0 then, and ``optimizer.step()`` should be left out. Under a scaler every ``grad`` is NaN, whatever
            ``nonfinite`` says: call ``scaler.step()`` and ``update()`` as always, they skip and lower the scale.

        Raises:
            UnusableParameter: a parameter or gradient of a type that is not exchanged, or two of one name.
            RanksDisagree: on every rank, when the first exchange, or the first after a change of the parameters or a
                :meth:`load_state_dict`, finds that they have other parameters, options or versions, or states of
                different steps.
            ExchangeFailed: (a RuntimeError) a rank did not do its part of the exchange; names it where it is known.
            RankTimeout: a rank did not come to that comparison within the process group's timeout.
            NonFiniteGradient: on every rank, when one rank's gradient or the ranks' sum is not finite, without a scaler
                (``topk`` with ``nonfinite=raise``, ``powersgd``). No rank's state has changed.
            UsageError: the gradients have been unscaled already, or several scalers could be meant; or DDP has averaged
                them.
        """
        parameters = model_parameters(named_parameters)
        if self.group.world_size == 1:
            self._apply_alone(parameters)
            return True
        if not self._membership.is_fixed:
            check_not_averaged((parameter for _, parameter in parameters), self.group, self.called)
        with own_modes(parameters[0][1].device if parameters else torch.device("cpu")):
            taken = self._average(parameters)
        if self._cleared is not None:
            self._cleared.step_ended()
        return taken

    def _apply_alone(self, parameters: Named) -> None:
        """One rank exchanges nothing; what several had pending goes into the first gradient that it has."""
        state = self.state_dict()
        if not state:
            return
        saved = self._checked(state, self.group, None)
        waiting = apply_alone(saved.merged(RESIDUALS, folded=True), parameters, self._loss_scale.now())
        self._saved = {"method": self._name, "parked": {RESIDUALS: waiting}} if waiting else {}
        self._methods = []

    def _average(self, parameters: Named) -> bool:
        """The whole step; whether it was taken."""
        flat = self._prepare(parameters)
        assert self.method is not None
        scale = 1.0 if self.method.stateless else self._loss_scale.now()
        self._loss_scale.check_still_scaled(flat.parameters)
        self.method.limit = LARGEST / scale
        if lent := scale == 1.0 and flat.lendable and self.method.borrows:
            flat.lend([parameter.grad for parameter in flat.parameters])
        else:
            flat.gather(scale)
        taken = False
        try:
            self._exchange()
            taken = not self.method.skipped
        except NonFiniteGradient:
            if not self._loss_scale.active:
                raise
        finally:
            flat.take_back(averaged=taken)
        if taken:
            self._count()
        if taken and not lent:
            flat.scatter(self.method.fitted_average(scale), scale)
        elif not taken:
            flat.fill_gradients(torch.nan if self._loss_scale.active else 0.0)
        return taken

    def _exchange(self) -> None:
        if self.executor is None:
            for segment in self._segments:
                segment.run()
        else:
            for _ in pipeline(self.executor, [stages(self._segments)]):
                pass  # there is one bucket, and it is there

    def _count(self) -> None:
        """Tell the compressor what was done in its name: as much as if it had been called for every parameter."""
        method = self.method
        if self._compressor is None or not isinstance(method, SelectedEntries) or method.skipped:
            return
        k, n = method.values.numel(), method.flat.numel
        self._compressor.stats.count(len(method.flat.names), k, 4 * n, 12 * k)

    def statistics(self, *, layers: bool = False) -> Statistics | None:
        """What this rank sent and kept back in the last step; None before the first, and for a method that selects
        nothing. Costs a pass over the residual; nothing is counted unless you ask.

        Args:
            layers: the same of every parameter, in ``layers`` of the answer.
        """
        return statistics_of(self._methods, self._segments, layers=layers)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of this rank must keep: residuals and whatever else the method goes on from."""
        if self.method is None:
            return self._saved or {}
        state = self.method.state_dict()
        own = {"method": self._name, "options": self._options, "parked": self._parked}
        return {**state, **own} if state else {}

    def compare_again(self) -> None:
        """Have the next exchange compare what the ranks have; on all of them."""
        self._compared = False

    def _facts(self, parameters: Named, method: Method) -> Facts:
        kind = "compressor of one's own" if isinstance(method, OwnCompressor) else "netsim's"
        described = self._described([method], parameters, compression=kind)
        return {"netsim": described["netsim"], **self.caller_s_facts(), **described}

    def _prepare(self, parameters: Named) -> FlatGradients:
        """The layout for these parameters; nothing has changed where it cannot be built, or the ranks differ."""
        group = self.group
        compared = None if self._membership.is_fixed else group
        current = self.method if self._built_for is group else None
        if current is not None and self._flat.holds(parameters) and not self._stale(current):
            if not self._compared:
                with same_on_all_ranks(compared) as facts:
                    facts.update(self._facts(parameters, current))
                self._compared = True
            return self._flat
        known = {name for name, _ in parameters}
        with unless_refused(self.params.get("error_buffer")), same_on_all_ranks(compared) as facts:
            flat = FlatGradients(parameters)
            flat.check()
            methods, parked = self._continued(lambda place: [self._build(flat, place)], group, known)
            facts.update(self._facts(parameters, methods[0]))
        self._adopt(flat, group, methods, parked, known)
        self._segments, self._compared = segments_of(methods[0], self._name), True
        self._known_names = known
        return flat

    def _build(self, flat: FlatGradients, group: Group) -> Method:
        if self._buffer is not None:
            _check_names(self._buffer, flat)
        if self._compressor is not None and self._by_hand(flat):
            return OwnCompressor(flat, group, self._compressor, self._buffer)
        return build_method(self._name, flat, group, **self.params)

    def _by_hand(self, flat: FlatGradients) -> bool:
        """Whether compressor and buffer must be called, because netsim's own kernels would do something else."""
        assert self._compressor is not None
        here = None if self._buffer is None else self._buffer.device
        return (here is not None and here.type != flat.data.device.type) or own_arithmetic(
            self._compressor, self._buffer
        )

    def _stale(self, method: Method) -> bool:
        """Whether what the user handed over is no longer what the method was built for."""
        by_hand = isinstance(method, OwnCompressor)
        if self._compressor is not None:
            if self._by_hand(method.flat) is not by_hand:
                return True
            ratio, before = self._compressor.ratio, self.params["ratio"]
            self.params["ratio"] = ratio
            if ratio != before and not by_hand:
                return True
        if self._buffer is None or by_hand:
            return False
        flat = method.flat
        residual = self._buffer.flat(flat.shapes, flat.data.device, torch.float32)
        return residual is not getattr(method, "residual", residual)


def _check_names(buffer: ErrorFeedbackBuffer, flat: FlatGradients) -> None:
    """Refuse residuals that wait for a parameter that has another name here: they would never be sent."""
    known, here = set(buffer.names()), set(flat.names)
    for name in sorted(here - known):
        for other in sorted(known - here):
            if name.endswith(f".{other}") or other.endswith(f".{name}"):
                raise UsageError(
                    f"error_buffer holds a residual of {other!r}, and the parameter is called {name!r}",
                    hint=f"load it under the names that allreduce_gradients gets, such as {name!r}",
                )
