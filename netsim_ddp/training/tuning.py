"""A learning rate of its own for every method, tried on a seed that is not evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence

from netsim_ddp.errors import RankError, UsageError
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.results.record import Cell
from netsim_ddp.results.training_record import TunedRate
from netsim_ddp.scenario import TrainScenario
from netsim_ddp.steps.experiment import Event, Experiment
from netsim_ddp.training.single import Training


def tune(experiment: Experiment[TrainScenario]) -> None:
    """Try every rate of the scenario; each cell keeps the one with the lowest validation loss, and all of them.

    A method with a rate of its own is left alone, and one that was tuned before.

    Raises:
        UsageError: the tuning seed is one of those evaluated.
        RankError: a method diverges at every rate, or a rank failed.
    """
    scenario = experiment.scenario
    rates, seed = scenario.tuned_rates, scenario.tune_seed
    if not rates or seed is None:
        return
    if seed in scenario.seeds:
        raise UsageError(
            f"tune_seed {seed} is one of the seeds that are evaluated", hint="name another, or leave it out"
        )
    for cell, method in zip(experiment.result.cells, scenario.methods, strict=True):
        assert cell.recipe is not None
        if "lr" in method.params or best_rate(cell.recipe.tuned) is not None:
            continue
        cell.recipe.tune_seed = seed
        tuned = [_try(experiment, cell, method, seed, rate) for rate in rates]
        cell.recipe.tuned, best = tuned, best_rate(tuned)
        if best is None:
            raise RankError(
                f"{cell.id}: no learning rate of {', '.join(f'{rate:g}' for rate in rates)} trains",
                hint="try lower ones with --tune-lr",
            )
        cell.recipe.learning_rate = best
        experiment.report(Event("line", f"{cell.id}: learning rate {best:g} has the lowest validation loss"))
        experiment.save()


def _try(
    experiment: Experiment[TrainScenario], cell: Cell, method: MethodSpec, seed: int, rate: float
) -> TunedRate:
    """One training; a rate at which it diverges is a finding."""
    report = experiment.report
    training = Training(experiment.scenario, experiment.link, method, seed, rate, log=False)
    report(Event("progress", f"{cell.id}, learning rate {rate:g}"))
    try:
        record, _ = training.run(experiment.launcher, lambda _: None, lambda _: None)
    except RankError as error:
        if "not finite" not in error.message:
            raise
        report(Event("line", f"{cell.id}: learning rate {rate:g} diverges"))
        return TunedRate(learning_rate=rate, validation_loss=None)
    last = record.epochs[-1]
    text = f"{cell.id}: learning rate {rate:g}, seed {seed}: validation loss {last.validation_loss:.4g}"
    if last.validation_accuracy is not None:
        text += f", accuracy {last.validation_accuracy:.1%}"
    report(Event("line", text))
    return TunedRate(
        learning_rate=rate,
        validation_loss=last.validation_loss,
        validation_accuracy=last.validation_accuracy,
    )


def best_rate(tuned: Sequence[TunedRate]) -> float | None:
    """The rate with the lowest validation loss; None where none trained to its end."""
    found = [
        (each.validation_loss, each.learning_rate)
        for each in tuned
        if each.validation_loss is not None and math.isfinite(each.validation_loss)
    ]
    return min(found)[1] if found else None
