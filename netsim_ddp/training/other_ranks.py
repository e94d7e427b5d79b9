"""A rank's state out of a checkpoint that another number of ranks saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from netsim_ddp.training.loop import Totals, Trainer
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
    if "sums" not in own["exchange"] and "sums" in (fresh := trainer.exchange.state_dict()):
        own["exchange"]["sums"] = fresh["sums"]
    if ranks == 1 and rule == "sum" and (pending := pending_gradient(saved)):
        # Alone, nothing is exchanged and no residual read: what is pending goes into the first step's gradient.
        flat = torch.cat([pending[name].reshape(-1) for name in trainer.flat.names])
        trainer.pending = flat.to(trainer.flat.data.device)
        own["exchange"]["error_buffer"] = {name: torch.zeros_like(value) for name, value in pending.items()}
    own["step"] = steps * first["step"] // first["steps_per_epoch"]
    own["totals"] = _summed([state["totals"] for state in states] if rank == 0 else [])
    own["totals"] |= {"steps": own["step"], "clock_s": first["totals"]["clock_s"]}
    return own


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
