"""What becomes of the residuals when a training goes on with another number of ranks.

With e_i the residual of rank i of P and s_j what owner j has summed and not sent on, a step preserves

    mean over ranks of e + (sum of s) / P + update = mean of the gradients + the same before it,

so M = (sum of e_i + sum of s_j) / P is the gradient that is still to come. ``sum`` gives every new rank e = M: its mean
over any number of ranks is M again, and owners start empty. Velocities of momentum correction are averaged likewise.
``drop`` loses M. Either way the selection goes on with its budget, so that a warm-up of the ratio is not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from netsim_ddp.compression.shards import saved_sums
from netsim_ddp.errors import UsageError
from netsim_ddp.units import counted

_KNOWN = {"rank", "world_size", "selection", "error_buffer", "velocity", "sums", "shares", "q", "rounding"}
_SAID = {"method", "options", "parked"}
"""What a backend adds to its method's state."""
RULES = ("sum", "drop")


def for_other_ranks(
    states: Sequence[Mapping[str, Any]], rule: str, rank: int, world_size: int
) -> dict[str, Any]:
    """The state that ``rank`` of ``world_size`` ranks goes on from, out of those that another number of ranks saved.

    ::

        saved = [torch.load(f"checkpoint-{each}.pt")["hook"] for each in range(4)]
        state.load_state_dict(netsim_ddp.for_other_ranks(saved, "sum", rank, world_size))

    Args:
        states: what ``state_dict()`` of a :class:`~netsim_ddp.HookState`, :class:`~netsim_ddp.DistributedBackend` or
            :class:`~netsim_ddp.CompressedAdam` gave on every old rank, in rank order.
        rule: ``sum`` keeps what is pending: every new rank begins with (sum of the residuals + sum of the owners' sums)
            / old ranks. One rank alone gives it to its first step. ``drop`` loses it.

    Raises:
        ValueError: another rule, a rank is missing, or one rank alone and a velocity, which has no place there.
        UsageError: a method of the user's own, whose state nobody here can read.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is not one of {', '.join(RULES)}")
    if not states or not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} cannot go on from {len(states)} states")
    if "exchange" in states[0]:
        own = [each["exchange"] for each in states]
        return {**states[0], "exchange": for_other_ranks(own, rule, rank, world_size)}
    if "parts" not in states[0]:
        return _on_other_ranks(states, rule, rank, world_size) if states[0] else {}
    _check_complete(states)
    parts = [
        _on_other_ranks([each["parts"][i] for each in states], rule, rank, world_size)
        for i in range(len(states[0]["parts"]))
    ]
    return {
        **states[0],
        "parts": parts,
        "parked": _parked(states, rule),
        "rank": rank,
        "world_size": world_size,
    }


def _on_other_ranks(
    states: Sequence[Mapping[str, Any]], rule: str, rank: int, world_size: int
) -> dict[str, Any]:
    _check_complete(states)
    if world_size == 1 and rule == "sum" and "velocity" in states[0]:
        raise ValueError(
            "one rank alone exchanges nothing, so its optimizer must have the momentum: a velocity has no place. "
            "Write drop, and give the optimizer the momentum"
        )
    return converted(states, rule, rank, world_size)


def _check_complete(states: Sequence[Mapping[str, Any]]) -> None:
    for place, state in enumerate(states):
        if state.get("rank", place) != place or state.get("world_size", len(states)) != len(states):
            raise ValueError(
                f"state {place} of {len(states)} was saved by rank {state.get('rank')} of {state.get('world_size')}: "
                "give those of all old ranks, in rank order"
            )


def _parked(states: Sequence[Mapping[str, Any]], rule: str) -> dict[str, dict[str, Tensor]]:
    """What waits for parameters that are not trained now, likewise."""
    parked: dict[str, dict[str, Tensor]] = {}
    for kind, tensors in states[0].get("parked", {}).items():
        if kind == "q":
            parked[kind] = dict(tensors)
        elif rule == "sum":
            parked[kind] = {name: _mean([each["parked"][kind][name] for each in states]) for name in tensors}
    return parked


def converted(states: Sequence[Mapping[str, Any]], rule: str, rank: int, world_size: int) -> dict[str, Any]:
    """The method's state of new ``rank``, from those of all old ranks, in rank order.

    Args:
        rule: ``sum`` or ``drop``.

    Raises:
        UsageError: a method of the user's own, whose state nobody here can read.
    """
    first = states[0]
    if unknown := set(first) - _KNOWN - _SAID:
        raise UsageError(
            f"the method's state ({', '.join(sorted(unknown))}) belongs to the ranks it was saved on",
            hint=f"go on with {counted(len(states), 'worker')}",
        )
    state = {
        key: value for key, value in first.items() if key not in ("sums", "shares", "rounding", "parked")
    }
    if first.get("parked"):
        state["parked"] = _parked(states, rule)
    if "rank" in state:
        state |= {"rank": rank, "world_size": world_size}
    if "error_buffer" in state:
        state["error_buffer"] = {
            name: value if rule == "sum" else torch.zeros_like(value)
            for name, value in pending_gradient(states).items()
        }
    if "velocity" in state:
        state["velocity"] = {
            name: _mean([each["velocity"][name] for each in states]) * (1.0 if rule == "sum" else 0.0)
            for name in first["velocity"]
        }
    return state


def pending_gradient(states: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """M by parameter, float32; empty where there is no feedback."""
    if "error_buffer" not in states[0]:
        return {}
    means = {
        name: _mean([state["error_buffer"][name] for state in states]) for name in states[0]["error_buffer"]
    }
    if "sums" in states[0]:
        sizes = [value.numel() for value in means.values()]
        owed = torch.zeros(sum(sizes), dtype=torch.float64, device="cpu")
        for state in states:
            owed += saved_sums(state, owed.numel()).double() / len(states)
        for (name, value), part in zip(means.items(), torch.split(owed, sizes), strict=True):
            means[name] = (value.double() + part.view(value.shape)).float()
    return means


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total += tensor.double()
    return (total / len(tensors)).float()
