"""The order of it all: link, learning rates, one training per seed and method, saved after each.

Torch-free like :mod:`netsim_ddp.steps.runner`, whose events and signature it shares.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from netsim_ddp import __version__
from netsim_ddp.errors import NetsimError, RankError, UsageError
from netsim_ddp.methods import MethodSpec
from netsim_ddp.ranks.pool import Pool, Started
from netsim_ddp.results.fields import Tool
from netsim_ddp.results.files import load, now_utc, save
from netsim_ddp.results.record import Cell, RepeatRecord, Result
from netsim_ddp.results.trace import TRACED_STEPS, KeepTrace, traced_laps
from netsim_ddp.results.training import summarise_training
from netsim_ddp.results.training_record import Recipe
from netsim_ddp.scenario import TrainScenario
from netsim_ddp.steps.code_versions import code_of
from netsim_ddp.steps.environment import environment
from netsim_ddp.steps.link_record import link_record
from netsim_ddp.steps.model_notes import model_notes
from netsim_ddp.steps.runner import Event, Report, Save, have_data, tell_collective
from netsim_ddp.training import advice
from netsim_ddp.training.checkpoint import RUN_FILE, Slot, check_same, check_settings, run_file, settings_of
from netsim_ddp.training.single import Training
from netsim_ddp.training.tuning import tune

__all__ = ["train", "trained"]


def train(
    scenario: TrainScenario,
    *,
    command: Sequence[str],
    report: Report,
    save: Save,
    trace: KeepTrace | None = None,
    on: Started | None = None,
) -> Result:
    """Train every method of ``scenario`` with every seed and answer the result, which ``save`` has seen after each.

    Args:
        trace: receives the laps of a few steps of each method.
        on: a link and fork server that are there already, instead of its own.

    Raises:
        NetsimError: the link or a rank failed. What was finished before is saved with ``status: partial``, and the
            curves of the training that failed with it.
    """
    run = _Run(scenario.resolved(), command, report, save, trace)
    try:
        run.execute(on)
    except NetsimError as error:
        run.close("partial" if trained(run.result) else "failed", error)
        raise
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM
        run.close("partial" if trained(run.result) else "failed", None)
        raise
    return run.result


def trained(result: Result) -> bool:
    """Whether at least one epoch of one cell is in ``result``."""
    return any(repeat.epochs for cell in result.cells for repeat in cell.repeats)


class _Run:
    def __init__(
        self,
        scenario: TrainScenario,
        command: Sequence[str],
        report: Report,
        save: Save,
        trace: KeepTrace | None,
    ) -> None:
        self.scenario, self.report, self._save, self._trace = scenario, report, save, trace
        self._root = Path(scenario.checkpoint) if scenario.checkpoint is not None else None
        self.result = Result(
            kind="training",
            tool=Tool(version=__version__),
            created_utc=now_utc(),
            status="partial",
            environment=environment(),
            code=code_of([scenario]),
            scenario=scenario.model_dump(mode="json"),
            command=shlex.join(command),
        )
        self.started = time.monotonic()
        self._before: Result | None = None

    def execute(self, on: Started | None) -> None:
        self._look_at_the_folder()
        with ExitStack() as stack:
            if on is None:
                have_data(self.scenario, self._note)
                on = stack.enter_context(Pool()).start(self.scenario, self._note, self.warn)
            self.result.cells = [self._cell(method, on) for method in self.scenario.methods]
            for text in advice.warnings(self.scenario):
                self.warn(text)
            for text in advice.notes(self.scenario):
                self._note(text)
            self.save()
            tune(self.scenario, self.result.cells, on, self.report, self.save)
            self._train_cells(on)
        self.close("complete", None)

    def close(self, status: Any, error: NetsimError | None) -> None:
        self.result.status = status
        if error is not None:
            self.result.warnings.append(error.message)
            for cell in self.result.cells:
                done = [repeat for repeat in cell.repeats if repeat.ranks]
                if len(done) < self.scenario.repeats and cell.error is None:
                    cell.error = "not finished: " + error.message
        if self.result.cells:  # a folder that was refused holds another run's
            self.save()

    def save(self) -> None:
        self.result.cells = summarise_training(self.result.cells)
        self._save(self.result)
        if self._root is not None:
            save(self.result, self._root / RUN_FILE)

    def warn(self, text: str) -> None:
        if text not in self.result.warnings:
            self.result.warnings.append(text)
            self.report(Event("warning", text))

    def _note(self, text: str) -> None:
        self.report(Event("note", text))

    def _look_at_the_folder(self) -> None:
        """Refuse to mix two runs in one folder of checkpoints, and to go on from an empty one."""
        if self._root is None:
            return
        path = self._root / RUN_FILE
        if not self.scenario.resume:
            if path.exists():
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
        for key in (
            "learning_rate",
            "tuned_rates",
        ):  # a training's own rate may be another: the method's, or tuned
            check_settings({key: was.get(key)}, {key: now.get(key)})
        for method in self.scenario.methods:
            for seed in self.scenario.seeds:
                self._resumable(method, seed)  # all of them, before anything is started

    def _resumable(self, method: MethodSpec, seed: int) -> Any:
        assert self._root is not None
        found = Slot(self._root, method, seed).latest()
        if found is not None:
            scenario = self.scenario
            check_same(
                found[1],
                settings_of(scenario.model_dump(mode="json")),
                method,
                workers=scenario.workers,
                epochs=scenario.epochs,
                rule=scenario.resume_residuals,
            )
        return found

    def _cell(self, method: MethodSpec, on: Started) -> Cell:
        record = link_record(on.link, on.measured)
        cell = Cell(
            id=method.id,
            method=method.name,
            params=dict(method.params),
            model=self.scenario.model,
            dataset=self.scenario.dataset,
            workers=self.scenario.workers,
            bandwidth_bps=None if record.requested_bps is None else on.link.spec.rate_bps,
            threads=self.scenario.threads,
            link=record,
            recipe=Recipe(
                optimizer=self.scenario.optimizer,
                learning_rate=method.params.get("lr", self.scenario.learning_rate),
                epochs=self.scenario.epochs,
                tx_are={"tc": "measured", "bucket": "charged"}.get(on.link.mechanism, "predicted"),  # type: ignore[arg-type]
                target=self.scenario.target,
            ),
        )
        if self._before is not None:
            self._take_over(cell, self._before)
        return cell

    def _take_over(self, cell: Cell, result: Result) -> None:
        """What an earlier run of the same experiment has of ``cell``."""
        self.result.model_parameters = result.model_parameters
        before = next((other for other in result.cells if other.id == cell.id), None)
        if before is not None:
            # Finished with these many ranks and epochs: nothing to do again. Others go on from their checkpoints.
            if before.workers == cell.workers:
                cell.repeats = [
                    repeat
                    for repeat in before.repeats
                    if repeat.ranks
                    and repeat.seed in self.scenario.seeds
                    and len(repeat.epochs) == self.scenario.epochs
                ]
            if before.recipe is not None:
                news = {"epochs": self.scenario.epochs, "target": self.scenario.target}
                cell.recipe = before.recipe.model_copy(update=news)
            cell.backend, cell.device = before.backend, before.device
            cell.params |= {key: value for key, value in before.params.items() if key == "collective"}

    def _train_cells(self, on: Started) -> None:
        """Seeds outermost and every other one backwards (ABBA), so that a drift of the machine's speed falls on all
        methods alike, and an experiment that is cut short has whole seeds."""
        scenario = self.scenario
        total, done = scenario.repeats * len(self.result.cells), 0
        for number, seed in enumerate(scenario.seeds):
            if number and self._out_of_time():
                self.warn(f"time budget spent after {number} of {scenario.repeats} seeds")
                return
            order = range(len(scenario.methods))
            for index in order if number % 2 == 0 else reversed(order):
                cell = self.result.cells[index]
                self.report(Event("progress", f"{cell.id}, seed {seed}", done, total))
                if all(repeat.seed != seed for repeat in cell.repeats):
                    self._train_cell(on, index, seed)
                else:
                    self._note(f"{cell.id}, seed {seed}: finished before")
                done += 1
                self.save()
        self.report(Event("progress", "done", total, total))

    def _out_of_time(self) -> bool:
        budget = self.scenario.time_budget_s
        return budget is not None and time.monotonic() - self.started > budget

    def _train_cell(self, on: Started, index: int, seed: int) -> None:
        cell, method = self.result.cells[index], self.scenario.methods[index]
        assert cell.recipe is not None
        slot, start = None, None
        if self._root is not None:
            slot = Slot(self._root, method, seed)
            slot.clear_parts()
            start = self._resumable(method, seed) if self.scenario.resume else None
        if start is not None:
            epoch, step = start[1].epoch, start[1].step
            self._note(f"{cell.id}, seed {seed}: going on from epoch {epoch + 1}, step {step + 1}")
        first = seed == self.scenario.seeds[0]
        training = Training(
            self.scenario,
            on.link,
            method,
            seed,
            cell.recipe.learning_rate if start is None else start[1].learning_rate,
            slot=slot,
            start=start,
            traced=TRACED_STEPS if first and self._trace is not None else 0,
        )
        try:
            record, records = training.run(
                on.launcher,
                lambda facts: self._learn(cell, facts),
                lambda text: self.report(Event("line", f"{cell.id} seed {seed} | {text}")),
            )
        except (NetsimError, KeyboardInterrupt, SystemExit) as error:
            if training.history:  # its curve so far, without ranks: it does not count as finished
                cell.repeats.append(RepeatRecord(ranks=[], seed=seed, epochs=training.history))
            if isinstance(error, RankError):
                cell.error = error.message
            raise
        tell_collective(cell, records[0]["collective"], self.report)
        cell.repeats.append(record)
        cell.link.drops += training.drops
        cell.link.retransmits += training.retransmits
        if len({rank.parameters_sha256 for rank in record.ranks}) > 1:
            raise RankError(f"{cell.id}: the ranks do not hold the same parameters after the training")
        if self._trace is not None and first:
            self._trace(traced_laps(cell.id, records, TRACED_STEPS))

    def _learn(self, cell: Cell, facts: Sequence[dict[str, Any]]) -> None:
        """What the ranks know once they are built."""
        first = facts[0]
        assert cell.recipe is not None
        cell.backend, cell.device = first["backend"], first["device"]
        cell.recipe.validation_samples = first["validation_samples"]
        self.result.model_parameters = first["parameters"]
        for note in model_notes(self.scenario.model, facts):
            self.warn(note)
        probed = [fact["probed_bps"] for fact in facts if fact["probed_bps"] is not None]
        if probed:
            cell.link.measured_bps = min(probed)
