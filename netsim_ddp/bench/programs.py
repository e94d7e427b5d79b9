"""The programs that one rank can run: what a step does, in which order, timed lap by lap."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp.bench.phases import StepSample, StepTimer
from netsim_ddp.communication.dense import all_reduce
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.hooks import TransferLog, timed_all_reduce_hook
from netsim_ddp.communication.segments import Group, Method, Segment, Wire, ring_all_reduce_messages
from netsim_ddp.workloads import Workload
from netsim_ddp.workloads.emulated import EmulatedCompute, sleep_until

Meet = Callable[[], None]
"""Returns when every rank has called it; does not use the link."""

DDP_FIRST_BUCKET_BYTES = 1 << 20
DDP_BUCKET_BYTES = 25 << 20


class Program(ABC):
    """One rank's step, and what it must have sent."""

    flat: FlatGradients
    residual_bytes: int = 0
    wires: Sequence[Wire] = ()

    @abstractmethod
    def step(self, timer: StepTimer) -> StepSample:
        """Run one step."""

    @abstractmethod
    def reduced(self) -> Tensor:
        """What must be the same bits on every rank after a step."""


def run_segments(segments: Sequence[Segment], timer: StepTimer) -> None:
    """Run a method's step, each segment a lap."""
    for segment in segments:
        segment.run()
        timer.lap("wire" if isinstance(segment, Wire) else segment.phase)


class _Alone(Program):
    """Forward, backward, the method's segments, optimizer: nothing overlaps."""

    def __init__(self, flat: FlatGradients, method: Method, group: Group) -> None:
        self.flat = flat
        self.method = method
        # One rank has nobody to exchange with; what it would compress and put back is left as it is.
        self.segments = method.segments() if group.world_size > 1 else []
        self.wires = [segment for segment in self.segments if isinstance(segment, Wire)]
        self.residual_bytes = method.residual_bytes


class Training(_Alone):
    """Real training; gradients are views of the method's buffer."""

    def __init__(
        self,
        workload: Workload,
        method: Method,
        group: Group,
        optimizer: torch.optim.Optimizer,
        progress: Callable[[str], None],
    ) -> None:
        super().__init__(method.flat, method, group)
        self.workload, self.optimizer, self.progress = workload, optimizer, progress
        self.flat.attach()

    def step(self, timer: StepTimer) -> StepSample:
        self.progress("compute")
        images, targets = self.workload.next_batch()
        timer.begin()
        self.flat.data.zero_()
        timer.lap("other")
        loss = self.workload.loss(self.workload.model(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        timer.lap("compute")
        self.progress("communicate")
        timer.lap("other")
        run_segments(self.segments, timer)
        self.optimizer.step()
        timer.lap("optimizer")
        sample = timer.finish()
        sample.loss = loss.item()
        return sample

    def reduced(self) -> Tensor:
        return _parameters(self.workload.model)


class OverlappedTraining(Program):
    """Real training under torch's own DistributedDataParallel, which sends each bucket as soon as backward has
    filled it: the baseline that people run."""

    def __init__(
        self,
        workload: Workload,
        group: Group,
        optimizer: torch.optim.Optimizer,
        progress: Callable[[str], None],
    ) -> None:
        self.workload, self.optimizer, self.progress = workload, optimizer, progress
        self.flat = FlatGradients(workload.model.named_parameters())
        self._log = TransferLog(group)
        self._model: nn.Module = workload.model
        if group.world_size > 1:
            model = DistributedDataParallel(
                workload.model,
                device_ids=[workload.device] if workload.device.type == "cuda" else None,
                process_group=group.process_group,
            )
            model.require_forward_param_sync = (
                False  # as the other programs: BatchNorm's statistics stay local
            )
            model.register_comm_hook(self._log, timed_all_reduce_hook)
            self._model = model
            self.wires = [all_reduce(self.flat.data, group)]

    def step(self, timer: StepTimer) -> StepSample:
        self._log.transfers = []
        # The last gradient is there: from here on only the wire is waited for.
        self._log.last_bucket = lambda: timer.lap("compute")
        self.progress("compute")
        images, targets = self.workload.next_batch()
        timer.begin()
        self.optimizer.zero_grad()
        timer.lap("other")
        loss = self.workload.loss(self._model(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        timer.lap("wire" if self.wires else "compute")
        self.optimizer.step()
        timer.lap("optimizer")
        sample = timer.finish()
        sample.transfers = [(begin, end) for begin, end in self._log.transfers]
        sample.loss = loss.item()
        return sample

    def reduced(self) -> Tensor:
        return _parameters(self.workload.model)


class Emulated(_Alone):
    """A clock for forward, backward and optimizer; real gradients, compression and traffic."""

    def __init__(
        self,
        method: Method,
        group: Group,
        gradients: list[list[Tensor]],
        compute: EmulatedCompute,
        meet: Meet,
        progress: Callable[[str], None],
    ) -> None:
        super().__init__(method.flat, method, group)
        self.source = _Recorded(method.flat, gradients)
        self.compute, self.meet, self.progress = compute, meet, progress

    def step(self, timer: StepTimer) -> StepSample:
        self.source.load_next()
        self.progress("compute")
        self.meet()
        timer.begin()
        _sleep_until(time.monotonic() + self.compute.seconds)
        timer.lap("compute")
        self.progress("communicate")
        timer.lap("other")
        run_segments(self.segments, timer)
        return timer.finish()

    def reduced(self) -> Tensor:
        return self.flat.data


class OverlappedEmulated(Program):
    """Emulated compute with DDP's schedule: buckets of 25 MiB (the first 1 MiB), from the last parameter to the
    first, each all-reduced as soon as the emulated backward has filled it."""

    def __init__(
        self,
        flat: FlatGradients,
        group: Group,
        gradients: list[list[Tensor]],
        compute: EmulatedCompute,
        meet: Meet,
        progress: Callable[[str], None],
    ) -> None:
        self.flat, self.group = flat, group
        self.source = _Recorded(flat, gradients)
        self.compute, self.meet, self.progress = compute, meet, progress
        self.buckets = [flat.data[begin:end] for begin, end in ddp_buckets(flat)]
        self._ready = compute.ready_times([bucket.numel() * 4 for bucket in self.buckets])
        if group.world_size > 1:
            self.wires = [self._wire(bucket.numel() * 4) for bucket in self.buckets]

    def _wire(self, size: int) -> Wire:
        return Wire("all_reduce", lambda: None, size, ring_all_reduce_messages(size, self.group.world_size))

    def step(self, timer: StepTimer) -> StepSample:
        self.source.load_next()
        self.progress("compute")
        self.meet()
        timer.begin()
        start = time.monotonic()
        transfers: list[list[float]] = []
        works: list[dist.Work] = []
        for bucket, ready in zip(self.buckets, self._ready, strict=True):
            _sleep_until(start + ready)
            if self.wires:
                works.append(self._send(bucket, transfers))
        timer.lap("compute")
        for work in works:
            work.wait()
        if works:
            timer.lap("wire")
            self.flat.data.div_(self.group.world_size)
            timer.lap("decompress")
        sample = timer.finish()
        sample.transfers = [(begin, end) for begin, end in transfers]
        return sample

    def _send(self, bucket: Tensor, transfers: list[list[float]]) -> dist.Work:
        transfer = [time.monotonic(), float("inf")]
        transfers.append(transfer)
        work = dist.all_reduce(bucket, group=self.group.process_group, async_op=True)
        assert work is not None

        def done(_: torch.futures.Future[Any]) -> None:
            transfer[1] = time.monotonic()

        work.get_future().add_done_callback(done)
        return work

    def reduced(self) -> Tensor:
        return self.flat.data


def _sleep_until(moment: float) -> None:
    sleep_until(moment, clock=time.monotonic)


@dataclass
class _Recorded:
    """Recorded gradients in rotation; loading them is outside the clock."""

    flat: FlatGradients
    sets: list[list[Tensor]]
    next: int = 0

    def load_next(self) -> None:
        for view, gradient in zip(self.flat.views, self.sets[self.next], strict=True):
            view.copy_(gradient)
        self.next = (self.next + 1) % len(self.sets)


def ddp_buckets(flat: FlatGradients) -> list[tuple[int, int]]:
    """``(begin, end)`` of DDP's buckets in ready order: whole parameters, last to first."""
    buckets: list[tuple[int, int]] = []
    end = begin = flat.numel
    limit = DDP_FIRST_BUCKET_BYTES
    for offset in flat.offsets[-2::-1]:
        begin = int(offset)
        if (end - begin) * 4 >= limit:
            buckets.append((begin, end))
            end, limit = begin, DDP_BUCKET_BYTES
    if end > begin:
        buckets.append((begin, end))
    return buckets


def _parameters(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1).float() for parameter in model.parameters()])
