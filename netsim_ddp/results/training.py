"""From the curves of trainings to what the tables show: accuracy beside the dense cell's, seed by seed.

The sample is one seed: its split of the data, its parameters and its order are the same for every method, so that the
difference of two methods on one seed is free of what the seed does to both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from netsim_ddp.results import stats
from netsim_ddp.results.record import Cell, EpochRecord, MeanInterval, RepeatRecord, TrainingSummary
from netsim_ddp.results.student import student_t
from netsim_ddp.results.summary import is_dense, setting

WITHIN_POINTS = 1.0
"""A method that loses no more accuracy than this, its interval's worse end included, is *within* dense; and an accuracy
no further below what dense ends with counts as dense's when times are compared."""
METHOD_AXES = ("method", "methods", "ratio", "learning_rate", "tune_lr")
"""Axes of a sweep that do not set a cell's dense baseline apart."""

Setting = tuple[Any, ...]


def summarise_training(cells: Sequence[Cell]) -> list[Cell]:
    """New cells with ``training`` computed from their curves; one without a finished training gets None."""
    return [cell.model_copy(update={"training": _summary(cell, baseline(cell, cells))}) for cell in cells]


def finished(cell: Cell) -> dict[int, RepeatRecord]:
    """Trainings that ran to their end, by seed. One that was cut short has curves and no ranks."""
    return {
        repeat.seed: repeat
        for repeat in cell.repeats
        if repeat.seed is not None and repeat.ranks and repeat.epochs
    }


def training_setting(cell: Cell) -> Setting:
    """What two training cells must share to be compared: the link and the ranks, model, data, place in a sweep."""
    axes = {key: value for key, value in cell.axes.items() if key not in METHOD_AXES}
    return (*setting(cell), cell.model, cell.dataset, json.dumps(axes, sort_keys=True, default=str))


def baseline(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """The dense cell that ``cell`` is compared with; None with one worker, which exchanges nothing."""
    if cell.workers == 1:
        return None
    here = training_setting(cell)
    return next(
        (other for other in cells if is_dense(other) and finished(other) and training_setting(other) == here),
        None,
    )


def mean_interval(samples: Sequence[float]) -> MeanInterval:
    """The mean and its 95% t-interval; none from a single sample, or where one is not finite."""
    mean = fmean(samples)
    if len(samples) < 2 or not math.isfinite(mean):
        return MeanInterval(mean=mean)
    half = student_t(0.975, len(samples) - 1) * stdev(samples) / math.sqrt(len(samples))
    return MeanInterval(mean=mean, ci_low=mean - half, ci_high=mean + half)


def _summary(cell: Cell, dense: Cell | None) -> TrainingSummary | None:
    repeats = finished(cell)
    if not repeats:
        return None
    last = {seed: repeat.epochs[-1] for seed, repeat in repeats.items()}
    accuracies = [e.validation_accuracy for e in last.values() if e.validation_accuracy is not None]
    losses = [e.validation_loss for e in last.values() if e.validation_loss is not None]
    summary = TrainingSummary(
        seeds=sorted(repeats),
        accuracy=mean_interval(accuracies) if accuracies else None,
        loss=mean_interval(losses) if losses else None,
        resolution_points=_resolution(cell),
        epochs_s=stats.median([e.elapsed_s for e in last.values()]),
        tx_bytes_per_step=fmean(_per_step(repeat) for repeat in repeats.values()),
        residual_bytes=max(rank.residual_bytes for r in repeats.values() for rank in r.ranks),
    )
    if dense is None:
        return summary.model_copy(update=_times(cell, None, repeats, {}))
    theirs = finished(dense)
    found: dict[str, Any] = _times(cell, dense, repeats, theirs)
    if summary.tx_bytes_per_step:
        sent = fmean(_per_step(repeat) for repeat in theirs.values())
        found["wire_reduction"] = sent / summary.tx_bytes_per_step or None
    if dense is cell:
        return summary.model_copy(update={**found, "verdict": "baseline"})
    return summary.model_copy(update={**found, **_differences(repeats, theirs, summary.resolution_points)})


def _resolution(cell: Cell) -> float | None:
    samples = cell.recipe.validation_samples if cell.recipe else None
    return 100.0 / samples if samples else None


def _per_step(repeat: RepeatRecord) -> float:
    steps = sum(epoch.steps for epoch in repeat.epochs)
    return sum(epoch.tx_bytes for epoch in repeat.epochs) / steps if steps else 0.0


def _differences(
    ours: dict[int, RepeatRecord], theirs: dict[int, RepeatRecord], resolution: float | None
) -> dict[str, Any]:
    """To dense, over the seeds that both have."""
    points, percents = [], []
    for seed in sorted(ours.keys() & theirs.keys()):
        mine, dense = ours[seed].epochs[-1], theirs[seed].epochs[-1]
        if mine.validation_accuracy is not None and dense.validation_accuracy is not None:
            points.append(100 * (mine.validation_accuracy - dense.validation_accuracy))
        if mine.validation_loss is not None and dense.validation_loss:
            percents.append(100 * (mine.validation_loss / dense.validation_loss - 1))
    found: dict[str, Any] = {}
    if percents:
        found["loss_difference_percent"] = mean_interval(percents)
    if points:
        difference = mean_interval(points)
        found |= {
            "difference_points": difference,
            "resolvable_points": resolvable(difference, resolution or 0.0),
            "verdict": verdict_on(difference, resolution or 0.0),
        }
    return found


def resolvable(difference: MeanInterval, resolution: float) -> float | None:
    """What a mean difference must exceed to be told from none: its interval's half width, and at least one validation
    sample. None from a single seed, which resolves nothing."""
    if difference.ci_high is None:
        return None
    return max(difference.ci_high - difference.mean, resolution)


def verdict_on(difference: MeanInterval, resolution: float) -> str:
    """``better`` or ``worse`` than dense where the difference is resolvable, ``within`` where even the interval's worse
    end is no more than :data:`WITHIN_POINTS` below it, else ``not resolvable``: more seeds would tell."""
    least = resolvable(difference, resolution)
    if least is None or difference.ci_low is None:
        return "not resolvable"
    if difference.mean > least:
        return "better"
    if difference.ci_low >= -WITHIN_POINTS:
        return "within"
    return "worse" if difference.mean < -least else "not resolvable"


def _times(
    cell: Cell, dense: Cell | None, ours: dict[int, RepeatRecord], theirs: dict[int, RepeatRecord]
) -> dict[str, Any]:
    """When the accuracy that counts is reached: the recipe's target, or :data:`WITHIN_POINTS` below what dense of the
    same seed ends with. To the digit, a single validation sample would decide."""
    target = cell.recipe.target if cell.recipe else None
    mine, dense_times = [], []
    for seed, repeat in ours.items():
        goal = target
        if goal is None and seed in theirs:
            goal = theirs[seed].epochs[-1].validation_accuracy
            goal = None if goal is None else goal - WITHIN_POINTS / 100
        if goal is None or (moment := time_to(repeat.epochs, goal)) is None:
            continue
        mine.append(moment)
        if seed in theirs and (other := time_to(theirs[seed].epochs, goal)) is not None:
            dense_times.append(other)
    if not mine:
        return {}
    found: dict[str, Any] = {"time_to_accuracy_s": stats.median(mine), "reached": len(mine)}
    if dense is not None and dense is not cell and len(dense_times) == len(mine):
        found["time_speedup"] = stats.median([b / a for a, b in zip(mine, dense_times, strict=True) if a > 0])
    return found


def time_to(epochs: Sequence[EpochRecord], accuracy: float) -> float | None:
    """Seconds on the training clock at the end of the first epoch that validates at ``accuracy`` or more."""
    for epoch in epochs:
        if epoch.validation_accuracy is not None and epoch.validation_accuracy >= accuracy - 1e-9:
            return epoch.elapsed_s
    return None
