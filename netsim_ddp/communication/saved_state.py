"""What goes on where a state is loaded, or where the parameters have changed: one rule for the backend and the hook,
each of which takes the other's state.

Whatever is pending belongs to a parameter, by its name: residuals, velocities, PowerSGD's basis. It goes on with the
parameter, whatever the order, the buckets, the collective, the ratio, the selector and the formats are now. What an
owner of split-reduce kept goes to this rank's own residual where the owners' shares are others now: the mean of the
ranks' residuals + the owners' sums / P stays as it was, since every rank's own counts with 1/P in both. A new parameter
begins with nothing pending. What is pending for one that is not trained any more waits until it is trained again.

Refused, before anything has changed, is what would lose something or mean something else: another method, rank or
number of ranks; feedback that is off here; momentum that only one side has; parameters that are not here at all.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from netsim_ddp.communication.parameters import Named, without_prefixes
from netsim_ddp.communication.segments import Group, Method
from netsim_ddp.compression.feedback import ErrorFeedbackBuffer
from netsim_ddp.compression.kernels import all_finite
from netsim_ddp.compression.shards import saved_sums
from netsim_ddp.methods import METHODS, entry_of

State = Mapping[str, Any]
ByName = dict[str, Tensor]

RESIDUALS, VELOCITIES, BASES = "error_buffer", "velocity", "q"
BY_NAME = (RESIDUALS, VELOCITIES, BASES)
"""Parts of a method's state that hold one tensor per parameter."""
_OWN = frozenset({*BY_NAME, "rank", "world_size", "selection", "rounding", "sums", "shares"})
"""What the states of netsim's own methods consist of."""
_HOOK = frozenset({"method", "overlap", "options", "parked", "rank", "world_size", "parts"})
"""What the state of a hook consists of."""


@dataclass
class Saved:
    """A state as it was saved, by the names that the model has without wrappers.

    Attributes:
        parts: of the methods that the parameters were cut into.
        parked: what was pending for parameters that were not trained then: by kind, then by name.
        options: of the method, None up to version 0.1.0.
    """

    method: str | None
    parts: list[dict[str, Any]]
    parked: dict[str, ByName] = field(default_factory=dict)
    options: Mapping[str, Any] | None = None
    rank: int | None = None
    world_size: int | None = None

    @classmethod
    def of(cls, state: State) -> Saved:
        """``state`` of a backend, which is its method's and more, or of a hook, which has ``parts``."""
        own_keys = ("method", "options", "parked")
        hook = "parts" in state and set(state) <= _HOOK
        parts = state["parts"] if hook else [{k: v for k, v in state.items() if k not in own_keys}]
        parked = state.get("parked", {})
        unique = list(
            dict.fromkeys(
                name for each in (*parts, parked) for kind in BY_NAME for name in (each.get(kind) or ())
            )
        )
        short = dict(zip(unique, without_prefixes(unique), strict=True))

        def renamed(each: State) -> dict[str, Any]:
            return {
                key: {short[name]: value for name, value in held.items()} if key in BY_NAME else held
                for key, held in each.items()
            }

        own = [renamed(part) for part in parts if part]
        places = [each for each in (state, *own) if "rank" in each]
        rank, size = (places[0]["rank"], places[0]["world_size"]) if places else (None, None)
        return cls(
            state.get("method") or _method_of(own), own, renamed(parked), state.get("options"), rank, size
        )

    @property
    def names(self) -> set[str]:
        """Of all parameters for which something may be pending; a basis is no gradient."""
        return {
            name
            for each in (*self.parts, self.parked)
            for kind in (RESIDUALS, VELOCITIES)
            for name in each.get(kind, ())
        }

    def holds(self, kind: str) -> bool:
        return any(kind in part for part in self.parts)

    def merged(self, kind: str, *, folded: bool) -> ByName:
        """The tensors of ``kind`` by name. ``folded``: residuals with what this rank kept as an owner."""
        found = dict(self.parked.get(kind, {}))
        for part in self.parts:
            tensors = part.get(kind, {})
            found |= with_sums(part) if folded and kind == RESIDUALS and tensors else tensors
        return found


def _method_of(parts: Sequence[State]) -> str | None:
    """The method whose state this is, or one that goes on from the same; None where its state does not show it."""
    keys = {key for part in parts for key in part}
    return next((entry.name for entry in METHODS.values() if entry.state_key in keys), None)


def with_sums(part: State) -> ByName:
    """The residuals in ``part`` and what its rank kept as an owner, which count alike."""
    residuals: ByName = part[RESIDUALS]
    if "sums" not in part:
        return residuals
    sizes = [value.numel() for value in residuals.values()]
    owed = torch.split(saved_sums(part, sum(sizes)), sizes)
    return {
        name: value + sums.view(value.shape).to(value)
        for (name, value), sums in zip(residuals.items(), owed, strict=True)
    }


def check_options(saved: Saved, method: str, options: Mapping[str, Any], group: Group | None) -> None:
    """Refuse a state that cannot go on here, whatever the parameters.

    Raises:
        ValueError: one line that says what was saved and what is here.
    """
    keys = {entry_of(name).state_key for name in (saved.method or method, method)}
    if saved.method not in (None, method) and (len(keys) > 1 or "" in keys):
        raise ValueError(f"the state was saved with method {saved.method}, this is {method}")
    if group is not None:
        places = (("rank", saved.rank, group.rank), ("world_size", saved.world_size, group.world_size))
        for key, theirs, ours in places:
            if theirs is not None and theirs != ours:
                raise ValueError(
                    f"the state was saved with {key} {theirs}, this is {ours}: every rank saves and loads a "
                    "file of its own, such as torch.save(state.state_dict(), f'netsim-{rank}.pt') (Accelerate's "
                    "register_for_checkpointing saves rank 0's alone: docs/training.md has the way), and "
                    "netsim_ddp.for_other_ranks() makes one for another number of ranks"
                )
    if saved.holds(RESIDUALS) and options.get("feedback") is False:
        raise ValueError(
            "the state was saved with feedback=on and holds what was not sent yet, this has feedback=off and would "
            "lose it: write feedback=on, or load no state"
        )
    was = (
        None if saved.options is None else float(saved.options.get("momentum") or 0.0)
    )  # None: it does not say
    now = float(options.get("momentum") or 0.0)
    if (was is None or was > 0) and not now and (was or saved.holds(VELOCITIES)):
        if was is None and options.get("clip") is not None:
            return  # version 0.1.0 saved a velocity for clip alone too
        momentum = "momentum" if was is None else f"momentum={was:g}"
        raise ValueError(
            f"the state was saved with {momentum}, this has none: what the velocity still owes would be lost. "
            "Write the same momentum, or load no state"
        )
    if now and (was == 0 or (was is None and saved.parts and not saved.holds(VELOCITIES))):
        raise ValueError(
            f"the state was saved without momentum, this has momentum={now:g}: there is no velocity to go on with. "
            "Write momentum=0, or load no state"
        )


def check_names(saved: Saved, known: Collection[str]) -> None:
    """Refuse what is pending for parameters that are not here.

    Args:
        known: the names of all parameters, trained or not.

    Raises:
        ValueError: with the first such name.
    """
    if unknown := sorted(saved.names - set(known)):
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ValueError(
            f"the state holds what is pending for {unknown[0]}{more}, and there is no such parameter here "
            f"({', '.join(sorted(known)[:3])}, ...): it was saved of another model"
        )


def continue_from(saved: Saved, methods: Sequence[Method]) -> dict[str, ByName]:
    """Have ``methods`` go on from ``saved``, which has been checked.

    Returns:
        What is pending for parameters that they do not have, by kind and name.

    Raises:
        ValueError: a parameter has another shape now, or a tensor is not finite; no method has changed then.
    """
    states = [_portion(saved, method) for method in methods]
    for method, state in zip(methods, states, strict=True):
        if state:
            method.load_state_dict(state)
    here = {name for method in methods for name in method.flat.shapes}
    parked = {
        kind: {name: value for name, value in saved.merged(kind, folded=True).items() if name not in here}
        for kind in BY_NAME
    }
    return {kind: waiting for kind, waiting in parked.items() if waiting}


def _portion(saved: Saved, method: Method) -> dict[str, Any]:
    """What ``method`` goes on from, in its own form."""
    names = list(method.flat.shapes)
    same = next((part for part in saved.parts if list(part.get(RESIDUALS, ())) == names), None)
    fresh = method.state_dict()
    if not set(fresh) <= _OWN or any(not set(part) <= _OWN for part in saved.parts):
        return _as_it_is(saved, method)
    if not fresh or not (saved.parts or saved.parked):
        return {}
    folded = same is None or "sums" not in fresh
    state = dict(fresh)
    if BASES in fresh:  # where the next step starts from is no promise
        found = saved.merged(BASES, folded=False)
        state[BASES] = {
            name: found[name] if name in found and found[name].shape == value.shape else value
            for name, value in fresh[BASES].items()
        }
    for kind in (RESIDUALS, VELOCITIES):
        if kind in fresh:
            found = saved.merged(kind, folded=folded)
            state[kind] = {
                name: _fitting(name, found, fresh[kind].get(name), shape)
                for name, shape in method.flat.shapes.items()
                if name in found or name in fresh[kind]
            }
    if "sums" in fresh:
        state["sums"] = torch.zeros_like(fresh["sums"])
    for part in [same] if same is not None else saved.parts[:1]:
        if "selection" in fresh and "selection" in part:
            state["selection"] = _selection(part["selection"], fresh["selection"], same=same is not None)
        if "rounding" in fresh and "rounding" in part:
            state["rounding"] = part["rounding"]
        if not folded and "sums" in part:
            state = {key: value for key, value in state.items() if key != "shares"}  # 0.1.0 saved none
            state |= {key: part[key] for key in ("sums", "shares") if key in part}
    return state


def _fitting(name: str, found: Mapping[str, Tensor], fresh: Tensor | None, shape: torch.Size) -> Tensor:
    value = found.get(name)
    if value is None:
        assert fresh is not None
        return torch.zeros_like(fresh)
    if value.shape != shape:
        raise ValueError(
            f"{name} has a residual of shape {tuple(value.shape)}, and is {tuple(shape)} now: what is pending "
            "for it has no place. Give it another name, or make a new state"
        )
    if not all_finite(value):
        raise ValueError(f"what was saved as pending for {name} holds a NaN or inf")
    return value


def _selection(saved: State, fresh: State, *, same: bool) -> dict[str, Any]:
    """Where the selection stands. What it has learnt of single segments goes on where they are the same ones."""
    budget, selector = saved["budget"], saved["selector"]
    lengths = [each["lowest"].shape if "lowest" in each else None for each in (budget, fresh["budget"])]
    fits = lengths[0] is not None and lengths[0] == lengths[1]
    keep = same and (fits or "counts" not in fresh["budget"])
    return {
        "budget": {**(budget if keep else fresh["budget"]), "step": budget["step"]},
        "selector": selector if same and set(selector) == set(fresh["selector"]) else fresh["selector"],
    }


def _as_it_is(saved: Saved, method: Method) -> dict[str, Any]:
    """The state of a method of the user's own, which nobody here can take apart."""
    if not saved.parts:
        return {}
    if len(saved.parts) > 1 or method.flat.is_part:
        raise ValueError(
            "the state of a method of your own is carried over for the whole gradient only: overlap=off"
        )
    return saved.parts[0]


def warn_of_absent(
    parked: Mapping[str, Mapping[str, Tensor]],
    before: Mapping[str, Mapping[str, Tensor]],
    known: Collection[str],
) -> None:
    """Say, once, of which parameters something is kept that are not there at all, not even untrained.

    Args:
        before: what was parked in the layout before this one.
    """
    waiting, waited = (
        {name for kind in (RESIDUALS, VELOCITIES) for name in each.get(kind, ())} for each in (parked, before)
    )
    if gone := sorted(waiting - waited - set(known)):
        warnings.warn(
            f"{', '.join(gone)}: no longer among the parameters. What is pending for them is kept, and goes on when "
            "they come back",
            RuntimeWarning,
            stacklevel=4,
        )


def apply_alone(residuals: ByName, parameters: Named, scale: float) -> ByName:
    """Add what is pending to the gradients, which carry ``scale``.

    Returns:
        What waits on: for parameters without a gradient.
    """
    waiting = dict(residuals)
    with torch.no_grad():
        for name, parameter in parameters:
            if parameter.grad is not None and name in waiting:
                add_pending(waiting, name, parameter.grad, scale)
    return waiting


def add_pending(waiting: ByName, name: str, gradient: Tensor, scale: float) -> None:
    """Move what waits for ``name`` into its gradient."""
    if (rest := waiting.pop(name, None)) is not None:
        gradient.add_((rest * scale).to(gradient.device, gradient.dtype).view_as(gradient))


def unless_refused(buffer: ErrorFeedbackBuffer | None) -> AbstractContextManager[None]:
    """A buffer that the user handed over is laid out anew only if all goes well inside."""
    return nullcontext() if buffer is None else buffer.as_it_was_if_this_fails()
