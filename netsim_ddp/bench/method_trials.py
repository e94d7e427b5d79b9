"""What each rank does for ``netsim check``: run a method on known gradients and tell what came of it.

The judging is the command's, :mod:`netsim_ddp.bench.method_check`, which sees all ranks.
"""

from __future__ import annotations

import hashlib
import io
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from netsim_ddp.bench.joining import choose_device, join
from netsim_ddp.bench.meeting import MeetingPoint
from netsim_ddp.bench.task import Task
from netsim_ddp.communication import cost, shaped
from netsim_ddp.communication.backend import build_method
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.framing import wire_bytes
from netsim_ddp.communication.pipeline import InOrder, pipeline, stages
from netsim_ddp.communication.segments import Group, Local, Method, Segment, Wire
from netsim_ddp.references import one_line

SMALL = {"conv": (8, 3, 3, 3), "bias": (8,), "wide": (16, 130), "one": (1,), "scalar": (), "odd": (17, 29)}
MIDDLE = {"matrix": (400, 400), "vector": (40_001,)}
LARGE = {"matrix": (1000, 970), "vector": (30_001,)}
STEPS = 4
FLUSH_STEPS, FLUSH_CHUNK = 1500, 25
ENOUGH = 0.01
"""Of the gradient may be missing: bfloat16's rounding loses 0.3%."""


@dataclass(frozen=True)
class Bench:
    """What a trial works with.

    Attributes:
        build: the method under test, over any gradient.
        count: have the link's counters read while no rank sends.
        charged: bytes that the bucket link has charged this rank so far.
    """

    group: Group
    build: Callable[[FlatGradients], Method]
    meeting: MeetingPoint
    progress: Callable[[int, str], None]
    count: Callable[[], None]
    charged: Callable[[], float]

    def flat(self, shapes: dict[str, tuple[int, ...]]) -> FlatGradients:
        return FlatGradients((name, nn.Parameter(torch.zeros(shape))) for name, shape in shapes.items())

    def gradient(self, numel: int, step: int, rank: int | None = None) -> Tensor:
        """[N], of this rank or another; every rank can make everybody's."""
        rank = self.group.rank if rank is None else rank
        generator = torch.Generator().manual_seed(1_000_003 * step + rank)
        return torch.randn(numel, generator=generator) * torch.linspace(0.2, 2.0, numel)


class Run:
    """One instance of the method and its steps."""

    def __init__(self, bench: Bench, shapes: dict[str, tuple[int, ...]]) -> None:
        self.bench, self.flat = bench, bench.flat(shapes)
        self.method = bench.build(self.flat)
        self.segments: Sequence[Segment] = self.method.segments()
        self.steps = 0

    def step(self, number: int) -> Tensor:
        """The average of the ranks' gradients of step ``number``."""
        return self.average(self.bench.gradient(self.flat.numel, number))

    def average(self, gradient: Tensor) -> Tensor:
        self.flat.data.copy_(gradient)
        self.steps += 1
        for segment in self.segments:
            # Whoever hangs is then behind those that wait for it.
            self.bench.progress(self.steps, "compute" if isinstance(segment, Local) else "communicate")
            segment.run()
        return self.method.average.clone()


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def builds(bench: Bench) -> dict[str, Any]:
    run = Run(bench, SMALL)
    strange = [type(each).__name__ for each in run.segments if not isinstance(each, Local | Wire)]
    phases = [
        s.phase for s in run.segments if isinstance(s, Local) and s.phase not in ("compress", "decompress")
    ]
    run.method.state_dict()
    wires = sum(isinstance(each, Wire) for each in run.segments)
    return {"strange": strange + phases, "wires": wires}


def identical(bench: Bench) -> dict[str, Any]:
    run = Run(bench, SMALL)
    return {"digests": [digest(run.step(step)) for step in range(STEPS)]}


def deterministic(bench: Bench) -> dict[str, Any]:
    before = _global_random()
    digests = []
    for _ in range(2):
        run = Run(bench, SMALL)
        digests.append([digest(run.step(step)) for step in range(STEPS)])
    after = _global_random()
    return {
        "same": digests[0] == digests[1],
        "moved": [name for name in before if before[name] != after[name]],
    }


def _global_random() -> dict[str, str]:
    state = np.random.get_state(legacy=False)
    return {
        "torch": digest(torch.get_rng_state()),
        "numpy": repr(state),
        "random": repr(random.getstate()),
    }


def conserves(bench: Bench) -> dict[str, Any]:
    """Gradients for a few steps, then none, until what was kept back has come."""
    run, ranks = Run(bench, SMALL), bench.group.world_size
    came, total = torch.zeros(run.flat.numel), torch.zeros(run.flat.numel)
    for step in range(STEPS):
        gradients = [bench.gradient(run.flat.numel, step, rank) for rank in range(ranks)]
        total += torch.stack(gradients).mean(0)
        came += run.average(gradients[bench.group.rank])
    for step in range(0, FLUSH_STEPS + 1, FLUSH_CHUNK):
        missing = (total - came).norm() / total.norm()
        dist.all_reduce(missing, op=dist.ReduceOp.MAX)  # so that all ranks stop at the same step
        if missing < ENOUGH or step == FLUSH_STEPS:
            break
        for _ in range(FLUSH_CHUNK):
            came += run.average(torch.zeros(run.flat.numel))
    return {"missing": float(missing), "steps": step}


def buckets(bench: Bench) -> dict[str, Any]:
    """Two buckets in flight, as ``overlap`` runs them."""
    flat = bench.flat(SMALL)
    cut = len(SMALL) // 2
    methods = [bench.build(flat.part(first, last)) for first, last in ((cut, len(SMALL)), (0, cut))]
    staged = [stages(method.segments()) for method in methods]
    digests = []
    for step in range(STEPS):
        flat.data.copy_(bench.gradient(flat.numel, step))
        for _ in pipeline(InOrder(), staged):
            pass
        digests.append(digest(torch.cat([method.average for method in methods])))
    return {"digests": digests}


def state(bench: Bench) -> dict[str, Any]:
    run = Run(bench, SMALL)
    for step in range(STEPS):
        run.step(step)
    saved = io.BytesIO()
    kept = run.method.state_dict()
    on = [digest(run.step(STEPS + step)) for step in range(STEPS)]  # what was saved must not follow
    torch.save(kept, saved)
    saved.seek(0)
    try:
        loaded = torch.load(saved, weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever the user's state does to the unpickler
        return {"same": False, "problem": f"its state_dict is not plain: {one_line(error)[:200]}"}
    again = Run(bench, SMALL)
    again.method.load_state_dict(loaded)
    return {"same": on == [digest(again.step(STEPS + step)) for step in range(STEPS)], "problem": None}


def nan(bench: Bench) -> dict[str, Any]:
    """A finite step, one where the last rank has some NaN, and two finite ones."""
    run = Run(bench, SMALL)
    outcomes = []
    for step in range(4):
        gradient = bench.gradient(run.flat.numel, step)
        if step == 1 and bench.group.rank == bench.group.world_size - 1:
            gradient[3::5] = torch.nan
        try:
            average = run.average(gradient)
        except Exception as error:  # noqa: BLE001 - what it raises is the outcome
            outcomes.append(f"raised {type(error).__name__}")
        else:
            outcomes.append("finite" if bool(average.isfinite().all()) else "not finite")
    return {"outcomes": outcomes}


def sends(bench: Bench) -> dict[str, Any]:
    """What the wires declare for some steps; the counters are read around them and around every local segment."""
    run = Run(bench, MIDDLE)
    run.step(0)
    charged, declared = [], 0

    def counted(work: Callable[[], None]) -> None:
        bench.count()
        before = bench.charged()
        work()
        bench.count()
        charged.append(bench.charged() - before)

    def steps() -> None:
        nonlocal declared
        for step in range(STEPS):
            run.step(step)
            declared += wire_bytes(cost.messages(run.segments))

    counted(steps)
    run.flat.data.copy_(bench.gradient(run.flat.numel, STEPS))
    for segment in run.segments:
        if isinstance(segment, Local):
            counted(segment.run)
        else:
            segment.run()
    return {"declared": declared, "charged": charged}


def times(bench: Bench) -> dict[str, Any]:
    """Milliseconds per step, by the clock around the segments; local ones with the host to themselves."""
    run = Run(bench, LARGE)
    local, wire = [], []
    for step in range(2 + 2 * STEPS):
        run.flat.data.copy_(bench.gradient(run.flat.numel, step))
        spent = {Local: 0.0, Wire: 0.0}
        for segment in run.segments:
            if isinstance(segment, Local):
                with bench.meeting.turn():
                    begin = time.monotonic()
                    segment.run()
                    spent[Local] += time.monotonic() - begin
            else:
                bench.meeting.meet()
                begin = time.monotonic()
                segment.run()
                spent[Wire] += time.monotonic() - begin
        if step >= 2:  # the first ones warm caches and connections
            local.append(spent[Local])
            wire.append(spent[Wire])
    return {"local_ms": median(local) * 1e3, "wire_ms": median(wire) * 1e3}


TRIALS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    each.__name__: each
    for each in (builds, identical, deterministic, conserves, buckets, state, nan, sends, times)
}


class TrialTask(Task):
    """``params``: the ``trial``'s name, and the method's ``options``."""

    def run(self) -> None:
        job, params = self.job, self.job.params
        self.say(f"in the trial {params['trial']!r}")
        group, _ = join(self.channel, job, self.shared, choose_device(self.scenario["device"], job.rank))
        bench = Bench(
            group,
            lambda flat: build_method(job.method, flat, group, **params["options"]),
            self.shared.meeting,
            self._progress,
            self._count,
            self._charged,
        )
        self.channel.result(TRIALS[params["trial"]](bench))
        self.channel.gather("done")

    def _progress(self, step: int, doing: str) -> None:
        self.step = step
        self.say(doing)

    def _count(self) -> None:
        self.channel.gather("counted")

    def _charged(self) -> float:
        return shaped.shaped_group().charged()[0] if self.job.mechanism == "bucket" else 0
