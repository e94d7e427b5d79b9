"""What a result file says of trainings: the curves of each seed, how they were made, and what tables show of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from netsim_ddp.results.fields import Count, Finite, Seconds, Strict


class EpochRecord(Strict):
    """One epoch of a training run. ``train_loss`` and ``train_accuracy`` are means over the epoch's steps and all
    ranks, accuracies fractions of 1; a model without classes has none.

    ``elapsed_s`` is the training clock at the epoch's end, from the run's first step on; it stands still while the
    model is validated or saved. ``tx_bytes`` is what the rank that sent most sent in this epoch.
    """

    epoch: Count
    steps: Count
    learning_rate: Finite
    train_loss: float
    train_accuracy: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    elapsed_s: Seconds
    tx_bytes: Count
    skipped_steps: Count = 0
    phases_s: dict[str, Seconds] = Field(default_factory=dict)
    """Seconds of this epoch by phase, rank 0's; waiting for other ranks is part of ``communicate``."""


class TunedRate(Strict):
    """A learning rate that was tried on a seed of its own, which is not among those evaluated."""

    learning_rate: Finite
    validation_loss: float | None
    validation_accuracy: float | None = None


class Recipe(Strict):
    """How a training cell was trained: what its curves do not tell.

    ``tx_are`` says what the bytes of its epochs are: ``measured`` at the interface, ``charged`` by the token bucket, or
    ``predicted`` by the method's formula, headers included, on a link that is not shaped. ``validation_samples`` is the
    number of predictions that an accuracy is a fraction of.
    """

    optimizer: str
    learning_rate: Finite
    epochs: Count
    validation_samples: Count | None = None
    tx_are: Literal["measured", "charged", "predicted"] = "predicted"
    target: Finite | None = None
    tuned: list[TunedRate] = Field(default_factory=list)
    tune_seed: Count | None = None


class MeanInterval(Strict):
    """A mean over seeds with its 95% t-interval; a single seed has none."""

    mean: float
    ci_low: float | None = None
    ci_high: float | None = None


class TrainingSummary(Strict):
    """What the tables show of a training cell; ``netsim_ddp.results.training`` computes it from the curves.

    Accuracies are fractions, differences to the dense cell of the same setting in percentage points (accuracy) or in
    percent of its loss, paired by seed. ``resolution_points`` is what one validation sample weighs;
    ``resolvable_points`` what a difference must exceed to be told from none with these seeds.
    ``verdict`` is of accuracy and loss together: *worse* where either is, whatever the other is. ``comparisons`` is
    how many accuracies and losses of the result were judged together, ``seeds_needed`` how many seeds a claim needs.
    ``time_to_accuracy_s`` is the training clock at the end of the first epoch that comes within a point of the dense
    run's final accuracy of the same seed (or reaches the ``target`` that was given), the median over the seeds that do;
    ``time_speedup`` is the time that the dense cell takes to the same accuracy over that: above 1 is faster.
    """

    seeds: list[Count]
    accuracy: MeanInterval | None = None
    loss: MeanInterval | None = None
    difference_points: MeanInterval | None = None
    loss_difference_percent: MeanInterval | None = None
    resolution_points: Finite | None = None
    resolvable_points: Finite | None = None
    verdict: Literal["baseline", "within", "worse", "better", "not resolvable"] | None = None
    accuracy_verdict: Literal["worse", "better", "not resolvable"] | None = None
    loss_verdict: Literal["worse", "better", "not resolvable"] | None = None
    comparisons: Count = 0
    seeds_needed: Count = 0
    epochs_s: Seconds
    time_to_accuracy_s: Seconds | None = None
    reached: Count = 0
    time_speedup: Finite | None = None
    tx_bytes_per_step: Finite
    wire_reduction: Finite | None = None
    residual_bytes: Count = 0

    @model_validator(mode="before")
    @classmethod
    def _before_version_3(cls, data: object) -> object:
        """``time_ratio`` was its inverse."""
        if isinstance(data, dict) and "time_ratio" in data:
            data = dict(data)
            ratio = data.pop("time_ratio")
            data["time_speedup"] = 1 / ratio if isinstance(ratio, int | float) and ratio > 0 else None
        return data
