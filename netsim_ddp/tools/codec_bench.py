"""``netsim bench compress``: what selection, coding and copies cost, beside the memory floor and the usual ways.

Everything that is compared runs in the same rounds, in turn and every other round backwards, so that a drift of the
machine falls on all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from netsim_ddp.compression import kernels
from netsim_ddp.compression.codec import Codec
from netsim_ddp.compression.shards import add_at
from netsim_ddp.compression.topk import segment_table
from netsim_ddp.errors import EnvironmentFault
from netsim_ddp.ranks.memory import available_bytes
from netsim_ddp.results.codec import CodecRow
from netsim_ddp.tools.memory import release_freed, resident_bytes
from netsim_ddp.units import counted
from netsim_ddp.workloads.emulated import record_gradient_sets
from netsim_ddp.workloads.workload import build_workload

SLOW_ROUNDS = 3  # of what takes 15 times longer
BYTES_PER_FLOAT = 40  # three float32 vectors, and what torch.topk makes of one
HEAVY_SPREAD = 2.0
FEW = 1e-3  # entries that are not zero, where most are


@dataclass(frozen=True)
class Plan:
    """What to measure; every combination."""

    devices: tuple[str, ...]
    threads: tuple[int, ...]
    sizes: tuple[int, ...]
    ratios: tuple[float, ...]
    inputs: tuple[str, ...]
    rounds: int
    codec: Codec


def measure(plan: Plan, say: Callable[[str], None]) -> Iterator[CodecRow]:
    """The rows, one by one; ``say`` gets what is being measured.

    Raises:
        EnvironmentFault: no such device, or too little memory.
    """
    kernels.warm()
    if "cuda" in plan.devices and not torch.cuda.is_available():
        raise EnvironmentFault("--device cuda: torch finds no GPU here", hint="use --device cpu")
    needed, free = max(plan.sizes) * BYTES_PER_FLOAT, available_bytes()
    if free is not None and needed > free:  # fail before the machine swaps
        raise EnvironmentFault(
            f"{max(plan.sizes)} floats take about {needed / 1e9:.0f} GB here, {free / 1e9:.0f} GB are free",
            hint="give smaller --sizes",
        )
    recording = torch.empty(0)
    if "recorded" in plan.inputs:
        workload = build_workload(model="resnet50", batch_size=2)
        recording = torch.cat([each.reshape(-1) for each in record_gradient_sets(workload, 1)[0]])
    before = torch.get_num_threads()
    try:
        for name in plan.inputs:
            for numel in plan.sizes:
                gradient = make_input(name, numel, recording)
                for device in plan.devices:
                    for threads in plan.threads if device == "cpu" else plan.threads[:1]:
                        torch.set_num_threads(threads)
                        here = gradient.to(device)
                        for ratio in plan.ratios:
                            say(f"{device}, {counted(threads, 'thread')}, {name}, {numel} x {ratio:g}")
                            yield _Bench(here, ratio, replace(plan, inputs=(name,), threads=(threads,))).row()
    finally:
        torch.set_num_threads(before)


INPUTS = ("normal", "heavy", "equal", "zeros", "sorted", "recorded")
"""Gradients: normal; heavy-tailed (log-normal magnitudes); one value; nearly all zero; ascending; of a real backward
pass of ResNet-50, repeated or cut to size."""


def make_input(name: str, numel: int, recording: Tensor) -> Tensor:
    """float32 [numel], the same for the same name and size."""
    generator = torch.Generator().manual_seed(numel)
    if name == "normal":
        return torch.randn(numel, generator=generator)
    if name == "heavy":
        return torch.randn(numel, generator=generator).mul_(
            torch.randn(numel, generator=generator).mul_(HEAVY_SPREAD).exp_()
        )
    if name == "equal":
        return torch.full((numel,), 0.5)
    if name == "zeros":
        where = torch.randint(numel, (max(1, int(numel * FEW)),), generator=generator)
        return torch.zeros(numel).index_fill_(0, where, 1.0).mul_(torch.randn(numel, generator=generator))
    if name == "sorted":
        return torch.linspace(-0.999999, 0.999999, numel).erfinv_()
    return recording.repeat(-(-numel // recording.numel()))[:numel].clone()


class _Bench:
    """One row: the same gradient and residual for everything."""

    def __init__(self, gradient: Tensor, ratio: float, plan: Plan) -> None:
        self.gradient, self.ratio, self.plan = gradient, ratio, plan
        self.device, numel = gradient.device, gradient.numel()
        self.offsets, self.ks = segment_table([numel], ratio)
        self.k = int(self.ks.sum())
        # Half the gradient: the sums are distributed as the gradient is, ties and order included.
        self.start = gradient * 0.5
        self.work = self.start.clone()
        self.values = torch.zeros(self.k, device=self.device)
        self.indices = torch.zeros(self.k, dtype=torch.int32, device=self.device)
        self.out = torch.zeros(plan.codec.capacity(self.k, numel), dtype=torch.uint8, device=self.device)
        self.message = self.out[:0]

    def row(self) -> CodecRow:
        peak = self._peak()
        jobs: dict[str, Callable[[], object]] = {
            "floor_s": lambda: self.work.add_(self.gradient),
            "select_s": self._select,
            "topk_s": self._topk,
        }
        if self.device.type == "cpu":
            jobs["argpartition_s"] = self._argpartition
        samples = self._rounds(jobs, slow=("topk_s", "argpartition_s"))
        self._reset()
        self._select()
        samples |= self._code()
        return CodecRow(
            device=self.device.type,
            threads=self.plan.threads[0],
            input=self.plan.inputs[0],
            numel=self.gradient.numel(),
            ratio=self.ratio,
            entries=self.k,
            message_bytes=self.message.numel(),
            peak_bytes=peak,
            **samples,
        )

    def _code(self) -> dict[str, list[float]]:
        """Time coding the entries that were selected last."""
        numel, codec = self.gradient.numel(), self.plan.codec

        def encode() -> None:
            self.message = codec.encode(self.values, self.indices, out=self.out)

        encode()
        values, indices = codec.decode(self.message, self.k, numel)
        narrow = indices.to(torch.int32)
        jobs: dict[str, Callable[[], object]] = {
            "encode_s": encode,
            "decode_s": lambda: codec.decode(self.message, self.k, numel),
            "add_s": lambda: add_at(self.work, narrow, values),
        }
        if self.device.type != "cpu":
            jobs["copy_s"] = lambda: self.message.cpu().to(self.device)
        return self._rounds(jobs)

    def _rounds(
        self, jobs: dict[str, Callable[[], object]], slow: Sequence[str] = ()
    ) -> dict[str, list[float]]:
        samples: dict[str, list[float]] = {name: [] for name in jobs}
        for round_ in range(-1, self.plan.rounds):  # one to warm up
            for name in list(jobs) if round_ % 2 else reversed(jobs):
                if name in slow and not 0 <= round_ < SLOW_ROUNDS:
                    continue
                if name.endswith(("floor_s", "select_s", "topk_s", "argpartition_s")):
                    self._reset()
                seconds = self._time(jobs[name])
                if round_ >= 0:
                    samples[name].append(seconds)
        return samples

    def _time(self, job: Callable[[], object]) -> float:
        self._synchronize()
        begin = time.perf_counter()
        job()
        self._synchronize()
        return time.perf_counter() - begin

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _reset(self) -> None:
        self.work.copy_(self.start)

    def _select(self) -> None:
        """As a step does it: what remains is written beside the residual."""
        table = self.offsets, self.ks, self.values, self.indices
        kernels.accumulate_select(self.gradient, self.start, *table, total=self.work)

    def _topk(self) -> None:
        """Feedback and selection as most do it; the entries come in no order."""
        self.work.add_(self.gradient)
        chosen = torch.topk(self.work.abs(), self.k, sorted=False).indices
        self.values.copy_(self.work[chosen])
        self.work[chosen] = 0

    def _argpartition(self) -> None:
        import numpy as np

        work, gradient = self.work.numpy(), self.gradient.numpy()
        np.add(work, gradient, out=work)
        rest = work.size - self.k
        chosen = np.argpartition(np.abs(work), min(rest, work.size - 1))[rest:]
        self.values.numpy()[:] = work[chosen]
        work[chosen] = 0

    def _peak(self) -> int | None:
        """The most bytes that a selection takes for itself, nothing kept from earlier ones; None where this system
        does not say."""
        if self.device.type == "cuda":
            self._synchronize()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self._select()
            return torch.cuda.max_memory_allocated(self.device) - before
        kernels.release()
        release_freed()
        try:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")  # sets the high-water mark to what is resident now
            resident = resident_bytes("VmRSS")
            self._select()
            peak = resident_bytes("VmHWM") - resident
        except OSError:
            return None
        return max(0, peak)
