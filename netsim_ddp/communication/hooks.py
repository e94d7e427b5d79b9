"""DDP communication hooks: any method of :mod:`netsim_ddp.communication.backend` under DistributedDataParallel.

::

    model = DistributedDataParallel(model)
    state = TopKState(model.named_parameters(), ratio=0.01)
    model.register_comm_hook(state, topk_hook)

DDP cuts gradients into buckets of its own and cuts them anew after the first step, in the order in which gradients
came; residuals kept by bucket are then another parameter's. Here the layout follows from the model's parameters
alone: an exchange starts when all gradients that it covers are there, in whatever buckets. A method that can reads
them there and writes the average there; other gradients are copied to the places of their parameters and back. How a
step goes is in :mod:`netsim_ddp.communication.hook_step`.

No ``from __future__ import annotations`` here: DDP compares a hook's annotations with the types themselves.
"""

import warnings
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket

from netsim_ddp.communication.applied import HookCall
from netsim_ddp.communication.averaging import GradientAveraging, own_modes, statistics_of
from netsim_ddp.communication.building import build_method, checked_params
from netsim_ddp.communication.comparison import same_on_all_ranks
from netsim_ddp.communication.executor import ddp_buckets
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.hook_step import HookStep, Parts
from netsim_ddp.communication.loss_scale import LossScale, Scaler
from netsim_ddp.communication.membership import Membership
from netsim_ddp.communication.overlap_choice import OverlapChoice
from netsim_ddp.communication.parameters import (
    Named,
    NamedParameters,
    check_gradient,
    model_parameters,
    trained,
)
from netsim_ddp.communication.saved_state import RESIDUALS, ByName, Saved, add_pending
from netsim_ddp.communication.segments import Group, Method
from netsim_ddp.compression.statistics import Statistics
from netsim_ddp.errors import UsageError
from netsim_ddp.methods import DEFAULT, takes
from netsim_ddp.methods.topk import TOPK


class HookState(GradientAveraging):
    """State of :func:`method_hook`: a method over a model's parameters, and what it keeps between steps.

    Args:
        named_parameters: of the model, before or after it was wrapped, or the model itself. Only they may reach the
            hook.
        method: by its name on the command line; ``params`` are for it.
        process_group: the one that DDP was given; default torch's.
        overlap: exchange in DDP's default bucket sizes while backward goes on, Top-K methods in a thread of their own
            (on the CPU). Off, the whole gradient is one exchange when backward is through: fewer messages, and the
            bits of :class:`DistributedBackend`. ``"auto"`` times 8 of the first steps each way, and all ranks keep what
            the slowest of them is faster with; the attribute ``overlap`` says which is in use.
        scaler: the ``GradScaler`` that scales the loss, None if there is none. By default (``"auto"``) the first hook
            call looks for the only one in use, and says so; it asks for the name where there are several, and knows
            nothing of one that is first used later, or of a loss that is multiplied by hand: divide such gradients
            yourself, or keep the factor constant. Can be set later, as ``state.scaler``.

    One rank's NaN or inf makes the whole step's gradients NaN on every rank, with a warning: as under DDP without a
    hook, so that ``GradScaler`` skips the step. So does a sum of gradients that is beyond float32, scaled or not. The
    step then has never been: residuals, owners' sums and velocity are, on every rank, what they were before it, also
    those of buckets that had been exchanged already. With ``nonfinite="skip"`` and no scaler the gradients are 0.
    Methods that keep nothing, ``dense``, ``fp16`` and ``bf16``, let a NaN or inf through, at its own place.

    A parameter that no rank used in a step (``find_unused_parameters``) gets no gradient from DDP. What the ranks sent
    for it from their residuals goes back there when the backward pass is over.

    It belongs to one DDP model: two models (a GAN's) want a state each.

    :meth:`state_dict` is for checkpoints, one per rank. A pickled state carries the same and comes back without
    parameters and process group, neither of which can be pickled usefully: :meth:`bind` gives it new ones.

    It may be made, or unpickled, before ``init_process_group``: its place among the ranks is looked up at the first
    exchange. That one, and the first after a change of the parameters, compares what the ranks have.

    Raises:
        UsageError: unknown method or option, a bad value, or parameters without names.
        UnusableParameter: (a ValueError) no parameter needs a gradient, they live on several devices, one is of a type
            that is not exchanged, or has another's name.
    """

    between_steps = (
        "write optimizer.zero_grad() after every step; to accumulate, run all but the last backward pass of a step "
        "within ddp.no_sync()"
    )

    def __init__(
        self,
        named_parameters: NamedParameters,
        method: str = DEFAULT.name,
        *,
        process_group: dist.ProcessGroup | None = None,
        overlap: bool | Literal["auto"] = False,
        scaler: Scaler = "auto",
        **params: Any,
    ) -> None:
        if overlap not in (False, True, "auto"):
            raise UsageError(f"overlap is {overlap!r}", hint="write overlap=True, False or 'auto'")
        self.method, self.overlap = method, overlap is True
        self._choice = OverlapChoice() if overlap == "auto" else None
        self.params: dict[str, Any] = checked_params(method, params | ({"overlap": True} if overlap else {}))
        self.params.pop("overlap", None)
        self.scaler = scaler
        self._saved, self._loaded = None, False
        self._unbound()
        self.bind(named_parameters, process_group)

    def __repr__(self) -> str:
        return super().__repr__()[:-1] + f", overlap={self.overlap})"

    def _unbound(self) -> None:
        self._start_anew()
        self._named: Named | None = None
        self._buckets: dict[int, HookCall] = {}
        """The last call for each of DDP's buckets, by its number."""
        self._step: HookStep | None = None
        """The one that DDP's calls are making up."""
        self._unfrozen: set[str] = set()
        """Parameters that are trained since the layout was made anew for it; a DDP made before does not know them."""
        self._waiting: ByName = {}
        """What one rank alone has not applied yet of what several had pending."""

    @property
    def _name(self) -> str:
        return self.method

    @property
    def _known(self) -> set[str] | None:
        return None if self._named is None else {name for name, _ in self._named}

    def bind(self, named_parameters: NamedParameters, process_group: dist.ProcessGroup | None = None) -> None:
        """Work on these parameters from now on, with what was kept for those of the same names: after unpickling, or
        when the model has got other parameters. The next exchange compares what the ranks have.

        Raises:
            ValueError: what was kept is of other parameters, or of another rank; nothing has changed then.
        """
        named, membership = model_parameters(named_parameters), Membership(process_group)
        if membership.is_known:
            self._build(named, membership)
        else:
            trained(named)
            self._saved = self._kept()
            if self._saved is not None:
                self._checked(self._saved, None, {name for name, _ in named})
            self._named, self._membership, self._methods = named, membership, []

    def _build(self, named: Named, membership: Membership) -> None:
        """Lay everything out for these parameters as they are now; all or nothing."""
        with own_modes(named[0][1].device if named else torch.device("cpu")):
            self._lay_out(named, membership)

    def _lay_out(self, named: Named, membership: Membership) -> None:
        group, flat = membership.group(), FlatGradients(named)
        self._end_step()
        for method in self._methods:
            method.roll_back()  # a step that was left open has never been
        cuts = ddp_buckets(flat) if self.overlap else [(0, len(flat.parameters))]

        def build(place: Group) -> list[Method]:
            return [build_method(self.method, flat.part(*cut), place, **self.params) for cut in cuts]

        known = {name for name, _ in named}
        methods, parked = self._continued(build, group, known)
        self._adopt(flat, group, methods, parked, known)
        self._named, self._membership = named, membership
        self._flat, self._saved, self._compared = flat, None, False
        self._overlaps = self.overlap
        self._parts = Parts(flat, cuts, methods, self.method)
        self._buckets = {}

    def _prepare_step(self, group: Group) -> None:
        """Before a step: build what could not be built yet, and again where the group, or the parameters' device or
        type, are others by now; and compare what the ranks have, once for each layout."""
        assert self._named is not None
        if self._choice is not None:
            self.overlap = self._choice.overlap(group, self._named[0][1].device)
        current = (
            self._methods
            and self._built_for is group
            and self._flat.holds(self._named)
            and self._overlaps == self.overlap
        )
        if current and self._compared:
            return
        with same_on_all_ranks(group) as facts:
            if not current:
                before = set(self._flat.names) if self._methods else None
                self._build(self._named, self._membership)
                self._unfrozen = set() if before is None else set(self._flat.names) - before
            facts.update(self._described(self._methods, self._named, overlap=self.overlap))
        self._compared = True

    def take(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """DDP's ``bucket`` is there. The future holds its average once the step's last bucket has been taken.

        Raises:
            RuntimeError: the state was unpickled or deep-copied, and not bound.
            ValueError: the bucket holds a parameter that this state was not made for.
            UsageError: the buckets are another DDP model's than those of the step before.
        """
        if self._named is None:
            raise RuntimeError(
                "this state was unpickled or deep-copied: call state.bind(model.named_parameters()) first"
            )
        group = self.group
        call = HookCall(bucket, self._buckets.get(bucket.index()))
        if group.world_size == 1:
            self._apply_alone(call, group)
            call.answer()
        else:
            with own_modes(bucket.buffer().device):
                self._take(bucket, call, group)
        return call.future

    def _take(self, bucket: GradBucket, call: HookCall, group: Group) -> None:
        if bucket.index() == 0:
            self._end_step()  # whatever an interrupted backward left is void
            self._prepare_step(group)
            if not call.checked:
                self._buckets = {}  # DDP has cut them anew
            scale = self._loss_scale.now() if self._parts.keeps_units else 1.0
            self._step = HookStep(self._parts, scale, self._unfrozen, self)
        assert self._step is not None
        # A layout that was made anew for this step does not know any bucket.
        for parameter in () if bucket.index() in self._buckets and call.checked else call.parameters:
            self._check(parameter, call.buffer)
        self._buckets[bucket.index()] = call
        self._step.receive(call)
        if bucket.is_last():
            self._complete(self._step)

    def _end_step(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            step.abandon()

    def _complete(self, step: HookStep) -> None:
        step.complete()
        if step.refused is not None:
            what = f"{step.refused}: this step's gradients are NaN on every rank"
            warnings.warn(what, RuntimeWarning, stacklevel=2)
        if step.refused is not None or self.skipped:
            # A scaler that sees zeros would never come down.
            step.fill(torch.nan if step.refused is not None or self._loss_scale.active else 0.0)
        if self._cleared is not None:
            self._cleared.step_ended()
        step.answer()
        self._step = None
        if self._choice is not None:
            self._choice.step_ended()

    def _apply_alone(self, call: HookCall, group: Group) -> None:
        """One rank exchanges nothing; what several had pending goes into the first gradients that it has."""
        if (kept := self._kept()) is not None:
            self._waiting = self._checked(kept, group, None).merged(RESIDUALS, folded=True)
            self._saved, self._methods = None, []
        if not self._waiting:
            return
        assert self._named is not None
        names = {id(parameter): name for name, parameter in self._named}
        for parameter, gradient in zip(call.parameters, call.gradients, strict=True):
            add_pending(self._waiting, names[id(parameter)], gradient, self._loss_scale.now())

    def _check(self, parameter: Tensor, buffer: Tensor) -> None:
        """DDP gives a sparse gradient a bucket of its own, and knows parameters that are no longer trained."""
        place = self._parts.place.get(id(parameter))
        if buffer.layout != torch.strided:
            check_gradient("a parameter" if place is None else self._flat.names[place], buffer)
        if place is None:
            raise ValueError(self._unknown(parameter))

    def _unknown(self, parameter: Tensor) -> str:
        """Why DDP sends a parameter that has no place here."""
        for name, known in self._named or ():
            if known is parameter:
                return (
                    f"{name} was frozen after DDP was made, which still exchanges it: wrap the model in DDP anew and "
                    "register a hook with state.bind(model.named_parameters()), or leave requires_grad as it is"
                )
        shape = "x".join(map(str, parameter.shape)) or "a number"
        return (
            f"DDP sends a parameter of shape {shape} that this state was not made for: it is another model's. Make the "
            "state with the named_parameters() of the model that DDP wraps, or call state.bind() with them"
        )

    @property
    def skipped(self) -> bool:
        """Whether the ranks skipped the last step (``nonfinite=skip``): its gradients are 0, or NaN under a scaler, and
        the optimizer should leave the step out."""
        return any(method.skipped for method in self._methods)

    def statistics(self, *, layers: bool = False) -> Statistics | None:
        """As :meth:`DistributedBackend.statistics`: what this rank sent and kept back in the last step."""
        found, wires = (self._methods[::-1], self._parts.wires) if self._compared else ([], [])
        return statistics_of(found, wires, layers=layers)

    def state_dict(self) -> dict[str, Any]:
        """What this rank's checkpoint must keep."""
        if self._saved is not None:
            return self._saved
        found = {"method": self.method, "overlap": self.overlap, "options": self._options}
        if not self._methods or self._built_for is None:
            waiting = {RESIDUALS: self._waiting} if self._waiting else {}
            return {**found, "parts": [], "parked": waiting}  # nothing has been exchanged
        return {
            **found,
            "parked": self._parked,
            "rank": self._built_for.rank,
            "world_size": self._built_for.world_size,
            "parts": [method.state_dict() for method in self._methods],
        }

    def __getstate__(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "overlap": self.overlap,
            "_choice": self._choice,
            "params": self.params,
            "_loss_scale": LossScale(None if self.scaler is None else "auto"),
            "_saved": self.state_dict(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Version 0.1.0 pickled no scale, and none before 0.2.0 a choice.
        self.__dict__.update({"_loss_scale": LossScale("auto"), "_choice": None, **state})
        self._loaded = bool(Saved.of(self._saved).parts) if self._saved else False
        self._unbound()


class TopKState(HookState):
    """State of :func:`topk_hook`: Top-K with error feedback.

    Args:
        named_parameters: as :class:`HookState`, whose other arguments may follow.
        ratio: kept fraction k/N.
        options: of the method ``topk``: ``values="fp16"``, ``collective="split"`` ...
    """

    def __init__(self, named_parameters: NamedParameters, ratio: float = 0.01, **options: Any) -> None:
        super().__init__(named_parameters, TOPK.name, ratio=ratio, **options)


def method_hook(state: HookState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Average ``bucket`` over ranks by the state's method; for ``register_comm_hook``."""
    return state.take(bucket)


def topk_hook(state: TopKState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Average ``bucket`` over ranks by Top-K with error feedback; for ``register_comm_hook``.

    Raises:
        UsageError: the state is of a method that is none of Top-K.
    """
    if not takes(state.method, "ratio"):
        raise UsageError(
            f"topk_hook has got a state of the method {state.method!r}",
            hint="write ddp.register_comm_hook(state, netsim_ddp.method_hook), or make a TopKState",
        )
    return state.take(bucket)
