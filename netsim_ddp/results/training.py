"""From the curves of trainings to what the tables show: accuracy beside the dense cell's, seed by seed.

The sample is one seed: its split of the data, its parameters and its order are the same for every method, so that the
difference of two methods on one seed is free of what the seed does to both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, Literal

from netsim_ddp.results.identity import LEARNING_RATE_AXES, setting
from netsim_ddp.results.record import Cell, RepeatRecord
from netsim_ddp.results.stats import mean_interval
from netsim_ddp.results.summary import is_dense
from netsim_ddp.results.training_record import EpochRecord, MeanInterval, TrainingSummary
from netsim_ddp.results.verdicts import FLOOR, Judgement, Scores, Verdict, judge, repeats_needed

WITHIN_POINTS = 1.0
"""A method that loses no more accuracy than this, its interval's worse end included, is *within* dense; and an accuracy
no further below what dense ends with counts as dense's when times are compared."""
Said = Literal["worse", "better", "not resolvable"]


@dataclass
class _Paired:
    """A cell's last epochs beside dense's, over the seeds that both have: accuracies in percent, losses."""

    accuracies: list[tuple[float, float]] = field(default_factory=list)
    """(dense's, the cell's), as the losses."""
    losses: list[tuple[float, float]] = field(default_factory=list)
    resolution: float = 0.0

    @property
    def percents(self) -> list[float]:
        return [100 * (mine / dense - 1) for dense, mine in self.losses]

    @property
    def diverged(self) -> bool:
        """Returns whether a loss is not finite where dense's is: worse, without any statistics."""
        return not all(math.isfinite(mine) for _, mine in self.losses)

    @property
    def questions(self) -> dict[str, Scores]:
        found = {}
        if self.accuracies:
            dense, mine = zip(*self.accuracies, strict=True)
            found["accuracy"] = Scores(dense, mine, floor=self.resolution, more_is_better=True)
        if self.losses and not self.diverged:
            dense, mine = zip(*self.losses, strict=True)
            found["loss"] = Scores(dense, mine, floor=FLOOR * fmean(dense), more_is_better=False)
        return found


def summarise_training(cells: Sequence[Cell]) -> list[Cell]:
    """New cells with ``training`` computed from their curves; one without a finished training gets None.

    The accuracies and losses of all ``cells`` are judged as one family.
    """
    bases = [baseline(cell, cells) for cell in cells]
    found = [
        _paired(cell, base) if base is not None and base is not cell else None
        for cell, base in zip(cells, bases, strict=True)
    ]
    questions = [question for one in found if one for question in one.questions.values()]
    judged = iter(judge(questions))
    summaries = []
    for cell, base, one in zip(cells, bases, found, strict=True):
        summary = _summary(cell, base)
        if one is not None and summary is not None:
            said = {name: next(judged) for name in one.questions}
            summary = summary.model_copy(update=_verdicts(one, said, len(questions)))
        summaries.append(cell.model_copy(update={"training": summary}))
    return summaries


def finished(cell: Cell) -> dict[int, RepeatRecord]:
    """Trainings that ran to their end, by seed. One that was cut short has curves and no ranks."""
    return {
        repeat.seed: repeat
        for repeat in cell.repeats
        if repeat.seed is not None and repeat.ranks and repeat.epochs
    }


def baseline(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """The dense cell that ``cell`` is compared with, trained at the same learning rate where there is a choice; None
    with one worker, which exchanges nothing."""
    if cell.workers == 1:
        return None
    here = setting(cell, without=LEARNING_RATE_AXES)
    found = [
        other
        for other in cells
        if is_dense(other) and finished(other) and setting(other, without=LEARNING_RATE_AXES) == here
    ]
    return min(found, key=lambda other: setting(other) != setting(cell), default=None)


def mean_of(samples: Sequence[float]) -> MeanInterval:
    """The mean and its 95% t-interval; none from a single sample, or where one is not finite."""
    if len(samples) < 2 or not all(map(math.isfinite, samples)):
        return MeanInterval(mean=fmean(samples))
    found = mean_interval(samples)
    return MeanInterval(mean=found.value, ci_low=found.low, ci_high=found.high)


def _summary(cell: Cell, dense: Cell | None) -> TrainingSummary | None:
    repeats = finished(cell)
    if not repeats:
        return None
    last = {seed: repeat.epochs[-1] for seed, repeat in repeats.items()}
    accuracies = [e.validation_accuracy for e in last.values() if e.validation_accuracy is not None]
    losses = [e.validation_loss for e in last.values() if e.validation_loss is not None]
    summary = TrainingSummary(
        seeds=sorted(repeats),
        accuracy=mean_of(accuracies) if accuracies else None,
        loss=mean_of(losses) if losses else None,
        resolution_points=_resolution(cell),
        epochs_s=median([e.elapsed_s for e in last.values()]),
        tx_bytes_per_step=fmean(_per_step(repeat) for repeat in repeats.values()),
        residual_bytes=max(rank.residual_bytes for r in repeats.values() for rank in r.ranks),
    )
    theirs = finished(dense) if dense is not None else {}
    found = _times(cell, dense, repeats, theirs)
    if theirs and summary.tx_bytes_per_step:
        sent = fmean(_per_step(repeat) for repeat in theirs.values())
        found["wire_reduction"] = sent / summary.tx_bytes_per_step or None
    if dense is cell:
        found["verdict"] = "baseline"
    return summary.model_copy(update=found)


def _resolution(cell: Cell) -> float | None:
    samples = cell.recipe.validation_samples if cell.recipe else None
    return 100.0 / samples if samples else None


def _per_step(repeat: RepeatRecord) -> float:
    steps = sum(epoch.steps for epoch in repeat.epochs)
    return sum(epoch.tx_bytes for epoch in repeat.epochs) / steps if steps else 0.0


def _paired(cell: Cell, dense: Cell) -> _Paired:
    ours, theirs = finished(cell), finished(dense)
    found = _Paired(resolution=_resolution(cell) or 0.0)
    for seed in sorted(ours.keys() & theirs.keys()):
        mine, base = ours[seed].epochs[-1], theirs[seed].epochs[-1]
        if mine.validation_accuracy is not None and base.validation_accuracy is not None:
            found.accuracies.append((100 * base.validation_accuracy, 100 * mine.validation_accuracy))
        if mine.validation_loss is not None and base.validation_loss and math.isfinite(base.validation_loss):
            found.losses.append((base.validation_loss, mine.validation_loss))
    return found


def _verdicts(one: _Paired, said: dict[str, Judgement], family: int) -> dict[str, Any]:
    """What the summary holds of a cell's differences to dense, and of how they were judged."""
    accuracy, loss = _word(said.get("accuracy")), "worse" if one.diverged else _word(said.get("loss"))
    found: dict[str, Any] = {
        "accuracy_verdict": accuracy,
        "loss_verdict": loss,
        "comparisons": family,
        "seeds_needed": repeats_needed(family, paired=True),
    }
    if one.losses:
        found["loss_difference_percent"] = mean_of(one.percents)
    if one.accuracies:
        difference = mean_of([mine - dense for dense, mine in one.accuracies])
        found["difference_points"] = difference
        if difference.ci_high is not None:  # a single seed resolves nothing
            found["resolvable_points"] = max(difference.ci_high - difference.mean, one.resolution)
    if one.accuracies or one.losses:
        found["verdict"] = _verdict(accuracy, loss, said, one)
    return found


def _word(judgement: Judgement | None) -> Said | None:
    words: dict[Verdict, Said] = {"worse": "worse", "better": "better"}
    return words.get(judgement.verdict, "not resolvable") if judgement is not None else None


def _verdict(accuracy: Said | None, loss: Said | None, said: dict[str, Judgement], one: _Paired) -> str:
    """Of accuracy and loss together: *worse* where either is; *within* where there were seeds enough to find it worse
    and even the worse end of the accuracy's interval (without accuracy, the loss's) is no more than
    :data:`WITHIN_POINTS` (5% of the loss) from dense. A loss whose own interval lies above dense's, by more than 5%
    in the mean, leaves the two not resolvable."""
    if "worse" in (accuracy, loss):
        return "worse"
    if (accuracy or loss) == "better":
        return "better"
    first = said.get("accuracy") or said["loss"]
    share = mean_of(one.percents) if one.losses else MeanInterval(mean=0.0)
    if one.accuracies:
        higher = share.ci_low is not None and share.ci_low > 0 and share.mean > 100 * FLOOR
        within = first.change.low >= -WITHIN_POINTS and not higher
    else:
        within = share.ci_high is not None and share.ci_high <= 100 * FLOOR
    return "within" if within and first.enough else "not resolvable"


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
            accuracy = theirs[seed].epochs[-1].validation_accuracy
            goal = None if accuracy is None else accuracy - WITHIN_POINTS / 100
        if goal is None or (moment := time_to(repeat.epochs, goal)) is None:
            continue
        mine.append(moment)
        if seed in theirs and (other := time_to(theirs[seed].epochs, goal)) is not None:
            dense_times.append(other)
    if not mine:
        return {}
    found: dict[str, Any] = {"time_to_accuracy_s": median(mine), "reached": len(mine)}
    if dense is not None and dense is not cell and len(dense_times) == len(mine):
        found["time_speedup"] = median([b / a for a, b in zip(mine, dense_times, strict=True) if a > 0])
    return found


def time_to(epochs: Sequence[EpochRecord], accuracy: float) -> float | None:
    """Seconds on the training clock at the end of the first epoch that validates at ``accuracy`` or more."""
    return next(
        (
            epoch.elapsed_s
            for epoch in epochs
            if epoch.validation_accuracy is not None and epoch.validation_accuracy >= accuracy - 1e-9
        ),
        None,
    )
