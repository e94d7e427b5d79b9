"""The loop of an experiment, of ``netsim run`` and ``netsim train`` alike: every repeat of every cell in a fair order,
within the time budget, saved after each; what was measured stays when a rank fails or the user interrupts.

Knows nothing of terminals: whoever calls passes ``report``, which receives :class:`Event`.
"""

from __future__ import annotations

import os
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from netsim_ddp import __version__
from netsim_ddp.errors import NetsimError, RankError
from netsim_ddp.link.base import Link
from netsim_ddp.link.probe.probe import ProbeReport
from netsim_ddp.methods import takes
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.methods.topk import collective_words
from netsim_ddp.ranks.launcher import Launcher
from netsim_ddp.ranks.pool import Pool
from netsim_ddp.results.fields import Tool
from netsim_ddp.results.files import now_utc
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.results.trace import TRACED_STEPS, KeepTrace, traced_laps
from netsim_ddp.scenario import Settings, available_cores
from netsim_ddp.steps.code_versions import code_of
from netsim_ddp.steps.environment import environment
from netsim_ddp.steps.link_record import link_record
from netsim_ddp.stolen import NOTICEABLE, StolenTime
from netsim_ddp.switches import repeats_disturbed
from netsim_ddp.units import counted
from netsim_ddp.workloads.corpus import read_corpus
from netsim_ddp.workloads.files import data_folder, present, provide

BUSY = "this machine is busy already"
TRIES = 3
"""A repeat is run at most so often: again where a virtual machine's host took processors from it."""
UNUSED_SHOWN = 3
"""So many parameters without a gradient are named."""


@dataclass(frozen=True)
class Event:
    """Something to show: ``note`` and ``warning`` are sentences, ``line`` is a row of figures, ``progress`` counts
    repeats."""

    kind: str
    text: str
    done: int = 0
    total: int = 0


Report = Callable[[Event], None]
Save = Callable[[Result], None]
Facts = Sequence[Mapping[str, Any]]
"""What each rank says of itself and of its model when it is built, in rank order."""
S = TypeVar("S", bound=Settings)


def measured(result: Result) -> bool:
    """Whether at least one repeat, or one epoch of a training, of one cell is in ``result``."""
    return any(repeat.ranks or repeat.epochs for cell in result.cells for repeat in cell.repeats)


def busy_machine() -> str | None:
    """What to say of a machine that other programs use; None where there is nothing to say."""
    load, cores = os.getloadavg()[0], available_cores()
    return f"{BUSY}: load {load:.1f} on {counted(cores, 'core')}" if load > max(1.0, 0.5 * cores) else None


class Experiment(ABC, Generic[S]):
    """The cells of one scenario, repeated. A subclass says how a link is taken and what one repeat is.

    Args:
        scenario: resolved.
        command: the words of the command line, for the result.
        save: sees the result after every repeat.
        trace: receives the laps of a few steps of every cell's first repeat.
        pool: links and fork servers that are there already, and stay; by default the experiment makes its own.
    """

    kind: ClassVar[Literal["steps", "training"]] = "steps"
    unit: ClassVar[str] = "repeat"
    slower: ClassVar[str] = "compute and compress take"
    """What lasts longer where ranks share cores."""
    undisturbed: bool = False
    """Whether a repeat that a virtual machine's host disturbed is run again."""
    link: Link
    launcher: Launcher

    def __init__(
        self,
        scenario: S,
        *,
        command: Sequence[str],
        report: Report,
        save: Save,
        trace: KeepTrace | None = None,
        pool: Pool | None = None,
    ) -> None:
        self.scenario, self.report = scenario, report
        self._save, self._trace, self._pool = save, trace, pool
        self.result = Result(
            kind=self.kind,
            tool=Tool(version=__version__),
            created_utc=now_utc(),
            status="partial",
            environment=environment(),
            code=code_of([scenario]),
            scenario=scenario.model_dump(mode="json"),
            command=shlex.join(command),
        )
        self.stack = ExitStack()
        """Left when the last repeat is done, or one has failed."""
        self._started, self._stolen = time.monotonic(), StolenTime()
        # Before the link is probed: what that takes is no other program's.
        self._busy = busy_machine() if pool is None else None

    def run(self) -> Result:
        """Carry the experiment out.

        Raises:
            NetsimError: the link or a rank failed. What was measured before is saved with ``status: partial``.
        """
        try:
            self.check()
            self._have_data()
            with self.stack:
                self.start(self._pool or self.stack.enter_context(Pool()))
                self._repeat_cells()
            self._close("complete", None)
        except (NetsimError, KeyboardInterrupt, SystemExit) as error:  # Ctrl-C, SIGTERM
            status: Literal["partial", "failed"] = "partial" if measured(self.result) else "failed"
            self._close(status, error if isinstance(error, NetsimError) else None)
            raise
        return self.result

    def check(self) -> None:
        """Refuse what cannot be carried out, before anything is made or probed."""
        return

    @abstractmethod
    def start(self, pool: Pool) -> None:
        """Take ``link`` and ``launcher``, make the cells, and do what comes before the first repeat."""

    @abstractmethod
    def repeat(self, index: int, number: int) -> None:
        """Run repeat ``number`` of cell ``index``, and add it to the cell."""

    @abstractmethod
    def summarise(self, cells: Sequence[Cell]) -> list[Cell]:
        """``cells`` with their summaries computed."""

    @abstractmethod
    def notes(self) -> Sequence[str]:
        """What a reader of the finished result should be warned of."""

    def label(self, number: int) -> str:
        """The name of repeat ``number`` in a line of progress."""
        return f"{self.unit} {number + 1}"

    def save(self) -> None:
        self.result.cells = self.summarise(self.result.cells)
        self._save(self.result)

    def warn(self, text: str) -> None:
        if text not in self.result.warnings:
            self.result.warnings.append(text)
            self.report(Event("warning", text))

    def note(self, text: str) -> None:
        self.report(Event("note", text))

    def cell(self, method: MethodSpec, probed: ProbeReport | None, **own: Any) -> Cell:
        """The cell of ``method``, empty; ``own`` are its further fields."""
        record = link_record(self.link, probed)
        return Cell(
            id=method.id,
            method=method.name,
            model=self.scenario.model,
            dataset=self.scenario.dataset,
            workers=self.scenario.workers,
            bandwidth_bps=None if record.requested_bps is None else self.link.spec.rate_bps,
            threads=self.scenario.threads,
            link=record,
            **own,
        )

    def warn_of_contention(self, workers: int) -> None:
        """Say that ``workers`` ranks have fewer cores than threads, and that other programs run."""
        threads, cores = self.scenario.threads, available_cores()
        if workers * threads > cores:
            self.warn(
                f"{counted(workers, 'worker')} x {counted(threads, 'thread')} share {counted(cores, 'core')}: "
                f"{self.slower} longer here than on machines of their own"
            )
        if self._busy is not None:
            self.warn(self._busy)

    def take_facts(self, cell: Cell, facts: Facts) -> float | None:
        """Keep what the ranks know once they are built, and tell what a user should know of their model.

        Returns:
            The lowest rate that the ranks have probed, bit/s; None where they did not.
        """
        first, model = facts[0], self.scenario.model
        cell.backend, cell.device = first["backend"], first["device"]
        self.result.model_parameters = first["parameters"]
        if unused := first["unused"]:
            more = f" and {len(unused) - UNUSED_SHOWN} more" if len(unused) > UNUSED_SHOWN else ""
            self.warn(
                f"model {model}: {', '.join(unused[:UNUSED_SHOWN])}{more} took no part in a trial step: such a "
                "parameter counts as a gradient of zero, and its bytes are sent"
            )
        if first["differed"]:
            self.warn(
                f"model {model}: the ranks had built it with different values, from random numbers that --seed does "
                "not reach: all start with rank 0's, as under DistributedDataParallel"
            )
        return min((fact["probed_bps"] for fact in facts if fact["probed_bps"] is not None), default=None)

    def take_collective(self, cell: Cell, collective: str | None) -> None:
        """Keep which collective ran with the cell's parameters, and say what a method chose that could choose."""
        chosen = takes(cell.method, "collective") and cell.params.get("collective") != collective
        if collective is None or not chosen:
            return
        cell.params["collective"] = collective
        name, why = collective_words(collective)
        self.note(f"{cell.id}: {name}, {why} at {counted(cell.workers, 'worker')}")

    def traced_steps(self, number: int) -> int:
        """Returns the number of steps of repeat ``number`` that go into the trace."""
        return TRACED_STEPS if self._trace is not None and number == 0 else 0

    def take_trace(self, cell: Cell, records: Sequence[dict[str, Any]], number: int) -> None:
        """Hand the first steps of the first repeat over to the trace, where there is one."""
        if self._trace is not None and self.traced_steps(number):
            self._trace(traced_laps(cell.id, records, TRACED_STEPS))

    def _have_data(self) -> None:
        """Have the files of the data set.

        Raises:
            EnvironmentFault: they are missing, or cannot be downloaded.
        """
        settings = self.scenario
        dataset = settings.dataset or ""
        if settings.download and not present(dataset, settings.data_dir):
            self.note(f"downloading {dataset} to {data_folder(settings.data_dir)}, once")
        provide(dataset, settings.data_dir, download=settings.download, apart=True)
        if dataset == "text":
            read_corpus(settings.text)

    def _repeat_cells(self) -> None:
        """Repeats outermost and every other one backwards (ABBA), so that a drift of the machine's speed falls on all
        cells alike, and an experiment that is cut short has whole repeats."""
        repeats, order = self.scenario.repeats, range(len(self.scenario.methods))
        total, done = repeats * len(order), 0
        spare = (total + 1) // 2 if self.undisturbed and self._trace is None and repeats_disturbed() else 0
        for number in range(repeats):
            if number and self._time_is_up():
                self.warn(f"time budget spent after {number} of {counted(repeats, self.unit)}")
                return
            for index in order if number % 2 == 0 else reversed(order):
                cell = self.result.cells[index]
                self.report(Event("progress", f"{cell.id}, {self.label(number)}", done, total))
                try:
                    spare -= self._repeat_undisturbed(index, number, spare)
                except RankError as error:
                    cell.error = error.message
                    raise
                done += 1
                self.save()
        self.report(Event("progress", "done", total, total))

    def _time_is_up(self) -> bool:
        budget_s = self.scenario.time_budget_s
        return budget_s is not None and time.monotonic() - self._started > budget_s

    def _repeat_undisturbed(self, index: int, number: int, spare: int) -> int:
        """Run a repeat, and again where this virtual machine's host took processors from it. Of the tries the one that
        it took least from counts, whatever they measured.

        Returns:
            How many tries there were beside the first, of the ``spare`` ones that are left.
        """
        cell, tries, least = self.result.cells[index], 0, 0.0
        while not tries or (tries < min(TRIES, 1 + spare) and least > NOTICEABLE and not self._time_is_up()):
            before, stolen = len(cell.repeats), StolenTime()
            self.repeat(index, number)
            if len(cell.repeats) == before:  # finished by an earlier command
                return 0
            share = stolen.share or 0.0
            if tries:
                new = cell.repeats.pop()
                if share < least:
                    cell.repeats[-1] = new
            least = min(least, share) if tries else share
            tries += 1
        told = {"stolen_share": round(least, 4), "tries": tries}
        cell.repeats[-1] = cell.repeats[-1].model_copy(update=told)
        return tries - 1

    def _close(self, status: Literal["complete", "partial", "failed"], error: NetsimError | None) -> None:
        self.result.status = status
        self.result.cells = self.summarise(self.result.cells)
        for note in self.notes():
            self.warn(note)
        if (share := self._stolen.share) is not None:
            self.result.environment["stolen_share"] = round(share, 3)
        if error is not None:
            self.result.warnings.append(error.message)
            for cell in self.result.cells:
                finished = [repeat for repeat in cell.repeats if repeat.ranks]
                if len(finished) < self.scenario.repeats and cell.error is None:
                    cell.error = "not finished: " + error.message
        self.save()
