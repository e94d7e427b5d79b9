"""What a training reached, what it sent and how long it took: a row per cell, from its curves alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from netsim_ddp.report.collection import Block, Entry
from netsim_ddp.report.labels import DASH, points
from netsim_ddp.report.terminal.training import RULE, too_few
from netsim_ddp.results.stats import mean_interval
from netsim_ddp.results.summary import ALONE
from netsim_ddp.results.training_record import EpochRecord, TrainingSummary
from netsim_ddp.units import format_bytes, format_duration

HEADERS = (
    "method", "seeds", "epochs", "accuracy %", "points to dense", "verdict", "validation loss", "loss to dense, %",
    "sent per rank", "fewer bytes", "time", "to dense's accuracy - 1 point",
)  # fmt: skip
NOTE = (
    "After the last epoch: means over seeds, ± half a 95% t-interval. Differences to dense are taken seed by seed. "
    f"{RULE} The last column is the clock at the end of the first epoch that comes within a point of what dense ends "
    "with, the median of the seeds that do."
)


def rows(block: Block) -> list[tuple[str, ...]]:
    """In the columns of ``HEADERS``: after the last epoch, means over seeds, ± half a 95% t-interval."""
    return [_row(entry) for entry in block.entries if _last(entry)]


def sentences(block: Block) -> list[str]:
    """``topk: 86.6±0.4% after 5 epochs, -0.2±0.5 points to dense: within 1 point; 4.9 MB sent per rank, 3.1 s.``"""
    found = []
    for label, _, epochs, accuracy, difference, verdict, loss, share, sent, _, took, _ in rows(block):
        reached = f"loss {loss}" if accuracy == DASH else f"{accuracy}%"
        text = f"{label}: {reached} after {epochs} epoch{'' if epochs == '1' else 's'}"
        if difference != DASH:
            loss_too = "" if share == DASH else f" and {share}% validation loss"
            text += f", {difference} points{loss_too} to dense{'' if verdict == DASH else f': {verdict}'}"
        found.append(f"{text}; {sent} sent per rank, {took}.")
    if found and all(entry.cell.workers == 1 for entry in block.entries):
        found.append(ALONE)
    return found


def _last(entry: Entry) -> list[EpochRecord]:
    return [repeat.epochs[-1] for repeat in entry.cell.repeats if repeat.epochs]


def _row(entry: Entry) -> tuple[str, ...]:
    last = _last(entry)
    epochs = sorted({epoch.epoch for epoch in last})
    summary = entry.cell.training
    reached = fewer = DASH
    if summary is not None:
        if summary.wire_reduction and summary.verdict != "baseline":
            fewer = f"{summary.wire_reduction:.3g}x"
        if summary.time_to_accuracy_s is not None:
            reached = format_duration(summary.time_to_accuracy_s)
            if summary.reached < len(summary.seeds):
                reached += f" ({summary.reached} of {len(summary.seeds)} seeds)"
    return (
        entry.label,
        str(len(last)),
        " to ".join(dict.fromkeys(str(number) for number in (epochs[0], epochs[-1]))),
        _mean([epoch.validation_accuracy for epoch in last], 100.0, 2),
        DASH if summary is None else points(summary.difference_points),
        _verdict(summary),
        _mean([epoch.validation_loss for epoch in last], 1.0, 4),
        DASH if summary is None else points(summary.loss_difference_percent),
        format_bytes(
            fmean(sum(epoch.tx_bytes for epoch in each.epochs) for each in entry.cell.repeats if each.epochs)
        ),
        fewer,
        format_duration(fmean(epoch.elapsed_s for epoch in last)),
        reached,
    )


def _verdict(summary: TrainingSummary | None) -> str:
    if summary is None or summary.verdict in (None, "baseline"):
        return DASH
    if too_few(summary):
        return f"too few seeds, a claim needs {summary.seeds_needed}"
    within = summary.verdict == "within" and summary.difference_points is not None
    return "within 1 point" if within else str(summary.verdict)


def _mean(values: Sequence[float | None], scale: float, digits: int) -> str:
    known = [value * scale for value in values if value is not None]
    if not known:
        return DASH
    if not all(math.isfinite(value) for value in known):
        return "diverged"
    estimate = mean_interval(known)
    text = f"{estimate.value:.{digits}f}"
    return f"{text}±{estimate.half_width:.{digits}f}" if math.isfinite(estimate.half_width) else text
