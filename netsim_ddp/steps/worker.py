"""One rank of one repeat: join the group, build, warm up, run the measured steps, report."""

from __future__ import annotations

import dataclasses
import hashlib
import resource
import sys
from typing import Any

import torch
import torch.distributed as dist

from netsim_ddp.communication import cost
from netsim_ddp.communication.backend import build_method
from netsim_ddp.communication.building import description
from netsim_ddp.communication.comparison import same_on_all_ranks
from netsim_ddp.communication.dense import baseline
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.framing import wire_bytes
from netsim_ddp.communication.parameters import check_types
from netsim_ddp.communication.segments import Group, Method
from netsim_ddp.communication.shaped import group as shaped
from netsim_ddp.compression.statistics import Statistics
from netsim_ddp.errors import NetsimError
from netsim_ddp.link.hosts import interface_counters
from netsim_ddp.ranks.channel import COMPUTING, RankChannel
from netsim_ddp.ranks.jobs import Job, Shared
from netsim_ddp.ranks.process_group import choose_device, device_name, join, lasting_bps, ring_goodput
from netsim_ddp.ranks.rank import Task
from netsim_ddp.ranks.recorded_gradients import recorded
from netsim_ddp.scenario import Scenario, ranks_at_once
from netsim_ddp.steps.compute_times import ComputeTimes, measure, once
from netsim_ddp.steps.cuda_clock import CudaClock
from netsim_ddp.steps.ddp_program import OverlappedTraining
from netsim_ddp.steps.execution import Concurrent, Execution, Replayed
from netsim_ddp.steps.first_model import share_first_model
from netsim_ddp.steps.link_model import LinkModel
from netsim_ddp.steps.message_cost import message_costs
from netsim_ddp.steps.phases import HostClock, StepSample, StepTimer
from netsim_ddp.steps.programs import BucketedTraining, Emulated, Program, Training
from netsim_ddp.steps.selection_record import selected
from netsim_ddp.steps.spending import Busy, asleep
from netsim_ddp.workloads.emulated import record_gradient_sets
from netsim_ddp.workloads.workload import Workload, build_workload

GRADIENT_SETS = 3
RECORDED_BATCH = 4
COMPUTES = {"model", "dataset", "data_dir", "text", "batch_size", "seed", "workers", "threads", "device"}
"""What decides how long forward and backward take."""


class StepsTask(Task):
    """Build what the job describes, warm up, run the measured steps, report."""

    def __init__(self, channel: RankChannel, job: Job, shared: Shared) -> None:
        super().__init__(channel, job, shared)
        self.scenario = job.settings_as(Scenario)
        self._measuring = self._counted = False
        self._charges = [0.0, 0.0, 0.0, 0.0]
        self._predicted_bytes = self._payload_bytes = 0
        self._statistics: list[Statistics | None] = []

    def run(self) -> None:
        device = choose_device(self.scenario.device, self.job.rank)
        times = self._compute_times(device)
        workload = self._workload(device)
        gradients = self._record(workload)
        self.say("joining the process group")
        # The command's deadline acts long before this one, which only keeps a wait from being endless.
        slow = 400 * workload.parameters_count / self.job.spec.lowest_bps * 8
        group, backend = join(self.channel, self.job, self.shared, device, spare_s=slow)
        name = self.scenario.model
        differed = share_first_model(self.channel, group, workload.model, name, self.say)
        program = self._program(workload, group, gradients)
        job, probed = self.job, None
        if job.mechanism in ("bucket", "host") and group.world_size > 1:
            probed = ring_goodput(self.channel, group, job, device)
        costs = {}
        if LinkModel.knows(job.spec, job.mechanism) and device.type == "cpu":
            costs = message_costs(self.channel, group, job.spec)
        messages = cost.messages(program.wires)
        ideal = cost.ideal_seconds(program.wires, lasting_bps(job)) + 2 * job.spec.delay_s * len(messages)
        facts = {
            "ideal_s": ideal,
            "parameters": workload.parameters_count,
            "backend": backend,
            "device": device_name(device),
            "collective": program.collective,
            "probed_bps": probed,
            "message_s": costs,
            "differed": differed,
            "unused": workload.unused,
            "replay": self._replay(device, times),
        }
        if job.rank == 0 and job.mechanism == "bucket" and group.world_size > 1:
            shaped.shaped_group().begin()
        self.channel.gather("built", facts)
        execution = self._execution(device, times)
        for _ in range(self.scenario.warmup):
            self._step(program, execution)
        self._measuring = True
        replayed = isinstance(execution, Replayed)
        if isinstance(execution, Replayed):
            execution.warming_up = False
        else:
            self._count()
        samples = [self._measured_step(program, execution) for _ in range(self.scenario.steps)]
        if not replayed:
            self._count()
        self.channel.result(self._report(program, samples))
        self.say("leaving")
        self.channel.gather("done")

    def _workload(self, device: torch.device) -> Workload:
        self.say("building the model")
        return build_workload(
            model=self.scenario.model,
            dataset=self.scenario.dataset,
            batch_size=self._batch_size(),
            rank=self.job.rank,
            world_size=self.job.world_size,
            seed=self.scenario.seed,
            device=device,
            data_dir=self.scenario.data_dir,
            text=self.scenario.text,
            try_training=self.job.rank == 0 and self.job.repeat == 0,
            refuse=check_types,
        )

    def _compute_times(self, device: torch.device) -> ComputeTimes | None:
        """Of this repeat, for all of its methods; None where nothing is replayed, or computed."""
        if self.scenario.execution != "replayed" or self.scenario.compute_s is not None:
            return None
        what = self.scenario.model_dump(mode="json", include=COMPUTES) | {"repeat": self.job.repeat}

        def find() -> ComputeTimes:
            # A model of its own, gone before the one is built that is trained: its peak of memory is not the method's.
            workload = self._workload(device)
            flat = FlatGradients(workload.model.named_parameters())
            alone = Group(0, 1)
            optimizer = self._optimizer(workload, self.scenario.momentum)
            program = BucketedTraining(
                workload, flat, alone, lambda part: baseline(part, alone), optimizer, self.say
            )
            barrier, rank = self.shared.barrier, self.job.rank
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                return measure(program, workload.parameters_count, barrier, rank, self._at_once)

        return once(
            self.shared.compute_times, what, lambda yes: all(self.channel.gather("compute times", yes)), find
        )

    @property
    def _at_once(self) -> int:
        return ranks_at_once(self.job.world_size, self.scenario.threads)

    def _busy(self, device: torch.device) -> bool:
        """Whether a replayed rank can keep the cores busy that its work took: all ranks do so at once."""
        return self._at_once == self.job.world_size and device.type == "cpu"

    def _replay(self, device: torch.device, times: ComputeTimes | None) -> dict[str, Any] | None:
        if self.scenario.execution != "replayed":
            return None
        slowdowns = None if times is None else times.slowdowns()
        return {"at_once": self._at_once, "busy": self._busy(device), "slowdowns": slowdowns}

    def _optimizer(self, workload: Workload, momentum: float) -> torch.optim.SGD:
        return torch.optim.SGD(workload.model.parameters(), lr=self.scenario.learning_rate, momentum=momentum)

    def _execution(self, device: torch.device, times: ComputeTimes | None) -> Execution:
        barrier = self.shared.barrier
        if self.scenario.execution == "replayed":
            return Replayed(
                StepTimer(HostClock()),
                barrier,
                self.job.rank,
                device,
                self._count,
                computed=[] if times is None else times.of_steps(self.scenario.steps),
                at_once=self._at_once,
                spend=Busy(self.scenario.threads) if self._busy(device) else asleep,
                substitute=self.scenario.codec_from,
            )
        clock = CudaClock() if device.type == "cuda" else HostClock()
        return Concurrent(StepTimer(clock), self._meet)

    def _meet(self) -> None:
        """Start the step with all ranks, so that the slowest one's time is the step's. Otherwise a rank's delay at the
        end of a step would count twice: in its own time, and in the next step as what the others wait for it."""
        if self.job.mechanism != "host":
            self.shared.barrier.meet()
        elif self.scenario.compute_s is not None:
            self.channel.gather(
                "meet"
            )  # the other ranks share no memory with this one; real training meets on the wire

    def _count(self) -> None:
        """Have the counters of the link read, while no rank sends; called before and after what is measured."""
        if not self._measuring:
            return
        self._counted = not self._counted
        sign = -1 if self._counted else 1
        if not self._counted:
            self._gather_counters()
        for i, value in enumerate(self._charged()):
            self._charges[i] += sign * value
        if self._counted:
            self._gather_counters()

    def _gather_counters(self) -> None:
        """Meet where the counters are read: by the command on a link of its own, by each rank on a real network."""
        job = self.job
        own = (
            dataclasses.asdict(interface_counters(job.endpoint.interface))
            if job.mechanism == "host"
            else None
        )
        self.channel.gather("counted", own)

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
            and self.job.method.name != "dense"
        ):
            self._measuring, execution.warming_up = False, True
            self._step(program, execution)
            self._measuring, execution.warming_up = True, False
        return self._step(program, execution)

    def _batch_size(self) -> int:
        """An emulated accelerator's gradients come from a small batch: what matters is how they are distributed."""
        wanted = self.scenario.batch_size
        return wanted if self.scenario.compute_s is None else min(wanted, RECORDED_BATCH)

    def _record(self, workload: Workload) -> list[list[torch.Tensor]]:
        if self.scenario.compute_s is None:
            return []
        shapes = [parameter.shape for parameter in workload.model.parameters() if parameter.requires_grad]

        def record() -> list[list[torch.Tensor]]:
            # One rank after the other: a large model's activations would not fit the host once per rank.
            with self.shared.barrier.turn():
                self.say("recording gradients")
                return record_gradient_sets(workload, GRADIENT_SETS)

        return recorded(self.shared.recording, shapes, GRADIENT_SETS, record)

    def _program(self, workload: Workload, group: Group, gradients: list[list[torch.Tensor]]) -> Program:
        scenario, name, params = self.scenario, self.job.method.name, dict(self.job.method.params)
        overlap = bool(params.pop("overlap", False))
        model = workload.model
        with same_on_all_ranks(group) as facts:
            facts.update(description(name, params, model.named_parameters()))

        def build(flat: FlatGradients) -> Method:
            if name == "dense":
                return baseline(flat, group)
            return build_method(name, flat, group, **params)

        if gradients:
            flat = FlatGradients(model.named_parameters())
            assert scenario.compute_s is not None
            ready = scenario.ready_from
            if ready is not None:
                ready.check(flat.names, scenario.model)
            return Emulated(
                flat, group, build, gradients, scenario.compute_s, ready if overlap else None, self.say
            )
        # A method that corrects momentum applies it before the exchange: twice would be wrong.
        momentum = 0.0 if params.get("momentum") else scenario.momentum
        optimizer = self._optimizer(workload, momentum)
        flat = FlatGradients(model.named_parameters())
        by_ddp: dict[str, torch.dtype | None] = {"dense": None, "fp16": torch.float16}
        if group.world_size > 1 and dist.get_backend(group.process_group) == "nccl":
            by_ddp["bf16"] = torch.bfloat16  # Gloo has no sum of them: there netsim's own exchange does it
        if overlap and name in by_ddp and scenario.execution == "concurrent":
            return OverlappedTraining(workload, flat, group, optimizer, self.say, by_ddp[name])
        if overlap:
            return BucketedTraining(workload, flat, group, build, optimizer, self.say)
        return Training(workload, build(flat), group, optimizer, self.say)

    def _charged(self) -> tuple[int, int, float, int]:
        """The token bucket so far: bytes sent, bytes received, seconds that the host was late, and how often."""
        if self.shared.operations is None or self.job.world_size == 1:
            return 0, 0, 0.0, 0
        group = shaped.shaped_group()
        return (*group.charged(), group.host_late_s, group.host_late_count)

    def _report(self, program: Program, samples: list[StepSample]) -> dict[str, Any]:
        digest = hashlib.sha256(program.reduced().cpu().numpy().tobytes()).hexdigest()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "rank": self.job.rank,
            "samples": [dataclasses.asdict(sample) for sample in samples],
            "payload_bytes": self._payload_bytes,
            "predicted_bytes": self._predicted_bytes,
            "charged": self._charges,
            "residual_bytes": program.residual_bytes,
            "peak_memory_bytes": peak if sys.platform == "darwin" else peak * 1024,
            "sha256": digest,
            "statistics": selected(each for each in self._statistics if each is not None),
        }
