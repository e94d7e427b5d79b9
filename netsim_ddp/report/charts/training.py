"""What a model learns for what it sends and for the time that it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from netsim_ddp.report.charts.shapes import Chart, Difference, Differences, Point, Series, charged, series
from netsim_ddp.report.collection import Block, Collection, Entry
from netsim_ddp.report.labels import points
from netsim_ddp.results.training import WITHIN_POINTS


def differences(collection: Collection) -> list[Differences]:
    """Validation accuracy beside dense's, seed by seed."""
    plots = []
    for block in collection.blocks:
        rows = tuple(row for entry in block.entries if (row := _difference(entry)) is not None)
        if not rows:
            continue
        seeds = sorted({len(entry.cell.training.seeds) for entry in block.entries if entry.cell.training})
        counts = " to ".join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1])))
        note = f"Over {counts} seeds, with 95% t-intervals." if seeds[-1] > 1 else "One seed, no intervals."
        plots.append(
            Differences(
                key="training-differences",
                kind="accuracy beside dense",
                title=block.title,
                rows=rows,
                x_label="validation accuracy to dense, points",
                limit=-WITHIN_POINTS,
                notes=(f"{note} The dashed line is {WITHIN_POINTS:g} point below dense.",),
            )
        )
    return plots


def _difference(entry: Entry) -> Difference | None:
    summary = entry.cell.training
    found = summary.difference_points if summary is not None else None
    if found is None or not math.isfinite(found.mean):
        return None
    low, high = (found.mean if end is None else end for end in (found.ci_low, found.ci_high))
    return Difference(entry.label, entry.colour, found.mean, low, high, points(found))


def training_curves(collection: Collection) -> list[Chart]:
    """Validation accuracy (or loss, of a model without classes) over bytes, over time and over epochs; the loss beside
    the accuracy over epochs, since it still tells methods apart where the validation set is too small for its accuracy
    to."""
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
    note = ("Bytes are charged by the bucket, not measured.",) if charged(entries) else ()
    seeds = sorted({sum(bool(repeat.epochs) for repeat in entry.cell.repeats) for entry in entries})
    counts = " to ".join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1])))
    means = f"Means of {counts} seeds; the whiskers reach from the lowest to the highest."
    spread = () if seeds[-1] == 1 else (means,)
    axes: list[tuple[str, str, bool, bool, tuple[str, ...]]] = [
        ("bytes", "MB sent per rank", True, accurate, note),
        ("time", "seconds of training", False, accurate, ()),
        ("epoch", "epoch", False, accurate, ()),
    ]
    if accurate:
        axes.append(("epoch", "epoch", False, False, ()))
    charts = []
    for axis, x_label, log, of_accuracy, notes in axes:
        series = [one for entry in entries if (one := _curve(entry, axis, of_accuracy)) is not None]
        if not any(len(one.points) > 1 for one in series):
            continue
        charts.append(
            Chart(
                key=f"training-{axis}" if of_accuracy == accurate else "training-loss",
                kind=f"{'accuracy' if of_accuracy else 'loss'} against {axis}",
                title=block.title,
                x_label=x_label,
                y_label="validation accuracy, %" if of_accuracy else "validation loss",
                series=tuple(series),
                x_log=log,
                notes=(*spread, *notes),
            )
        )
    return charts


def _curve(entry: Entry, axis: str, accurate: bool) -> Series | None:
    """The mean over seeds, epoch by epoch, as far as all seeds got. A diverged loss ends the curve."""
    runs = [repeat.epochs for repeat in entry.cell.repeats if repeat.epochs]
    found, sent = [], [0.0] * len(runs)
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
        found.append(Point(x, fmean(known), min(known), max(known)))
    if axis == "bytes" and not all(point.x > 0 for point in found):
        return None  # one worker sends nothing
    return series(entry, found) if found else None
