"""Carries a plan out: unit after unit on shared links, saved after each; one that fails is marked and the rest go on.

Knows nothing of terminals: whoever calls passes ``report``, which receives :class:`Progress`.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from netsim_ddp import __version__
from netsim_ddp.errors import EnvironmentFault, NetsimError
from netsim_ddp.ranks.pool import Pool
from netsim_ddp.results.fields import Tool
from netsim_ddp.results.files import now_utc
from netsim_ddp.results.ready import ReadyTimes
from netsim_ddp.results.record import Cell, LinkRecord, Result
from netsim_ddp.results.summary import notes
from netsim_ddp.scenario.matrix import Matrix
from netsim_ddp.steps.code_versions import code_of
from netsim_ddp.steps.environment import environment
from netsim_ddp.steps.experiment import BUSY, Event, Save, busy_machine
from netsim_ddp.sweep.earlier import missing_repeats
from netsim_ddp.sweep.estimate import Estimate, start_seconds
from netsim_ddp.sweep.plan import Run, Unit, batches, order, trains
from netsim_ddp.sweep.source import Command


@dataclass(frozen=True)
class Progress(Event):
    """Something to show. ``note`` and ``warning`` are sentences; ``start``, ``done`` and ``failed`` are about one
    repeat of ``cell``: ``done`` of ``total`` are finished, and the rest takes ``remaining_s``."""

    run: str = ""
    cell: Cell | None = None
    remaining_s: float = 0.0


class Sweep:
    """One go at a matrix.

    Args:
        runs: the whole plan.
        selected: ids of the cells to run now; the others keep what they have.
        kept: cells of an earlier result that are still valid, by id.
        known: what repeats took earlier, seconds by cell.
        ready: the ready times that ``kept`` cells name.
        stop_at_failure: end with the first cell that fails.
        time_budget_s: start nothing more after this.
    """

    def __init__(
        self,
        name: str,
        matrix: Matrix,
        runs: Sequence[Run],
        *,
        selected: frozenset[str],
        kept: Mapping[str, Cell],
        known: Mapping[str, list[float]],
        ready: Mapping[str, ReadyTimes] | None = None,
        stop_at_failure: bool = False,
        time_budget_s: float | None = None,
    ) -> None:
        self.runs = list(runs)
        self._cells = {cell.id: cell for run in runs for cell in run.cells}
        self._name, self._matrix, self._selected = name, matrix, selected
        self._measured, self._ready = dict(kept), dict(ready or {})
        self._estimate = Estimate({name: list(times) for name, times in known.items()})
        self._stop_at_failure, self._budget_s = stop_at_failure, time_budget_s
        self._missing = missing = {
            cell.id: missing_repeats(run, kept.get(cell.id)) for run in runs for cell in run.cells
        }
        wanted = {name: missing[name] for name in selected}
        self._batches = [order(batch, wanted) for batch in batches(runs)]
        self.units = [unit for units in self._batches for unit in units]
        self.failed: list[Cell] = []
        self.stopped = ""
        """Why not everything was run, if it was not."""
        self._said: set[str] = set()

    @property
    def expected_s(self) -> float:
        """How long :meth:`execute` will take, about."""
        return self._estimate.total(self.units) + sum(
            start_seconds([unit.run for unit in units]) for units in self._batches
        )

    def execute(
        self, how: Command, *, command: Sequence[str], report: Callable[[Progress], None], save: Save
    ) -> Result:
        """Run what is missing and answer the result, which ``save`` has seen after every repeat.

        Raises:
            UsageError: it cannot be saved. What a cell raises is its own, and kept as its ``error``.
        """
        self._report, self._save = report, save
        self._how, self._command = how, command
        self._started = time.monotonic()
        self.total = len(self.units)
        self.result = self._blank(command)
        if (busy := busy_machine()) is not None:
            self._say_once("warning", busy)
        try:
            for units in self._batches:
                if units and not self.stopped:
                    with Pool([unit.run.wanted for unit in units]) as pool:
                        self._run_units(units, pool)
        finally:
            self._close()
        return self.result

    def _blank(self, command: Sequence[str]) -> Result:
        settings: list[dict[str, Any]] = [run.settings.model_dump(mode="json") for run in self.runs]
        shared = {
            key: value for key, value in settings[0].items() if all(each[key] == value for each in settings)
        }
        return Result(
            kind="training" if trains(self.runs[0].settings) else "steps",
            tool=Tool(version=__version__),
            created_utc=now_utc(),
            status="partial",
            environment=environment(),
            code=code_of(run.settings for run in self.runs),
            scenario={
                **self._matrix.description,
                "command": self._matrix.command,
                **shared,
                "sweep": {
                    "name": self._name,
                    "file": self._matrix.to_json(),
                    "runs": [
                        {"axes": dict(run.axes), "settings": each}
                        for run, each in zip(self.runs, settings, strict=True)
                    ],
                    "cells": {name: cell.identity for name, cell in self._cells.items()},
                },
            },
            command=shlex.join(command),
        )

    def _run_units(self, units: Sequence[Unit], pool: Pool) -> None:
        for unit in units:
            if self.stopped:
                return
            cell = self._measured.get(unit.cell.id)
            if cell is not None and cell.error is not None:
                self._drop(unit)
                continue
            if self._budget_s is not None and time.monotonic() - self._started > self._budget_s:
                self.stopped = "the time budget is spent"
                return
            self._progress("start", unit)
            began, before_s = time.monotonic(), pool.spent_s
            try:
                found = self._measure(unit, pool)
                self._add(unit, found, time.monotonic() - began - (pool.spent_s - before_s))
            except NetsimError as error:
                pool.clear()
                self._fail(unit, error)

    def _measure(self, unit: Unit, pool: Pool) -> Result:
        """One unit's own result; its warnings that are no statistics of its few samples join ours."""
        warnings: list[str] = []

        def on_event(event: Event) -> None:
            if event.kind == "warning":
                warnings.append(event.text)
            elif event.kind == "note":
                self._say_once("note", event.text)

        settings = unit.settings
        old = self._measured.get(unit.cell.id)
        if old is not None and old.ready and getattr(settings, "ready_from", None) is None:
            # All repeats of a cell play the same backward pass, also those of a sweep that goes on.
            settings = settings.model_copy(update={"ready_from": self._ready.get(old.ready[0])})
        found = self._how.execute(
            settings, command=self._command, report=on_event, save=lambda _: None, pool=pool
        )
        statistics = notes(found.cells)
        for text in warnings:
            if text not in statistics and not text.startswith(BUSY):  # with what ran before
                self._say_once("warning", text, unit.run.label)
        return found

    def _add(self, unit: Unit, found: Result, took_s: float) -> None:
        (new,) = found.cells
        each_s = took_s / len(unit.repeats)
        repeats = [repeat.model_copy(update={"took_s": each_s}) for repeat in new.repeats]
        old = self._measured.get(unit.cell.id)
        if old is not None:
            if (old.link.mechanism, old.device, old.backend) != (new.link.mechanism, new.device, new.backend):
                raise EnvironmentFault(
                    f"began on {old.link.mechanism}, {old.device}, {old.backend} and would go on on "
                    f"{new.link.mechanism}, {new.device}, {new.backend}",
                    hint="--fresh starts over",
                )
            rates = [rate for rate in (old.link.measured_bps, new.link.measured_bps) if rate is not None]
            link = new.link.model_copy(
                update={
                    "drops": old.link.drops + new.link.drops,
                    "retransmits": old.link.retransmits + new.link.retransmits,
                    "measured_bps": min(rates, default=None),
                }
            )
            new = new.model_copy(update={"link": link})
            repeats = [*old.repeats, *repeats]
        self._measured[unit.cell.id] = new.model_copy(
            update={"id": unit.cell.id, "axes": dict(unit.cell.axes), "repeats": repeats}
        )
        self._ready |= found.ready
        if found.model_parameters is not None and "model" in self.result.scenario:
            self.result.model_parameters = found.model_parameters
        self._drop(unit)
        self._estimate.add(unit, took_s)
        self._summarise(unit.run)
        self._save_result()
        self._progress("done", unit)

    def _fail(self, unit: Unit, error: NetsimError) -> None:
        """Mark the cell; where the machine cannot deliver, all of its run."""
        cells = unit.run.cells if isinstance(error, EnvironmentFault) else (unit.cell,)
        for planned in cells:
            if planned.id not in self._selected or not self._missing[planned.id]:
                continue
            cell = self._measured.get(planned.id) or _not_run(Unit(unit.run, planned, unit.repeats))
            self._measured[planned.id] = cell.model_copy(update={"error": str(error)})
            self.failed.append(self._measured[planned.id])
        self._drop(unit)
        self._save_result()
        where = unit.cell.id if len(cells) == 1 else f"all of {unit.run.label}" if unit.run.label else "all"
        self._progress("failed", unit, f"{where}: {error}")
        if self._stop_at_failure:
            self.stopped = f"-x: stopped at {unit.cell.id}"

    def _drop(self, unit: Unit) -> None:
        """The unit needs no more time."""
        self.units.remove(unit)
        self._missing[unit.cell.id] = [
            number for number in self._missing[unit.cell.id] if number not in unit.repeats
        ]

    def _summarise(self, run: Run) -> None:
        """Only cells of one run are compared with each other."""
        cells = [self._measured[cell.id] for cell in run.cells if cell.id in self._measured]
        self._measured |= {cell.id: cell for cell in self._how.summarise(cells)}

    def _save_result(self) -> None:
        self.result.cells = [self._measured[name] for name in self._cells if name in self._measured]
        named = dict.fromkeys(key for cell in self.result.cells for key in cell.ready)
        self.result.ready = {key: self._ready[key] for key in named if key in self._ready}
        self._save(self.result)

    def _close(self) -> None:
        for run in self.runs:
            self._summarise(run)
        cells = self._measured
        done = all(
            name in cells and not cells[name].error and not self._missing[name] for name in self._cells
        )
        measured = any(cell.repeats for cell in cells.values())
        self.result.status = "complete" if done else "partial" if measured else "failed"
        self._save_result()
        self.result.warnings += notes(self.result.cells)
        self._save(self.result)

    def _progress(self, kind: str, unit: Unit, text: str = "") -> None:
        self._report(
            Progress(
                kind,
                text or f"{unit.cell.id}, repeat {unit.repeats[0] + 1} of {unit.run.settings.repeats}",
                self.total - len(self.units),
                self.total,
                run=unit.run.label,
                cell=self._measured.get(unit.cell.id),
                remaining_s=self._estimate.total(self.units),
            )
        )

    def _say_once(self, kind: Literal["note", "warning"], text: str, where: str = "") -> None:
        """Report ``text`` unless another run has had the same to say; a warning is kept in the result."""
        if text in self._said:
            return
        self._said.add(text)
        whole = f"{where}: {text}" if where else text
        if kind == "warning":
            self.result.warnings.append(whole)
        self._report(Progress(kind, whole))


def _not_run(unit: Unit) -> Cell:
    """A cell of which nothing was measured, as far as its settings tell."""
    settings: Any = unit.run.settings
    params = dict(unit.cell.method.params)
    rate = None if settings.link == "none" else settings.link_spec().slowest_bps
    return Cell(
        id=unit.cell.id,
        method=unit.cell.method.name,
        overlap=bool(params.pop("overlap", False)),
        params=params,
        model=settings.model,
        dataset=settings.dataset,
        axes=dict(unit.cell.axes),
        workers=settings.workers,
        bandwidth_bps=rate,
        execution="replayed" if getattr(settings, "execution", "") == "replayed" else "concurrent",
        threads=settings.threads,
        link=LinkRecord(
            mechanism="tc" if settings.link == "auto" else settings.link,
            requested_bps=rate,
            configured_bps=None,
            measured_bps=None,
            ceiling_bps=None,
        ),
    )
