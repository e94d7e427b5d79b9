"""What a model learns for what it sends and for the time that it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from netsim_ddp.report.collection import Block, Collection, Entry
from netsim_ddp.report.plots.shapes import Chart, Point, Series, charged, series


def training_curves(collection: Collection) -> list[Chart]:
    """Validation accuracy (or loss, of a model without classes) over bytes, over time and over epochs."""
    charts = []
    for block in collection.blocks:
        entries = [entry for entry in block.entries if any(repeat.epochs for repeat in entry.cell.repeats)]
        if entries:
            charts += _training(block, entries)
    return charts


def _training(block: Block, entries: Sequence[Entry]) -> list[Chart]:
    accurate = any(
        epoch.validation_accuracy is not None
        for entry in entries
        for repeat in entry.cell.repeats
        for epoch in repeat.epochs
    )
    y_label = "validation accuracy, %" if accurate else "validation loss"
    note = ("Bytes are charged by the bucket, not measured.",) if charged(entries) else ()
    seeds = sorted({sum(bool(repeat.epochs) for repeat in entry.cell.repeats) for entry in entries})
    counts = " to ".join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1])))
    spread: tuple[str, ...] = (
        f"Means of {counts} seeds; the whiskers reach from the lowest to the highest.",
    )
    if seeds[-1] == 1:
        spread = ()
    axes: tuple[tuple[str, str, bool, tuple[str, ...]], ...] = (
        ("bytes", "MB sent per rank", True, note),
        ("time", "seconds of training", False, ()),
        ("epoch", "epoch", False, ()),
    )
    charts = []
    for axis, x_label, log, notes in axes:
        series = [one for entry in entries if (one := _curve(entry, axis, accurate)) is not None]
        if not any(len(one.points) > 1 for one in series):
            continue
        charts.append(
            Chart(
                key=f"training-{axis}",
                kind=f"{'accuracy' if accurate else 'loss'} against {axis}",
                title=block.title,
                x_label=x_label,
                y_label=y_label,
                series=tuple(series),
                x_log=log,
                notes=(*spread, *notes),
            )
        )
    return charts


def _curve(entry: Entry, axis: str, accurate: bool) -> Series | None:
    """The mean over seeds, epoch by epoch, as far as all seeds got. A diverged loss ends the curve."""
    runs = [repeat.epochs for repeat in entry.cell.repeats if repeat.epochs]
    points, sent = [], [0.0] * len(runs)
    for epochs in zip(*runs, strict=False):
        sent = [before + epoch.tx_bytes / 1e6 for before, epoch in zip(sent, epochs, strict=True)]
        values = [
            epoch.validation_accuracy * 100 if accurate and epoch.validation_accuracy is not None
            else epoch.validation_loss if not accurate else None
            for epoch in epochs
        ]  # fmt: skip
        known = [value for value in values if value is not None and math.isfinite(value)]
        if len(known) < len(epochs):
            continue
        x = {
            "bytes": fmean(sent),
            "time": fmean(epoch.elapsed_s for epoch in epochs),
            "epoch": float(epochs[0].epoch),
        }[axis]
        points.append(Point(x, fmean(known), min(known), max(known)))
    if axis == "bytes" and not all(point.x > 0 for point in points):
        return None  # one worker sends nothing
    return series(entry, points) if points else None
