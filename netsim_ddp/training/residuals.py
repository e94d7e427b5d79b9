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

from netsim_ddp.compression.shares import Shares
from netsim_ddp.errors import UsageError

_KNOWN = {"rank", "world_size", "selection", "error_buffer", "velocity", "sums", "q", "rounding"}


def converted(states: Sequence[Mapping[str, Any]], rule: str, rank: int, world_size: int) -> dict[str, Any]:
    """The method's state of new ``rank``, from those of all old ranks, in rank order.

    Args:
        rule: ``sum`` or ``drop``.

    Raises:
        UsageError: a method of the user's own, whose state nobody here can read.
    """
    first = states[0]
    if unknown := set(first) - _KNOWN:
        raise UsageError(
            f"the method's state ({', '.join(sorted(unknown))}) belongs to the ranks it was saved on",
            hint=f"go on with {len(states)} workers",
        )
    state = {key: value for key, value in first.items() if key not in ("sums", "rounding")}
    if "rank" in state:
        state |= {"rank": rank, "world_size": world_size}
    if "error_buffer" in state:
        pending = pending_gradient(states)
        state["error_buffer"] = {
            name: value if rule == "sum" else torch.zeros_like(value) for name, value in pending.items()
        }
        if "selection" in state:  # a collective without owners does not look at it
            numel = sum(value.numel() for value in pending.values())
            state["sums"] = torch.zeros(Shares(numel, world_size).size(rank))
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
        shares = Shares(sum(sizes), len(states))
        owed = torch.zeros(sum(sizes), dtype=torch.float64)
        for owner, state in enumerate(states):
            sums = state["sums"]
            owed[shares.positions(owner, torch.arange(sums.numel()))] = sums.double() / len(states)
        for (name, value), part in zip(means.items(), torch.split(owed, sizes), strict=True):
            means[name] = (value.double() + part.view(value.shape)).float()
    return means


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total += tensor.double()
    return (total / len(tensors)).float()
