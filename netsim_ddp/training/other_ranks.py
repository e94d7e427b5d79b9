"""A rank's state out of a checkpoint that another number of ranks saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from netsim_ddp.communication.sgd import DECAY
from netsim_ddp.training.exchange import FrozenMoment
from netsim_ddp.training.loop import Pending, Totals, Trainer
from netsim_ddp.training.residuals import converted, pending_gradient


def on_other_ranks(
    states: Sequence[dict[str, Any]], rule: str, place: tuple[int, int], steps: int, trainer: Trainer
) -> dict[str, Any]:
    """What a rank goes on from; residuals as :mod:`netsim_ddp.training.residuals` says.

    In mid-epoch the same share of the epoch counts as done, rounded down to whole steps.

    Args:
        states: of all old ranks, in rank order.
        rule: ``sum`` or ``drop``.
        place: this rank, and the number of ranks now. steps: of an epoch now.
        trainer: freshly built; with one rank and ``sum`` it receives what is pending.
    """
    rank, ranks = place
    first = states[0]
    own = dict(first)
    saved = [state["exchange"] for state in states]
    own["exchange"] = converted(saved, rule, rank, ranks) if saved[0] else {}
    if ranks == 1 and rule == "sum" and (pending := pending_gradient(saved)):
        # Alone, nothing is exchanged and no residual read.
        gradient = torch.cat([pending[name].reshape(-1) for name in trainer.flat.names])
        trainer.pending = Pending(gradient.to(trainer.flat.data.device), _into_gradient(saved[0], trainer))
        own["exchange"]["error_buffer"] = {name: torch.zeros_like(value) for name, value in pending.items()}
    own["step"] = steps * first["step"] // first["steps_per_epoch"]
    own["totals"] = _summed([state["totals"] for state in states] if rank == 0 else [])
    own["totals"] |= {"steps": own["step"], "clock_s": first["totals"]["clock_s"]}
    return own


def _into_gradient(saved: Mapping[str, Any], trainer: Trainer) -> float:
    """Returns the factor with which a residual is added to a gradient.

    Corrected momentum is in it already; a momentum that Adam's step adds up (m = b1 m + (1 - b1) g) is worth
    1 / (1 - b1) gradients.
    """
    if "velocity" in saved:
        return 0.0
    if isinstance(trainer.exchange, FrozenMoment):
        return 1.0 / (1.0 - float(trainer.exchange.optimizer.param_groups[0]["betas"][0]))
    return 1.0


def carried_momentum(
    optimizer: dict[str, Any], states: Sequence[dict[str, Any]], rule: str, ranks: int, names: Sequence[str]
) -> dict[str, Any]:
    """The optimizer's saved state with corrected momentum where it belongs now: each rank's velocity where there are
    several, the optimizer's buffer where there is one. To be called before :func:`on_other_ranks`, which takes the
    velocity out of ``states``.

    Args:
        names: of the parameters, in the optimizer's order.
    """
    saved = [state["exchange"] for state in states]
    if rule != "sum" or "velocity" not in saved[0] or 1 not in (ranks, len(states)):
        return optimizer
    ours: dict[int, dict[str, Tensor]] = optimizer["state"]
    now: dict[int, dict[str, Tensor]] = {}
    velocity = converted(saved, rule, 0, 1)["velocity"]
    for index, name in enumerate(names):
        kept = ours.get(index, {})
        if ranks == 1:
            now[index] = {"momentum_buffer": velocity[name] + kept.get(DECAY, 0.0)}
        elif "momentum_buffer" in kept:
            saved[0]["velocity"][name] = kept["momentum_buffer"]
    return {**optimizer, "state": now}


def _summed(totals: list[dict[str, Any]]) -> dict[str, Any]:
    """What several ranks have done of an epoch, as one rank's."""
    own = dataclasses.asdict(Totals())
    for each in totals:
        for key, value in each.items():
            if isinstance(value, int | float):
                own[key] += value
    for key in ("skipped", "payload_bytes", "predicted_bytes") if totals else ():
        own[key] = totals[0][key]  # every rank has the same of these, or nearly
    return own
