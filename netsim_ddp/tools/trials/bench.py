"""What every trial works with: known gradients, one instance of the method, and a word with the other ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Group, Local, Method, Segment
from netsim_ddp.ranks.barrier import HostBarrier
from netsim_ddp.ranks.channel import COMMUNICATING, COMPUTING
from netsim_ddp.references import one_line

Shapes = Mapping[str, tuple[int, ...]]
SMALL: Shapes = {
    "conv": (8, 3, 3, 3),
    "bias": (8,),
    "wide": (16, 130),
    "one": (1,),
    "scalar": (),
    "odd": (17, 29),
}
MIDDLE: Shapes = {"matrix": (400, 400), "vector": (40_001,)}
LARGE: Shapes = {"matrix": (1000, 970), "vector": (30_001,)}


class Fault(Exception):
    """What a trial found wrong. Raised by all ranks alike, or by one when nobody waits for it any more."""


@dataclass(frozen=True)
class Found:
    """What a trial found that is right (``passed``), or that it cannot judge here (None)."""

    text: str
    passed: bool | None = True
    data: Any = None


@dataclass(frozen=True)
class Bench:
    """What a trial works with.

    Attributes:
        build: the method under test, over any gradient.
        count: have the link's counters read while no rank sends.
        charged: bytes that the bucket link has charged this rank so far.
        gather: every rank's value, in rank order, without a byte on the link.
    """

    group: Group
    build: Callable[[FlatGradients], Method]
    barrier: HostBarrier
    progress: Callable[[int, str], None]
    count: Callable[[], None]
    charged: Callable[[], float]
    gather: Callable[[Any], list[Any]]

    def flat(self, shapes: Shapes) -> FlatGradients:
        return FlatGradients(
            (name, nn.Parameter(torch.zeros(shape, dtype=torch.float32))) for name, shape in shapes.items()
        )

    def gradient(self, numel: int, step: int, rank: int | None = None) -> Tensor:
        """[N], of this rank or another; every rank can make everybody's."""
        rank = self.group.rank if rank is None else rank
        generator = torch.Generator().manual_seed(1_000_003 * step + rank)
        scale = torch.linspace(0.2, 2.0, numel, dtype=torch.float32)
        return torch.randn(numel, generator=generator, dtype=torch.float32) * scale

    def mean(self, numel: int, step: int) -> Tensor:
        """[N], float64: what the average of step ``step`` should be."""
        ranks = range(self.group.world_size)
        return torch.stack([self.gradient(numel, step, rank).double() for rank in ranks]).mean(0)

    def agree(self, fault: str | None) -> None:
        """Have every rank raise what the first of them found, or none.

        Raises:
            Fault: a rank found one.
        """
        for found in self.gather(fault):
            if found:
                raise Fault(found)

    def same_bits(self, tensor: Tensor, when: str) -> None:
        """Have every rank raise if they do not all hold the same bits.

        Raises:
            Fault: they do not.
        """
        rows = self.gather(digest(tensor))
        if len(set(rows)) > 1:
            odd = next(rank for rank, row in enumerate(rows) if row != rows[0])
            raise Fault(f"at {len(rows)} ranks, {when}: rank {odd}'s average is not rank 0's")


class Run:
    """One instance of the method and its steps.

    Args:
        about: what is special about this one, for whoever reads where it hung or failed.
    """

    def __init__(self, bench: Bench, shapes: Shapes, about: str = "") -> None:
        self.bench, self.about = bench, f", {about}" if about else ""
        bench.progress(0, f"building the method{self.about}")
        self.flat = bench.flat(shapes)
        self.method = bench.build(self.flat)
        self.segments: Sequence[Segment] = self.method.segments()
        self.steps = 0
        self.at = 0
        """The segment that ran last."""

    @property
    def numel(self) -> int:
        return self.flat.numel

    def step(self, number: int) -> Tensor:
        """The average of the ranks' gradients of step ``number``."""
        return self.average(self.bench.gradient(self.numel, number))

    def average(self, gradient: Tensor) -> Tensor:
        """The average, [N], when this rank's gradient is ``gradient``."""
        self.flat.data.copy_(gradient)
        self.steps += 1
        for number, segment in enumerate(self.segments):
            self.at = number
            # Whoever hangs is then behind those that wait for it.
            doing = COMPUTING if isinstance(segment, Local) else COMMUNICATING
            self.bench.progress(self.steps, f"{doing}{self.about}")
            segment.run()
        return self.method.average.clone()

    def outcome(self, gradient: Tensor) -> tuple[str, Tensor | None]:
        """What became of a step: finite, not finite, skipped, or what it raised and where; and the average."""
        try:
            average = self.average(gradient)
        except Exception as error:  # noqa: BLE001 - what it raises is the outcome
            told = f"raised {one_line(error)[:120]}"
            self.bench.progress(self.steps, f"waiting for the others, having {told}{self.about}")
            return f"raised {type(error).__name__} in segment {self.at}", None
        if self.method.skipped:
            return "skipped", average
        return ("finite" if bool(average.isfinite().all()) else "not finite"), average


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()[:24]


def strange_average(average: Tensor, numel: int) -> str | None:
    """Why ``average`` is not float32 [N] on the gradient's device, or None."""
    if average.dtype != torch.float32 or tuple(average.shape) != (numel,):
        return f"`average` is {average.dtype} {list(average.shape)}, not float32 [{numel}]"
    return None
