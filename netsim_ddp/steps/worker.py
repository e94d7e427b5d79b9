"""One rank of one repeat: join the group, build, warm up, run the measured steps, report."""

from __future__ import annotations

import dataclasses
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from netsim_ddp.communication import cost
from netsim_ddp.communication.building import build_method, description
from netsim_ddp.communication.comparison import same_on_all_ranks
from netsim_ddp.communication.executor import ddp_buckets
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.framing import wire_bytes
from netsim_ddp.communication.segments import Group
from netsim_ddp.compression.statistics import Statistics
from netsim_ddp.errors import NetsimError
from netsim_ddp.link.hosts import interface_counters
from netsim_ddp.methods import BASELINE, entry_of
from netsim_ddp.ranks.channel import COMPUTING, RankChannel
from netsim_ddp.ranks.jobs import Job, Shared
from netsim_ddp.ranks.process_group import choose_device, lasting_bps
from netsim_ddp.scenario import Scenario, ranks_at_once
from netsim_ddp.steps.compute_times import ComputeTimes, measure, once
from netsim_ddp.steps.ddp_program import OverlappedTraining
from netsim_ddp.steps.execution import Busy, Concurrent, Execution, Replayed, Spend, asleep, step_timer
from netsim_ddp.steps.host_memory import GRADIENT_SETS
from netsim_ddp.steps.link_model import LinkModel
from netsim_ddp.steps.message_cost import message_costs
from netsim_ddp.steps.model_task import BuiltModel, ModelTask
from netsim_ddp.steps.optimizers import build_optimizer
from netsim_ddp.steps.phases import HostClock, StepSample, StepTimer
from netsim_ddp.steps.programs import BucketedTraining, Emulated, Program, Training
from netsim_ddp.workloads.emulated import record_gradient_sets
from netsim_ddp.workloads.workload import Workload

_MARK = b"recorded"
"""Stands behind the recorded gradients in their file when all of them are there."""
RECORDED_BATCH = 4
COMPUTES = {
    "model",
    "dataset",
    "data_dir",
    "text",
    "loss_function",
    "batch_size",
    "seed",
    "workers",
    "threads",
    "device",
}
"""What decides how long forward and backward take."""


class StepsTask(ModelTask):
    """Build what the job describes, warm up, run the measured steps, report."""

    def __init__(self, channel: RankChannel, job: Job, shared: Shared) -> None:
        super().__init__(channel, job, shared)
        self.scenario = job.settings_as(Scenario)
        self._measuring = self._counted = False
        self._charges = [0.0, 0.0, 0.0, 0.0]
        self._predicted_bytes = self._payload_bytes = 0
        self._statistics: list[Statistics | None] = []
        self.measured = 0
        """How many steps have counted so far."""

    def run(self) -> None:
        device = choose_device(self.scenario.device, self.job.rank)
        times = self.compute_times(device)
        model = self.prepare(device)
        group, facts = self.join(model, device)
        program = self.program(group)
        spec, probed, costs = self.job.spec, self.probe(group, device), {}
        if LinkModel.knows(spec, self.job.mechanism) and device.type == "cpu":
            spend = self.spend(device) if self.scenario.execution == "replayed" else None
            costs = message_costs(self.channel, group, spec, spend)
        rounds_s = 2 * spec.delay_s * len(cost.messages(program.wires))
        facts |= {
            "ideal_s": cost.ideal_seconds(program.wires, lasting_bps(self.job)) + rounds_s,
            "collective": program.collective,
            "citation": next((method.citation for method in program.methods), ""),
            "probed_bps": probed,
            "alone_bps": self.probe_alone(group, device, probed),
            "message_s": costs,
            "replay": self._replay(device, times),
        }
        self.begin(group)
        self.channel.gather("built", facts)
        execution = self.execution(device, times)
        for _ in range(self.scenario.warmup):
            self._step(program, execution)
        self._measuring = True
        if isinstance(execution, Replayed):
            execution.warming_up = False
        else:
            self._count()
        samples = [self._measured_step(program, execution) for _ in range(self.scenario.steps)]
        if not isinstance(execution, Replayed):
            self._count()
        self.finish(
            program.reduced(),
            samples,
            payload_bytes=self._payload_bytes,
            predicted_bytes=self._predicted_bytes,
            charged=self._charges,
            residual_bytes=program.residual_bytes,
            statistics=selected(each for each in self._statistics if each is not None),
        )

    def prepare(self, device: torch.device) -> BuiltModel:
        """Build what is trained, with its recorded gradients under an emulated accelerator."""
        self._trained = self._workload(device)
        self._gradients = self._record(self._trained)
        return self._trained

    def _workload(self, device: torch.device) -> Workload:
        return self.build(
            device, batch_size=self.batch_size, try_training=self.job.rank == 0 and self.job.repeat == 0
        )

    @property
    def batch_size(self) -> int:
        """An emulated accelerator's gradients come from a small batch: what matters is how they are distributed."""
        batch = self.scenario.batch_size
        return batch if self.scenario.compute_s is None else min(batch, RECORDED_BATCH)

    def compute_times(self, device: torch.device) -> ComputeTimes | None:
        """Returns the times of forward and backward, measured once for all methods of this repeat; None where nothing
        is replayed, or computed."""
        if self.scenario.execution != "replayed" or self.scenario.compute_s is not None:
            return None
        what = self.scenario.model_dump(mode="json", include=COMPUTES) | {"repeat": self.job.repeat}

        def find() -> ComputeTimes:
            # A model of its own, gone before the one is built that is trained: its peak of memory is not the method's.
            workload = self._workload(device)
            flat = FlatGradients(workload.model.named_parameters())
            alone = Group(0, 1)
            dense = partial(build_method, BASELINE.name, group=alone, as_ddp=True)
            methods = [dense(flat.part(*bucket)) for bucket in ddp_buckets(flat)]
            optimizer = build_optimizer(self.scenario, workload.model.parameters(), {}, alone=True)
            program = BucketedTraining(workload, flat, alone, methods, optimizer, self.say)
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                return measure(
                    program, workload.parameters_count, self.shared.barrier, self.job.rank, self._at_once
                )

        return once(
            self.shared.compute_times, what, lambda yes: all(self.channel.gather("compute times", yes)), find
        )

    @property
    def _at_once(self) -> int:
        return ranks_at_once(self.job.world_size, self.scenario.threads)

    def busy(self, device: torch.device) -> bool:
        """Whether a replayed rank can keep the cores busy that its work took: all ranks do so at once."""
        return self._at_once == self.job.world_size and device.type == "cpu"

    def spend(self, device: torch.device) -> Spend:
        """How a replayed rank spends the time of its work."""
        return Busy(self.scenario.threads) if self.busy(device) else asleep

    def _replay(self, device: torch.device, times: ComputeTimes | None) -> dict[str, Any] | None:
        if self.scenario.execution != "replayed":
            return None
        return {
            "at_once": self._at_once,
            "busy": self.busy(device),
            "slowdowns": None if times is None else times.slowdowns(),
        }

    def execution(self, device: torch.device, times: ComputeTimes | None) -> Execution:
        if self.scenario.execution == "replayed":
            return Replayed(
                StepTimer(HostClock()),
                self.shared.barrier,
                self.job.rank,
                device,
                self._count,
                computed=[] if times is None else times.of_steps(self.scenario.steps),
                at_once=self._at_once,
                threads=self.scenario.threads,
                spend=self.spend(device),
                substitute=self.scenario.codec_from,
            )
        return Concurrent(step_timer(device), self._synchronize)

    def _synchronize(self) -> None:
        """Start the step with all ranks, so that the slowest one's time is the step's. Otherwise a rank's delay at the
        end of a step would count twice: in its own time, and in the next step as what the others wait for it."""
        if self.job.mechanism != "host":
            self.shared.barrier.wait()
        elif self.scenario.compute_s is not None:
            # The other ranks share no memory with this one; real training waits for them on the wire.
            self.channel.gather("start")

    def _count(self) -> None:
        """Have the counters of the link read, while no rank sends; called before and after what is measured."""
        if not self._measuring:
            return
        self._counted = not self._counted
        sign = -1 if self._counted else 1
        if not self._counted:
            self._gather_counters()
        for i, value in enumerate(self.charged()):
            self._charges[i] += sign * value
        if self._counted:
            self._gather_counters()

    def _gather_counters(self) -> None:
        """Wait while the counters are read: by the command on a link of its own, by each rank on a real network."""
        self.channel.gather(
            "counted",
            dataclasses.asdict(interface_counters(self.job.endpoint.interface))
            if self.job.mechanism == "host"
            else None,
        )

    def _step(self, program: Program, execution: Execution) -> StepSample:
        self.step += 1
        sample = program.step(execution)
        if self._measuring:
            self._predicted_bytes += wire_bytes(cost.messages(program.wires))
            self._payload_bytes += cost.payload_bytes(program.wires)
            if (wanted := self.scenario.statistics) != "none":
                self._statistics.append(program.statistics(layers=wanted == "layers"))
        if sample.loss is not None and sample.loss != sample.loss:  # NaN
            self.say(COMPUTING)
            raise NetsimError(
                f"the loss is not a number at step {self.step} of {self.job.method.id}",
                hint="write a lower --lr; at step 0 it is the model's own: look at what it starts with",
            )
        return sample

    def _measured_step(self, program: Program, execution: Execution) -> StepSample:
        """One step that counts. A replayed one comes after the step before has been played, and what was in the caches
        then is gone: codec and optimizer would take up to an eighth longer than in steps that follow each other. So one
        more step is taken first, where all ranks measure at once; where they take turns, the others' turns lie between
        anyhow."""
        if (
            isinstance(execution, Replayed)
            and self._at_once == self.job.world_size
            and not entry_of(self.job.method.name).is_baseline
        ):
            self._measuring, execution.warming_up = False, True
            self._step(program, execution)
            self._measuring, execution.warming_up = True, False
        sample = self._step(program, execution)
        self.measured += 1
        return sample

    def _record(self, workload: Workload) -> list[list[torch.Tensor]]:
        if self.scenario.compute_s is None:
            return []
        shapes = [parameter.shape for parameter in workload.model.parameters() if parameter.requires_grad]

        def record(views: list[list[Tensor]]) -> None:
            # One rank after the other: a large model's activations would not fit the host once per rank.
            with self.shared.barrier.turn():
                self.say("recording gradients")
                sets = record_gradient_sets(workload, GRADIENT_SETS)
            for into, gradients in zip(views, sets, strict=True):
                for view, gradient in zip(into, gradients, strict=True):
                    view.copy_(gradient)

        return recorded(self.shared.recording, shapes, GRADIENT_SETS, record)

    def program(self, group: Group) -> Program:
        """Returns what a step of this rank does."""
        scenario, workload, gradients = self.scenario, self._trained, self._gradients
        name, params, overlap = self.agreed(group, workload.model)
        flat = FlatGradients(workload.model.named_parameters())
        ready = scenario.ready_from if gradients else None
        if ready is not None:
            ready.check(flat.names, scenario.model)
        optimizer = build_optimizer(
            scenario, workload.model.parameters(), params, alone=group.world_size == 1
        )
        if overlap and self.by_ddp(group) and scenario.execution == "concurrent" and not gradients:
            kind = entry_of(name).ddp_type
            rounded = getattr(torch, kind) if kind else None
            return OverlappedTraining(workload, flat, group, optimizer, self.say, rounded)
        in_buckets = overlap and (ready is not None or not gradients)
        parts = [flat.part(*bucket) for bucket in ddp_buckets(flat)] if in_buckets else [flat]
        methods = [build_method(name, part, group, as_ddp=True, **params) for part in parts]
        if not gradients:
            trains = BucketedTraining if overlap else Training
            return trains(workload, flat, group, methods, optimizer, self.say)
        assert scenario.compute_s is not None
        full = (
            ready.bucket_times(scenario.compute_s, [part.names for part in parts])
            if in_buckets and ready is not None
            else [scenario.compute_s]
        )
        return Emulated(flat, group, methods, gradients, full, self.say)

    def agreed(self, group: Group, model: nn.Module) -> tuple[str, dict[str, Any], bool]:
        """Returns the method's name and options without overlap, which all ranks were asked for, and overlap."""
        name, params = self.job.method.name, dict(self.job.method.params)
        overlap = bool(params.pop("overlap", False))
        with same_on_all_ranks(group) as facts:
            facts.update(description(name, params, model.named_parameters()))
        return name, params, overlap

    def by_ddp(self, group: Group) -> bool:
        """Whether DDP itself exchanges as this method does."""
        return ("nccl" if group.backend == "nccl" else "gloo") in entry_of(self.job.method.name).ddp_backends


class CountTask(StepsTask):
    """Count the parameters of the model, on one rank alone, before any other starts."""

    def run(self) -> None:
        device = choose_device(self.scenario.device, self.job.rank)
        model = self.build(device, batch_size=self.batch_size, try_training=False)
        self.channel.result({"parameters": model.parameters_count, "device": device.type})
        self.channel.gather("done")


def selected(steps: Iterable[Statistics]) -> dict[str, Any] | None:
    """The fields of :class:`netsim_ddp.results.record.SelectionRecord`: every step's totals, and of each layer the mean
    over steps; None where nothing was measured."""
    rows = list(steps)
    if not rows:
        return None
    layers = {name: _mean([row.layers[name] for row in rows]) for name in rows[0].layers}
    return {"steps": [_plain(row) | {"payload_bytes": row.payload_bytes} for row in rows], "layers": layers}


def _plain(row: Statistics) -> dict[str, Any]:
    return {
        "entries": row.entries,
        "ratio": row.ratio,
        "energy_kept": row.energy_kept,
        "residual_norm": row.residual_norm,
    }


def _mean(rows: list[Statistics]) -> dict[str, Any]:
    plain = [_plain(row) for row in rows]
    return {key: None if plain[0][key] is None else fmean(each[key] for each in plain) for key in plain[0]}


def recorded(
    fd: int, shapes: Sequence[torch.Size], sets: int, record: Callable[[list[list[Tensor]]], None]
) -> list[list[Tensor]]:
    """Returns what ``record`` has filled in, from the file ``fd`` if an earlier rank has left it there.

    Args:
        shapes: of the tensors of one set, float32.

    Returns:
        ``sets`` lists of tensors that live in the file's memory.
    """
    numel = sum(shape.numel() for shape in shapes)
    size = sets * numel * 4
    if os.fstat(fd).st_size != size + len(_MARK):
        os.ftruncate(fd, size + len(_MARK))
    memory = mmap.mmap(fd, size + len(_MARK))
    rows = torch.frombuffer(memory, dtype=torch.float32, count=sets * numel).view(sets, numel)
    found = [
        [part.view(shape) for part, shape in zip(row.split([s.numel() for s in shapes]), shapes, strict=True)]
        for row in rows
    ]
    if memory[size:] != _MARK:
        record(found)
        memory[size:] = _MARK
    return found
