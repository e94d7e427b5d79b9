"""Host-limited: where this host, and not the link, set the pace. One rule for every cell, whatever its method.

A cell is host-limited if its exchange, from the last rank's start of the step's first message to the last finish,
takes longer than the link's own model says for the same step, by more than max(5% of the model's time, 2% of the
step). Both times stand with every measured step (``exchange_s``, ``model_s``). The model is bytes / rate in the order
of the schedule, the network's delay on each way (and TCP, where the link emulates it), with the cost that one message
has on this host, measured before the first step; what the ranks computed in between lasts what it lasted, so a bucket
that backward fills late limits nobody. The figures are those of the tables: the median over steps, then over repeats.

It is host-limited also where the probe, with all ranks sending at once, found less than 90% of the line: no figure of
such a link is the link's alone.

A ratio with a limited cell is a bound: the other network that carried what was asked for would have ended the limited
step sooner. See :func:`bound`.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from netsim_ddp.results.probe import HOST_TOLERANCE, MESSAGE_FLOOR_S, MESSAGE_TOLERANCE
from netsim_ddp.results.record import Bound, Cell, LinkRecord

MODEL_SHARE, STEP_SHARE = 0.05, 0.02


@dataclass(frozen=True)
class Exchange:
    """A cell's exchange and step, seconds: as measured, and by the link's own model.

    What an idle link has saved up carries the beginning of the next message for free. ``early_s`` is what that took off
    the step: an exchange shorter than the line allows, by more than max(3%, 0.1 ms).
    """

    took_s: float
    model_s: float
    step_s: float
    line_s: float
    """By the model without the host's cost of messages."""

    @property
    def limited(self) -> bool:
        """Whether the exchange takes longer than the link explains."""
        return self.took_s - self.model_s > max(MODEL_SHARE * self.model_s, STEP_SHARE * self.step_s)

    @property
    def early_s(self) -> float:
        off = self.line_s - self.took_s
        return off if off > max(MESSAGE_TOLERANCE * self.line_s, MESSAGE_FLOOR_S) else 0.0


def exchange(cell: Cell) -> Exchange | None:
    """The median over steps, then over repeats; None where no step was held against a model.

    The excess is the median of each step's own, so that a step in which the ranks waited long does not hide it.
    """
    rows = []
    for repeat in cell.repeats:
        found = [
            (took - model, model, max(step.wall_s for step in steps), steps[0].line_s or model)
            for steps in zip(*(rank.steps for rank in repeat.ranks), strict=False)
            if (took := steps[0].exchange_s) is not None and (model := steps[0].model_s) is not None
        ]
        if found:
            excess, model_s, wall, line = map(median, zip(*found, strict=True))
            rows.append((model_s + excess, model_s, wall, line))
    return Exchange(*map(median, zip(*rows, strict=True))) if rows else None


def short_of_line(link: LinkRecord) -> float | None:
    """The share of the line that the probe found with all ranks sending at once, where it was too little."""
    if link.together_bps is None or not link.ceiling_bps:
        return None
    share = link.together_bps / link.ceiling_bps
    return share if share < 1 - HOST_TOLERANCE else None


def is_limited(cell: Cell) -> bool:
    """Whether ``cell`` is host-limited. A cell of a file from before this rule keeps what that file said."""
    if short_of_line(cell.link) is not None:
        return True
    found = exchange(cell)
    return cell.link.host_limited if found is None else found.limited


def bound(cell: Cell, baseline: Cell) -> Bound:
    """What the ratio baseline / ``cell`` of their steps is, where one of them or both are host-limited: with the method
    limited its speedup is at least that, with the baseline limited at most."""
    bounds: dict[tuple[bool, bool], Bound] = {
        (False, False): "",
        (True, False): ">=",
        (False, True): "<=",
        (True, True): "none",
    }
    return bounds[cell.link.host_limited, baseline.link.host_limited]
