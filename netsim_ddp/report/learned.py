"""What a training reached, what it sent and how long it took: a row per cell, from its curves alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from netsim_ddp.report.collection import Block, Entry
from netsim_ddp.report.wording import DASH
from netsim_ddp.results.intervals import mean_interval
from netsim_ddp.results.record import EpochRecord
from netsim_ddp.units import format_bytes, format_duration

HEADERS = ("method", "seeds", "epochs", "accuracy %", "validation loss", "sent per rank", "time")


def rows(block: Block) -> list[tuple[str, ...]]:
    """In the columns of ``HEADERS``: after the last epoch, means over seeds, ± half a 95% t-interval."""
    return [_row(entry) for entry in block.entries if _last(entry)]


def sentences(block: Block) -> list[str]:
    """``topk: 86.6±0.4% after 5 epochs, 4.9 MB sent per rank, 3.1 s.``"""
    found = []
    for entry in block.entries:
        if _last(entry):
            label, _, epochs, accuracy, loss, sent, took = _row(entry)
            reached = f"loss {loss}" if accuracy == DASH else f"{accuracy}%"
            plural = "" if epochs == "1" else "s"
            found.append(f"{label}: {reached} after {epochs} epoch{plural}, {sent} sent per rank, {took}.")
    return found


def _last(entry: Entry) -> list[EpochRecord]:
    return [repeat.epochs[-1] for repeat in entry.cell.repeats if repeat.epochs]


def _row(entry: Entry) -> tuple[str, ...]:
    last = _last(entry)
    sent = fmean(
        sum(epoch.tx_bytes for epoch in repeat.epochs) for repeat in entry.cell.repeats if repeat.epochs
    )
    epochs = sorted({epoch.epoch for epoch in last})
    return (
        entry.label,
        str(len(last)),
        " to ".join(dict.fromkeys(str(number) for number in (epochs[0], epochs[-1]))),
        _mean([epoch.validation_accuracy for epoch in last], 100.0, 2),
        _mean([epoch.validation_loss for epoch in last], 1.0, 4),
        format_bytes(sent),
        format_duration(fmean(epoch.elapsed_s for epoch in last)),
    )


def _mean(values: Sequence[float | None], scale: float, digits: int) -> str:
    known = [value * scale for value in values if value is not None]
    if not known:
        return DASH
    if not all(math.isfinite(value) for value in known):
        return "diverged"
    estimate = mean_interval(known)
    text = f"{estimate.value:.{digits}f}"
    return f"{text}±{estimate.half_width:.{digits}f}" if math.isfinite(estimate.half_width) else text
