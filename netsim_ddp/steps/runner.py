"""``netsim run``'s experiment: step times of every cell of a scenario, by repeats in fresh processes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from netsim_ddp.errors import RankError
from netsim_ddp.link.base import Counters
from netsim_ddp.link.probe.probe import ProbeReport, check, warn_of_host
from netsim_ddp.link.tc.link import TcLink
from netsim_ddp.methods import entry_of
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.names import MODELS
from netsim_ddp.ranks.hosts import Hub
from netsim_ddp.ranks.jobs import jobs_for
from netsim_ddp.ranks.memory import available_bytes
from netsim_ddp.ranks.pool import Pool
from netsim_ddp.results.ready import ReadyTimes
from netsim_ddp.results.record import Cell, ReplayRecord, Result
from netsim_ddp.results.summary import notes, summarise
from netsim_ddp.results.trace import KeepTrace
from netsim_ddp.scenario import Scenario
from netsim_ddp.steps.experiment import Experiment, Facts, Report, Save
from netsim_ddp.steps.host_memory import LARGEST_BUILT_IN, check_memory, worker_bytes
from netsim_ddp.steps.link_model import LinkModel
from netsim_ddp.steps.repeat_record import repeat_record

TASK = "netsim_ddp.steps.worker:StepsTask"
RECORDED_TASK = "netsim_ddp.steps.recorded_task:RecordedTask"
COUNT_TASK = "netsim_ddp.steps.worker:CountTask"
READY_TASK = "netsim_ddp.steps.ready_task:ReadyTask"
FULL = "buckets become full as in a real backward pass"


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
    """Run every cell of ``scenario`` and return the result, which ``save`` has seen after every repeat.

    Args:
        hosts: the real hosts to run on, instead of a link of our own.
        trace: receives the laps of the first measured steps of every cell's first repeat.
        pool: links and fork servers that are there already, and stay; by default the run makes its own.

    Raises:
        NetsimError: the link or a rank failed. What was measured before is saved with ``status: partial``.
    """
    steps = Steps(scenario.resolved(), command=command, report=report, save=save, trace=trace, pool=pool)
    steps.hosts = hosts
    return steps.run()


class Steps(Experiment[Scenario]):
    """Measured steps. ``hosts``: the real hosts to run on, instead of a link of our own."""

    hosts: Hub | None = None
    undisturbed = True

    def check(self) -> None:
        """Refuse a recording that is another one by now, or whose model does not fit in this machine's memory: all sets
        of its gradients once, and what every rank holds."""
        if (recording := self.scenario.recording) is None:
            return
        sets, free = len(recording.open().gradients.steps), available_bytes()
        here = self.scenario if self.hosts is None else self.scenario.model_copy(update={"workers": 1})
        if free is not None:
            check_memory(recording.parameters, here, free, shared=4 * recording.parameters * sets)

    def start(self, pool: Pool) -> None:
        probed, workers = None, self.scenario.workers
        if self.hosts is not None:
            self.note("waiting for the other ranks' commands")
            self.launcher, self.link = self.stack.enter_context(self.hosts), self.hosts.link
            workers = self.hosts.ranks_per_interface
            self.undisturbed = False  # each host has its own processors
        else:
            spec, how = self.scenario.link_spec(), self.scenario.link
            self.link, probed = pool.link(spec, how, self.note, self.warn)
        self.result.cells = [self._cell(method, probed) for method in self.scenario.methods]
        if self.scenario.recording is not None and (warning := self.scenario.recording.warning) is not None:
            self.warn(warning)
        if self.hosts is not None and workers > 1:
            self.warn(
                f"up to {workers} ranks share a host and its interface: the bytes it counts are divided evenly "
                "among them, and what they send each other is not among them"
            )
        # Replayed, ranks take turns on the cores.
        self.warn_of_contention(workers if self.scenario.execution == "concurrent" else 0)
        if self.hosts is None:
            self.launcher = pool.launcher(self.link, self.scenario, self.note)
            self._check_memory()
        ready = self._ready_times()
        if ready is not None:
            self.scenario = self.scenario.model_copy(update={"ready_from": ready})
            for cell in self.result.cells:
                if cell.overlap:
                    cell.ready = [ready.key]
                    self.result.ready = {ready.key: ready}

    def _check_memory(self) -> None:
        """Refuse workers that do not fit in this machine's memory, before any of them starts.

        Raises:
            UsageError: they do not, or the model cannot be built.
        """
        scenario, free = self.scenario, available_bytes()
        if free is None or scenario.recording is not None:
            return
        if scenario.model in MODELS and worker_bytes(LARGEST_BUILT_IN, scenario) * scenario.workers <= free:
            return
        if self.launcher.parameters is None:
            jobs = jobs_for(self.link, scenario, COUNT_TASK, {})[:1]
            (found,) = self.launcher.run(jobs, lambda *_: None)
            self.launcher.parameters = found["parameters"] if found["device"] == "cpu" else 0
        check_memory(self.launcher.parameters, scenario, free)

    def _cell(self, method: MethodSpec, probed: ProbeReport | None) -> Cell:
        times, params = self.scenario.codec_from, dict(method.params)
        return self.cell(
            method,
            probed,
            execution="replayed" if self.scenario.execution == "replayed" else "concurrent",
            overlap=bool(params.pop("overlap", False)),
            params=params,
            # A method without such a codec shows its own times.
            substituted=times.name if times is not None and entry_of(method.name).uses_codec else None,
        )

    def _ready_times(self) -> ReadyTimes | None:
        """When the gradients of every cell are ready: given in a file, measured before, or measured now on one rank;
        None where nothing needs to know, because compute is real or nothing overlaps.

        Raises:
            UsageError, RankError: the model cannot be trained.
        """
        scenario, launcher = self.scenario, self.launcher
        overlapped = any(method.params.get("overlap") for method in scenario.methods)
        if scenario.ready_from is not None or scenario.compute_s is None or not overlapped:
            return scenario.ready_from
        if launcher.ready is None:
            self.note("measuring when a backward pass has its gradients ready, on one worker alone")
            found: dict[str, Any]
            (found,) = launcher.run(jobs_for(self.link, scenario, READY_TASK, {})[:1], lambda *_: None)
            device = found.pop("device")
            launcher.ready = ReadyTimes(
                model=scenario.model,
                machine=str(self.result.environment["cpu"]) if device == "cpu" else device,
                threads=scenario.threads,
                **found,
            )
            self.note(f"{FULL}: {launcher.ready.described}")
        if launcher.ready.batch_size != scenario.batch_size:
            self.warn(
                f"buckets become full as in a backward pass of batch {launcher.ready.batch_size}: "
                f"{scenario.batch_size} do not fit in this machine's memory"
            )
        return launcher.ready

    def repeat(self, index: int, number: int) -> None:
        cell, method, link = self.result.cells[index], self.scenario.methods[index], self.link
        task = TASK if self.scenario.recording is None else RECORDED_TASK
        counted: list[list[Counters] | None] = []
        facts: list[dict[str, Any]] = []

        def gathered(point: str, values: list[Any]) -> None:
            if point == "built":
                facts.extend(values)
                self._take_facts(cell, values)
                link.begin()
            elif point == "counted":
                counted.append(link.counters() if self.hosts is None else self.hosts.counters(values))

        records = self.launcher.run(
            jobs_for(link, self.scenario, task, {}, method=method, repeat=number), gathered
        )
        note_replay(cell, [fact["replay"] for fact in facts])
        self.take_collective(cell, facts[0]["collective"])
        cell.citation = facts[0]["citation"] or None
        if len({record["sha256"] for record in records}) > 1:
            raise RankError(
                f"{cell.id}: the ranks do not hold the same bits after {self.scenario.steps} steps"
            )
        self.take_trace(cell, records, number)
        aggregate = link.shapes.gso if isinstance(link, TcLink) else None
        message_s: dict[str, float] = facts[0]["message_s"]
        # The ranks measure what a message costs only where there is a model of the link.
        model = LinkModel(link.spec, message_s, aggregate) if message_s else None
        record, drops, retransmits = repeat_record(
            records, counted, aggregate, model, message_s, self.scenario.warmup
        )
        cell.repeats.append(record)
        cell.link.drops += drops
        cell.link.retransmits += retransmits
        if drops:
            self.warn(f"{cell.id}: the link dropped {drops} packets")

    def _take_facts(self, cell: Cell, facts: Facts) -> None:
        """Keep what the ranks know; a bucket link is probed within their own group, before each repeat's first step."""
        if (probed := self.take_facts(cell, facts)) is not None:
            alone = probed if facts[0]["alone_bps"] is None else facts[0]["alone_bps"]
            cell.link.measured_bps, cell.link.together_bps = alone, probed
            if self.link.mechanism == "bucket":
                check(self.link, report := ProbeReport(alone, probed))
                warn_of_host(self.link, report, self.warn)

    def summarise(self, cells: Sequence[Cell]) -> list[Cell]:
        return summarise(cells)

    def notes(self) -> Sequence[str]:
        return notes(self.result.cells)


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
