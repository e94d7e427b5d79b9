"""One rank of one repeat: join the group, build, warm up, run the measured steps, report.

Runs in a process that :mod:`netsim_ddp.bench.forkserver` forked; torch is imported and nothing else has happened.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from netsim_ddp.bench import method_trials
from netsim_ddp.bench.channel import RankChannel
from netsim_ddp.bench.execution import Concurrent, Execution, Replayed
from netsim_ddp.bench.meeting import MeetingPoint
from netsim_ddp.bench.phases import CudaClock, HostClock, StepSample, StepTimer
from netsim_ddp.bench.programs import BucketedTraining, Emulated, OverlappedTraining, Program, Training
from netsim_ddp.bench.recordings import recorded
from netsim_ddp.communication import cost, shaped
from netsim_ddp.communication.backend import build_method
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Group, Method
from netsim_ddp.compression.kernels import NonFiniteGradient
from netsim_ddp.errors import EnvironmentFault, NetsimError, UsageError
from netsim_ddp.link.arrivals import ArrivalTable
from netsim_ddp.link.base import Endpoint, die_with_parent
from netsim_ddp.link.bucket import BucketSpec
from netsim_ddp.link.environment import bound_to
from netsim_ddp.link.helper import enter_namespace
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.workloads import Workload, build_workload
from netsim_ddp.workloads.emulated import EmulatedCompute, record_gradient_sets

GRADIENT_SETS = 3
RECORDED_BATCH = 4
UNSHAPED_BPS = 10e9  # about what a host's loopback carries
PROBE_S, PROBE_TRIES, PROBE_GOOD = 0.1, 8, 0.93
PROBE_BYTES = (64 * 1024, 64 * 1024**2)


@dataclasses.dataclass(frozen=True)
class Job:
    """What the command tells one rank; ``scenario`` is resolved, ``method`` one of its cells."""

    rank: int
    world_size: int
    scenario: dict[str, Any]
    method: str
    params: dict[str, Any]
    mechanism: str
    link: dict[str, Any]
    address: str
    interface: str
    namespace: int | None
    repeat: int
    trial: str | None = None
    """Of :mod:`netsim_ddp.bench.method_trials`, instead of measured steps."""

    @functools.cached_property
    def spec(self) -> LinkSpec:
        return LinkSpec.from_json(self.link)


@dataclasses.dataclass(frozen=True)
class Shared:
    """Memory that all ranks of a repeat share, made before they are forked."""

    meeting: MeetingPoint
    arrivals: ArrivalTable | None
    recordings: Sequence[int]
    """A file for each rank's recorded gradients; the repeats that follow find them there."""


def run(connection: socket.socket, job: Job, shared: Shared) -> None:
    """The whole life of a rank; returns when the command has its result, and reports every failure."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command decides what Ctrl-C means
    channel = RankChannel(connection)
    rank = _Rank(channel, job, shared)
    try:
        rank.run()
    except NetsimError as error:
        kind = {UsageError: "usage", EnvironmentFault: "environment"}.get(type(error), "rank")
        channel.fail(cause=kind, message=error.message, hint=error.hint, doing=rank.doing, details="")
    except BaseException as error:  # noqa: BLE001 - whatever ends a rank must reach the command
        text = str(error).strip()
        lost_peer = isinstance(error, dist.DistError) or "Connection closed" in text or "gloo" in text
        line = f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
        channel.fail(
            cause="peer" if lost_peer and not isinstance(error, NonFiniteGradient) else "rank",
            message=line,
            hint=None,
            doing=rank.doing,
            details=traceback.format_exc(),
        )


class _Rank:
    def __init__(self, channel: RankChannel, job: Job, shared: Shared) -> None:
        self.channel, self.job, self.shared = channel, job, shared
        self.scenario = job.scenario
        self.step = -1
        self.doing = "starting"
        self._measuring = self._counted = False
        self._charges = [0.0, 0.0, 0.0]
        self._predicted_bytes = self._payload_bytes = 0

    def run(self) -> None:
        if self.job.namespace is not None:
            enter_namespace(self.job.namespace)
        torch.set_num_threads(self.scenario["threads"])
        device = _choose_device(self.scenario["device"], self.job.rank)
        if self.job.trial is not None:
            self._try(self.job.trial, device)
            return
        self._say("building the model")
        workload = build_workload(
            model=self.scenario["model"],
            dataset=self.scenario["dataset"],
            batch_size=self._batch_size(),
            rank=self.job.rank,
            world_size=self.job.world_size,
            seed=self.scenario["seed"],
            device=device,
        )
        gradients = self._record(workload)
        self._say("joining the process group")
        group, backend = self._join(workload.parameters_count, device)
        program = self._program(workload, group, gradients)
        job = self.job
        ideal = cost.ideal_seconds(program.wires, self.job.spec.slowest_bps)
        facts = {
            "ideal_s": ideal,
            "parameters": workload.parameters_count,
            "backend": backend,
            "device": _device_name(device),
            "collective": program.collective,
            "probed_bps": self._probe(group) if job.mechanism == "bucket" and group.world_size > 1 else None,
        }
        self.channel.gather("built", facts)
        execution = self._execution(device)
        for _ in range(self.scenario["warmup"]):
            self._step(program, execution)
        self._measuring = True
        replayed = isinstance(execution, Replayed)
        if isinstance(execution, Replayed):
            execution.warming_up = False
        else:
            self._count()
        samples = [self._step(program, execution) for _ in range(self.scenario["steps"])]
        if not replayed:
            self._count()
        self.channel.result(self._report(program, samples))
        self._say("leaving")
        self.channel.gather("done")

    def _try(self, trial: str, device: torch.device) -> None:
        """What ``netsim check`` asks of a method."""
        self._say(f"trial {trial!r}")
        group, _ = self._join(0, device)
        bench = method_trials.Bench(
            group,
            lambda flat: build_method(self.job.method, flat, group, **self.job.params),
            self.shared.meeting,
            self._say,
            lambda: self._meet("counted"),
            lambda: self._charged()[0],
        )
        self.channel.result(method_trials.TRIALS[trial](bench))
        self.channel.gather("done")

    def _probe(self, group: Group) -> float:
        """Goodput in bit/s of this rank while each sends to its successor. A host that is busy for a moment is not
        the link, so ranks try again until all are on target, a few times."""
        rate = self.job.spec.slowest_bps
        size = min(max(int(rate / 8 * PROBE_S), PROBE_BYTES[0]), PROBE_BYTES[1])
        sent, received = torch.zeros(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
        after, before = (group.rank + 1) % group.world_size, (group.rank - 1) % group.world_size
        best = 0.0
        for _ in range(PROBE_TRIES):
            dist.barrier()
            start = time.monotonic()
            works = [dist.isend(sent, after), dist.irecv(received, before)]
            for work in works:
                assert work is not None
                work.wait()
            best = max(best, size * 8 / (time.monotonic() - start))
            if min(self.channel.gather("probed", best)) > PROBE_GOOD * rate:
                break
        return best

    def _execution(self, device: torch.device) -> Execution:
        meeting = self.shared.meeting
        if self.scenario["execution"] == "replayed":
            timer = StepTimer(HostClock())
            return Replayed(timer, meeting, self.job.rank, device, self._count)
        # Real training meets on the wire; only an emulated accelerator starts all ranks at once.
        emulated = self.scenario["compute_s"] is not None
        clock = CudaClock() if device.type == "cuda" else HostClock()
        return Concurrent(StepTimer(clock), meeting.meet if emulated else lambda: None)

    def _count(self) -> None:
        """Have the counters of the link read, while no rank sends; called before and after what is measured."""
        if not self._measuring:
            return
        self._counted = not self._counted
        sign = -1 if self._counted else 1
        if not self._counted:
            self.channel.gather("counted")
        for i, value in enumerate(self._charged()):
            self._charges[i] += sign * value
        if self._counted:
            self.channel.gather("counted")

    def _step(self, program: Program, execution: Execution) -> StepSample:
        self.step += 1
        sample = program.step(execution)
        if self._measuring:
            self._predicted_bytes += cost.wire_bytes(cost.messages(program.wires))
            self._payload_bytes += cost.payload_bytes(program.wires)
        if sample.loss is not None and sample.loss != sample.loss:  # NaN
            raise RuntimeError(f"the loss is not a number at step {self.step}")
        return sample

    def _meet(self, point: str) -> None:
        self.channel.gather(point)

    def _say(self, doing: str) -> None:
        self.doing = doing
        self.channel.progress(self.step, doing)

    def _batch_size(self) -> int:
        """An emulated accelerator's gradients come from a small batch: what matters is how they are distributed."""
        wanted: int = self.scenario["batch_size"]
        return wanted if self.scenario["compute_s"] is None else min(wanted, RECORDED_BATCH)

    def _record(self, workload: Workload) -> list[list[torch.Tensor]]:
        if self.scenario["compute_s"] is None:
            return []
        shapes = [parameter.shape for parameter in workload.model.parameters() if parameter.requires_grad]

        def record() -> list[list[torch.Tensor]]:
            # One rank after the other: a large model's activations would not fit the host once per rank.
            with self.shared.meeting.turn():
                self._say("recording gradients")
                return record_gradient_sets(workload, GRADIENT_SETS)

        return recorded(self.shared.recordings[self.job.rank], shapes, GRADIENT_SETS, record)

    def _join(self, parameters: int, device: torch.device) -> tuple[Group, str]:
        """Join the process group; rank 0's store listens on its own address and its port goes out of band."""
        job = self.job
        backend = _choose_backend(self.scenario["backend"], device, job)
        if job.world_size == 1:
            return Group(0, 1), "none"
        _set_interfaces(job)
        # The command's deadline acts long before this one, which only keeps a wait from being endless.
        seconds = 4 * self.scenario["timeout_s"] + 400 * parameters / job.spec.slowest_bps * 8
        timeout = timedelta(seconds=min(seconds, 1e6))
        store = None
        if job.rank == 0:
            store = TCPStore(job.address, 0, job.world_size, True, timeout, wait_for_workers=False)
        place = [job.address, store.port] if store else None
        host, port = self.channel.gather("store", place)[0]
        store = store or TCPStore(host, port, job.world_size, False, timeout)
        if job.mechanism == "bucket":
            assert self.shared.arrivals is not None
            shaped.register(BucketSpec.of(job.spec), self.shared.arrivals)
            backend = shaped.NAME
        dist.init_process_group(
            backend, store=store, rank=job.rank, world_size=job.world_size, timeout=timeout
        )
        rate = UNSHAPED_BPS if job.mechanism == "none" else float(job.spec.slowest_bps)
        return Group(job.rank, job.world_size, link_bps=rate), backend

    def _program(self, workload: Workload, group: Group, gradients: list[list[torch.Tensor]]) -> Program:
        scenario, params = self.scenario, dict(self.job.params)
        overlap = bool(params.pop("overlap", False))
        model = workload.model

        def build(flat: FlatGradients) -> Method:
            return build_method(self.job.method, flat, group, **params)

        if gradients:
            compute = EmulatedCompute(scenario["compute_s"])
            flat = FlatGradients(model.named_parameters())
            return Emulated(flat, group, build, gradients, compute, self._say, overlap=overlap)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=scenario["learning_rate"], momentum=scenario["momentum"]
        )
        if overlap and self.job.method == "dense" and scenario["execution"] == "concurrent":
            return OverlappedTraining(workload, group, optimizer, self._say)
        flat = FlatGradients(model.named_parameters())
        if overlap:
            return BucketedTraining(workload, flat, group, build, optimizer, self._say)
        return Training(workload, build(flat), group, optimizer, self._say)

    def _charged(self) -> tuple[int, int, float]:
        """What the token bucket was charged so far: bytes sent, bytes received, seconds the host was late."""
        if self.shared.arrivals is None or self.job.world_size == 1:
            return 0, 0, 0.0
        group = shaped.shaped_group()
        return (*group.charged(), group.host_late_s)

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
        }


def _choose_device(wanted: str, rank: int) -> torch.device:
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise EnvironmentFault("--device cuda: torch finds no GPU here", hint="use --device cpu")
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _choose_backend(wanted: str, device: torch.device, job: Job) -> str:
    """NCCL where every rank has a GPU of its own, else Gloo."""
    own_gpu = device.type == "cuda" and torch.cuda.device_count() >= job.world_size
    if wanted == "nccl":
        if not own_gpu:
            count = torch.cuda.device_count() if device.type == "cuda" else 0
            raise EnvironmentFault(
                f"--backend nccl needs a GPU per worker: {job.world_size} workers, {count} GPUs",
                hint="use --backend gloo",
            )
        if job.mechanism == "bucket":
            raise EnvironmentFault(
                "the bucket link shapes Gloo only", hint="use --link tc, or --backend gloo"
            )
    return "nccl" if own_gpu and wanted != "gloo" and job.mechanism != "bucket" else "gloo"


def _set_interfaces(job: Job) -> None:
    """Bind Gloo and NCCL to the link: unset, Gloo resolves the hostname and may end up on the loopback."""
    os.environ["GLOO_SOCKET_IFNAME"] = job.interface
    if job.mechanism == "tc":
        os.environ |= bound_to(Endpoint(job.rank, job.address, job.interface))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
