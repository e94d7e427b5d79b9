"""``netsim train``'s experiment: learning rates, then one training per seed and method, each saved when it is done.

Torch-free like :mod:`netsim_ddp.steps.experiment`, whose loop it uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from netsim_ddp.errors import NetsimError, RankError, UsageError
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.ranks.pool import Pool
from netsim_ddp.results.files import load, save
from netsim_ddp.results.record import Cell, RepeatRecord, Result
from netsim_ddp.results.trace import KeepTrace
from netsim_ddp.results.training import summarise_training
from netsim_ddp.results.training_record import Recipe
from netsim_ddp.scenario import TrainScenario
from netsim_ddp.steps.experiment import Event, Experiment, Facts, Report, Save
from netsim_ddp.training.checkpoint import (
    RUN_FILE,
    Checkpoints,
    Manifest,
    check_same,
    check_settings,
    run_file,
    settings_of,
)
from netsim_ddp.training.single import Training
from netsim_ddp.training.tuning import tune


def train(
    scenario: TrainScenario,
    *,
    command: Sequence[str],
    report: Report,
    save: Save,
    trace: KeepTrace | None = None,
    pool: Pool | None = None,
) -> Result:
    """Train every method of ``scenario`` with every seed and return the result, which ``save`` has seen after each.

    Args:
        trace: receives the laps of a few steps of each method.
        pool: links and fork servers that are there already, and stay; by default the trainings make their own.

    Raises:
        NetsimError: the link or a rank failed. What was finished before is saved with ``status: partial``, and the
            curves of the training that failed with it.
    """
    return Trainings(
        as_begun(scenario.resolved()), command=command, report=report, save=save, trace=trace, pool=pool
    ).run()


class Trainings(Experiment[TrainScenario]):
    """Whole trainings; a repeat is one seed."""

    kind: ClassVar[Literal["steps", "training"]] = "training"
    unit: ClassVar[str] = "seed"
    slower: ClassVar[str] = "an epoch takes"
    _before: Result | None = None
    """The result that this run goes on from."""

    def start(self, pool: Pool) -> None:
        scenario = self.scenario
        self.link, probed = pool.link(scenario.link_spec(), scenario.link, self.note, self.warn)
        self.launcher = pool.launcher(self.link, scenario, self.note)
        self.result.cells = [
            self.cell(method, probed, params=dict(method.params), recipe=self._recipe(method))
            for method in scenario.methods
        ]
        if self._before is not None:
            for cell in self.result.cells:
                self._take_over(cell, self._before)
        self.warn_of_contention(scenario.workers)
        self.save()
        tune(self)

    def label(self, number: int) -> str:
        return f"seed {self.scenario.seeds[number]}"

    def save(self) -> None:
        if not self.result.cells:
            return  # the folder was refused: it holds another run's result
        super().save()
        if self._root is not None:
            save(self.result, self._root / RUN_FILE)

    def summarise(self, cells: Sequence[Cell]) -> list[Cell]:
        return summarise_training(cells)

    def notes(self) -> Sequence[str]:
        return ()

    @property
    def _root(self) -> Path | None:
        """The folder of the checkpoints."""
        return None if self.scenario.checkpoint is None else Path(self.scenario.checkpoint)

    def check(self) -> None:
        """Refuse to mix two runs in one folder of checkpoints, and to go on from an empty one."""
        if self._root is None:
            return
        if not self.scenario.resume:
            if (self._root / RUN_FILE).exists():
                raise UsageError(
                    f"{self._root} holds the checkpoints of another run",
                    hint=f"netsim train --resume {self._root} goes on with it; or name another folder",
                )
            try:
                self._root.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(
                    f"cannot make the folder {self._root}: {error.strerror}",
                    hint="name a folder you can write to",
                ) from error
            return
        before = self._before = load(run_file(self._root))
        was, now = before.scenario, self.result.scenario
        check_settings(settings_of(was), settings_of(now))
        rates = (
            "learning_rate",
            "tuned_rates",
        )  # a training's own rate may be another: the method's, or tuned
        check_settings({key: was.get(key) for key in rates}, {key: now.get(key) for key in rates})
        for method in self.scenario.methods:
            for seed in self.scenario.seeds:
                self._resumable(method, seed)  # all of them, before anything is started

    def _resumable(self, method: MethodSpec, seed: int) -> tuple[Path, Manifest] | None:
        """Returns the newest checkpoint of one training, after it was checked against this run's settings."""
        assert self._root is not None
        found, scenario = Checkpoints(self._root, method, seed).latest(), self.scenario
        if found is not None:
            check_same(
                found[1],
                settings_of(scenario.model_dump(mode="json")),
                method,
                workers=scenario.workers,
                epochs=scenario.epochs,
                rule=scenario.resume_residuals,
            )
        return found

    def _recipe(self, method: MethodSpec) -> Recipe:
        return Recipe(
            optimizer=self.scenario.optimizer,
            learning_rate=method.params.get("lr", self.scenario.learning_rate),
            epochs=self.scenario.epochs,
            tx_are={"tc": "measured", "bucket": "charged"}.get(self.link.mechanism, "predicted"),  # type: ignore[arg-type]
            target=self.scenario.target,
        )

    def _take_over(self, cell: Cell, result: Result) -> None:
        """Give ``cell`` what an earlier run of the same experiment has of it."""
        self.result.model_parameters = result.model_parameters
        before = next((other for other in result.cells if other.id == cell.id), None)
        if before is None:
            return
        # Finished with these many ranks and epochs: nothing to do again. Others go on from their checkpoints.
        cell.repeats = [
            repeat
            for repeat in before.repeats
            if before.workers == cell.workers
            and repeat.ranks
            and repeat.seed in self.scenario.seeds
            and len(repeat.epochs) == self.scenario.epochs
        ]
        if before.recipe is not None:
            cell.recipe = before.recipe.model_copy(
                update={"epochs": self.scenario.epochs, "target": self.scenario.target}
            )
        cell.backend, cell.device = before.backend, before.device
        cell.citation = before.citation
        cell.params |= {key: value for key, value in before.params.items() if key == "collective"}

    def repeat(self, index: int, number: int) -> None:
        cell, method, seed = (
            self.result.cells[index],
            self.scenario.methods[index],
            self.scenario.seeds[number],
        )
        if any(repeat.seed == seed for repeat in cell.repeats):
            self.note(f"{cell.id}, seed {seed}: finished before")
            return
        assert cell.recipe is not None
        checkpoints, start, rate = None, None, cell.recipe.learning_rate
        if self._root is not None:
            checkpoints = Checkpoints(self._root, method, seed)
            checkpoints.clear_parts()
            start = self._resumable(method, seed) if self.scenario.resume else None
        if start is not None:
            epoch, step, rate = start[1].epoch, start[1].step, start[1].learning_rate
            self.note(f"{cell.id}, seed {seed}: going on from epoch {epoch + 1}, step {step + 1}")
        training = Training(
            self.scenario,
            self.link,
            method,
            seed,
            rate,
            checkpoints=checkpoints,
            start=start,
            traced=self.traced_steps(number),
        )
        try:
            record, records = training.run(
                self.launcher,
                lambda facts: self._take_facts(cell, facts),
                lambda text: self.report(Event("line", f"{cell.id} seed {seed} | {text}")),
            )
        except (NetsimError, KeyboardInterrupt, SystemExit):
            if training.history:  # its curve so far, without ranks: it does not count as finished
                cell.repeats.append(RepeatRecord(ranks=[], seed=seed, epochs=training.history))
            raise
        self.take_collective(cell, records[0]["collective"])
        cell.citation = records[0]["citation"] or None
        cell.repeats.append(record)
        cell.link.drops += training.drops
        cell.link.retransmits += training.retransmits
        if len({rank.parameters_sha256 for rank in record.ranks}) > 1:
            raise RankError(f"{cell.id}: the ranks do not hold the same parameters after the training")
        self.take_trace(cell, records, number)

    def _take_facts(self, cell: Cell, facts: Facts) -> None:
        assert cell.recipe is not None
        cell.recipe.validation_samples = facts[0]["validation_samples"]
        if (probed := self.take_facts(cell, facts)) is not None:
            cell.link.measured_bps = probed


def as_begun(scenario: TrainScenario) -> TrainScenario:
    """``scenario`` with the methods of the run that it goes on from: before 0.2 none sent small parameters whole under
    Adam of itself, and what began so goes on so."""
    if not (scenario.resume and scenario.under_adam and scenario.checkpoint is not None):
        return scenario
    begun = {cell.id for cell in load(run_file(Path(scenario.checkpoint))).cells}
    methods = []
    for method in scenario.methods:
        params = {key: value for key, value in method.params.items() if key != "dense_below"}
        plain = MethodSpec(name=method.name, params=params)
        methods.append(plain if method.id not in begun and plain.id in begun else method)
    return scenario.model_copy(update={"methods": tuple(methods)})
