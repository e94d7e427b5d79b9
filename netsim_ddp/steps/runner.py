"""The order of it all: choose and probe the link, run cells interleaved, save after each repeat.

Knows nothing of terminals: whoever calls passes ``report``, which receives :class:`Event`.
"""

from __future__ import annotations

import os
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from netsim_ddp import __version__
from netsim_ddp.errors import NetsimError, RankError
from netsim_ddp.link.base import Counters, Link
from netsim_ddp.link.probe.probe import ProbeReport, check
from netsim_ddp.link.tc.link import TcLink
from netsim_ddp.methods import WITH_CODEC, MethodSpec
from netsim_ddp.ranks.hosts import Hub
from netsim_ddp.ranks.jobs import jobs_for
from netsim_ddp.ranks.launcher import Launcher
from netsim_ddp.ranks.pool import Pool
from netsim_ddp.results.fields import Tool
from netsim_ddp.results.files import now_utc
from netsim_ddp.results.record import Cell, ReplayRecord, Result
from netsim_ddp.results.summary import notes, summarise
from netsim_ddp.results.trace import TRACED_STEPS, KeepTrace, traced_laps
from netsim_ddp.scenario import Scenario, Settings, available_cores
from netsim_ddp.steps.code_versions import code_of
from netsim_ddp.steps.environment import environment
from netsim_ddp.steps.link_model import LinkModel
from netsim_ddp.steps.link_record import link_record
from netsim_ddp.steps.model_notes import model_notes
from netsim_ddp.steps.ready import ready_times
from netsim_ddp.steps.repeat_record import settle_repeat
from netsim_ddp.workloads.corpus import read_corpus
from netsim_ddp.workloads.files import data_folder, present, provide

TASK = "netsim_ddp.steps.worker:StepsTask"
BUSY = "this machine is busy already"


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


def run(
    scenario: Scenario,
    *,
    command: Sequence[str],
    report: Report,
    save: Save,
    hosts: Hub | None = None,
    trace: KeepTrace | None = None,
    pool: Pool | None = None,
) -> Result:
    """Run every cell of ``scenario`` and answer the result, which ``save`` has seen after every repeat.

    Args:
        hosts: the real hosts to run on, instead of a link of our own.
        trace: receives the laps of the first measured steps of every cell's first repeat.
        pool: links and interpreters that are there already, and stay; by default the run makes its own.

    Raises:
        NetsimError: the link or a rank failed. What was measured before is saved with ``status: partial``.
    """
    scenario = scenario.resolved()
    run = _Run(scenario, command, report, save, hosts, trace, pool)
    try:
        run.execute()
    except NetsimError as error:
        run.close("partial" if measured(run.result) else "failed", error)
        raise
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM
        run.close("partial" if measured(run.result) else "failed", None)
        raise
    return run.result


def measured(result: Result) -> bool:
    """Whether at least one repeat of one cell is in ``result``."""
    return any(cell.repeats for cell in result.cells)


def have_data(settings: Settings, note: Callable[[str], None]) -> None:
    """Have the files of the data set, before anything is made or probed.

    Raises:
        EnvironmentFault: they are missing, or cannot be downloaded.
    """
    dataset = settings.dataset or ""
    if settings.download and not present(dataset, settings.data_dir):
        note(f"downloading {dataset} to {data_folder(settings.data_dir)}, once")
    provide(dataset, settings.data_dir, download=settings.download, apart=True)
    if dataset == "text":
        read_corpus(settings.text)


class _Run:
    def __init__(
        self,
        scenario: Scenario,
        command: Sequence[str],
        report: Report,
        save: Save,
        hosts: Hub | None,
        trace: KeepTrace | None,
        pool: Pool | None,
    ) -> None:
        self.scenario, self.report, self._save = scenario, report, save
        self._played = scenario
        """What the ranks are told: with the ready times, if there are any."""
        self._hosts, self._trace, self._pool = hosts, trace, pool
        self.result = Result(
            tool=Tool(version=__version__),
            created_utc=now_utc(),
            status="partial",
            environment=environment(),
            code=code_of([scenario]),
            scenario=scenario.model_dump(mode="json"),
            command=shlex.join(command),
        )
        self.started = time.monotonic()

    def execute(self) -> None:
        have_data(self.scenario, self._note)
        with ExitStack() as stack:
            pool = self._pool or stack.enter_context(Pool())
            if self._hosts is not None:
                self._note("waiting for the other ranks' commands")
                launcher: Launcher = stack.enter_context(self._hosts)
                link: Link = self._hosts.link
                measured = None
            else:
                spec, how = self.scenario.link_spec(), self.scenario.link
                link, measured = pool.link(spec, how, self._note, self.warn)
            self.result.cells = [self._cell(method, link, measured) for method in self.scenario.methods]
            self._warn_of_contention()
            if self._hosts is None:
                launcher = pool.launcher(link, self.scenario, self._note)
            self._have_ready_times(launcher, link)
            self._repeat_cells(launcher, link)
        self.close("complete", None)

    def close(self, status: Any, error: NetsimError | None) -> None:
        self.result.status = status
        self.result.cells = summarise(self.result.cells)
        for note in notes(self.result.cells):
            self.warn(note)
        if error is not None:
            self.result.warnings.append(error.message)
            for cell in self.result.cells:
                if len(cell.repeats) < self.scenario.repeats and cell.error is None:
                    cell.error = "not finished: " + error.message
        self.save()

    def save(self) -> None:
        self.result.cells = summarise(self.result.cells)
        self._save(self.result)

    def warn(self, text: str) -> None:
        if text not in self.result.warnings:
            self.result.warnings.append(text)
            self.report(Event("warning", text))

    def _note(self, text: str) -> None:
        self.report(Event("note", text))

    def _cell(self, method: MethodSpec, link: Link, measured: ProbeReport | None) -> Cell:
        record = link_record(link, measured)
        params = dict(method.params)
        return Cell(
            id=method.id,
            method=method.name,
            model=self.scenario.model,
            dataset=self.scenario.dataset,
            execution="replayed" if self.scenario.execution == "replayed" else "concurrent",
            overlap=bool(params.pop("overlap", False)),
            params=params,
            workers=self.scenario.workers,
            bandwidth_bps=None if record.requested_bps is None else link.spec.rate_bps,
            threads=self.scenario.threads,
            substituted=self._substituted(method),
            link=record,
        )

    def _have_ready_times(self, launcher: Launcher, link: Link) -> None:
        """Once for all cells and ranks: every one of them plays the same backward pass."""
        cpu = str(self.result.environment["cpu"])
        ready = ready_times(self.scenario, launcher, link, cpu, self._note, self.warn)
        if ready is None:
            return
        self._played = self.scenario.model_copy(update={"ready_from": ready})
        for cell in self.result.cells:
            if cell.overlap:
                cell.ready = [ready.key]
                self.result.ready = {ready.key: ready}

    def _substituted(self, method: MethodSpec) -> str | None:
        """Whose codec times the cells of ``method`` show; those of a method that has no such codec are its own."""
        times = self.scenario.codec_from
        return times.name if times is not None and method.name in WITH_CODEC else None

    def _warn_of_contention(self) -> None:
        workers = self.scenario.workers
        if self._hosts is not None:
            workers = self._hosts.ranks_per_interface
            if workers > 1:
                self.warn(
                    f"up to {workers} ranks share a host and its interface: the bytes it counts are divided evenly "
                    "among them, and what they send each other is not among them"
                )
        used, cores = workers * self.scenario.threads, available_cores()
        if used > cores and self.scenario.execution == "concurrent":
            self.warn(
                f"{workers} workers x {self.scenario.threads} thread share {cores} cores: "
                "compute and compress take longer here than on machines of their own"
            )
        if self._pool is None and (busy := busy_machine()) is not None:
            self.warn(busy)

    def _repeat_cells(self, launcher: Launcher, link: Link) -> None:
        """Repeats outermost and every other one backwards (ABBA), so that a drift of the machine's speed
        falls on all cells alike."""
        total = self.scenario.repeats * len(self.result.cells)
        done = 0
        for repeat in range(self.scenario.repeats):
            if repeat and self._out_of_time():
                self.warn(f"time budget spent after {repeat} of {self.scenario.repeats} repeats")
                return
            order = range(len(self.scenario.methods))
            for index in order if repeat % 2 == 0 else reversed(order):
                name = self.result.cells[index].id
                self.report(Event("progress", f"{name}, repeat {repeat + 1}", done, total))
                try:
                    self._run_cell(launcher, link, index, repeat)
                except RankError as error:
                    self.result.cells[index].error = error.message
                    raise
                done += 1
                self.save()
        self.report(Event("progress", "done", total, total))

    def _out_of_time(self) -> bool:
        budget = self.scenario.time_budget_s
        return budget is not None and time.monotonic() - self.started > budget

    def _run_cell(self, launcher: Launcher, link: Link, index: int, repeat: int) -> None:
        cell, method = self.result.cells[index], self.scenario.methods[index]
        counted: list[list[Counters] | None] = []
        facts: list[dict[str, Any]] = []

        def gathered(point: str, values: list[Any]) -> None:
            if point == "built":
                facts.extend(values)
                for note in model_notes(self.scenario.model, values):
                    self.warn(note)
                self._check_bucket(link, cell, values)
                link.begin()
            elif point == "counted":
                counted.append(link.counters() if self._hosts is None else self._hosts.counters(values))

        jobs = jobs_for(link, self._played, TASK, {}, method=method, repeat=repeat)
        records = launcher.run(jobs, gathered)
        cell.backend, cell.device = facts[0]["backend"], facts[0]["device"]
        note_replay(cell, [fact["replay"] for fact in facts])
        tell_collective(cell, facts[0]["collective"], self.report)
        self.result.model_parameters = facts[0]["parameters"]
        if len({record["sha256"] for record in records}) > 1:
            raise RankError(
                f"{cell.id}: the ranks do not hold the same bits after {self.scenario.steps} steps"
            )
        aggregate = link.shapes.gso if isinstance(link, TcLink) else None
        if self._trace is not None and repeat == 0:
            self._trace(traced_laps(cell.id, records, TRACED_STEPS))
        message_s: dict[str, float] = facts[0]["message_s"]
        model = None
        if LinkModel.knows(link.spec, link.mechanism) and message_s:
            model = LinkModel(link.spec, message_s, aggregate)
        settled = settle_repeat(records, counted, aggregate, model, message_s, self.scenario.warmup)
        cell.repeats.append(settled.repeat)
        cell.link.drops += settled.drops
        cell.link.retransmits += settled.retransmits
        if settled.drops:
            self.warn(f"{cell.id}: the link dropped {settled.drops} packets")

    def _check_bucket(self, link: Link, cell: Cell, facts: Sequence[dict[str, Any]]) -> None:
        """The bucket link proves itself within the workers' own group, before each repeat's first step."""
        probed = [fact["probed_bps"] for fact in facts if fact["probed_bps"] is not None]
        if probed:
            cell.link.measured_bps = cell.link.together_bps = min(probed)
            if link.mechanism == "bucket":
                check(link, ProbeReport(min(probed), min(probed)))


def tell_collective(cell: Cell, collective: str | None, report: Report) -> None:
    """Keep which collective ran with the cell's parameters, and say what ``topk`` chose."""
    if collective is None or cell.method != "topk" or cell.params.get("collective") == collective:
        return
    cell.params["collective"] = collective
    reasons = {"split": "fewer bytes", "allgather": "fewer rounds for no more bytes"}
    why = reasons.get(collective, "by each bucket's size")
    report(Event("note", f"{cell.id}: {collective}, {why} at {cell.workers} workers"))


def note_replay(cell: Cell, facts: Sequence[dict[str, Any] | None]) -> None:
    """Keep how the ranks of one repeat measured and played their work."""
    told = [fact for fact in facts if fact is not None]
    if not told:
        return
    if cell.replay is None:
        cell.replay = ReplayRecord(at_once=told[0]["at_once"], busy=told[0]["busy"])
    if slowdowns := [fact["slowdowns"] for fact in told if fact["slowdowns"] is not None]:
        compute, memory = (statistics.median(values) for values in zip(*slowdowns, strict=True))
        cell.replay.compute_slowdown.append(compute)
        cell.replay.memory_slowdown.append(memory)


def busy_machine() -> str | None:
    """What to say of a machine that others use, before we do."""
    load, cores = os.getloadavg()[0], available_cores()
    if load <= max(1.0, 0.5 * cores):
        return None
    return f"{BUSY}: load {load:.1f} on {cores} cores"
