"""What every check on the ranks works with: known gradients, an instance of the method, what other ranks found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Group, Local, Method, Segment, Wire
from netsim_ddp.errors import describe
from netsim_ddp.ranks.barrier import HostBarrier
from netsim_ddp.ranks.channel import COMMUNICATING, COMPUTING
from netsim_ddp.tools.check import require

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


@dataclass(frozen=True)
class Passed:
    """What a check found that is right (``passed``), or that it cannot judge here (None)."""

    text: str
    passed: bool | None = True
    data: Any = None


@dataclass(frozen=True)
class Context:
    """What a check works with.

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
    count: Callable[[], object]
    charged: Callable[[], float]
    gather: Callable[[Any], list[Any]]

    def flat(self, shapes: Shapes) -> FlatGradients:
        return FlatGradients(
            (name, nn.Parameter(torch.zeros(shape, dtype=torch.float32))) for name, shape in shapes.items()
        )

    def gradient(self, numel: int, step: int, rank: int | None = None) -> Tensor:
        """Returns the gradient [N] of this rank or another; every rank can make everybody's."""
        rank = self.group.rank if rank is None else rank
        generator = torch.Generator().manual_seed(1_000_003 * step + rank)
        scale = torch.linspace(0.2, 2.0, numel, dtype=torch.float32)
        return torch.randn(numel, generator=generator, dtype=torch.float32) * scale

    def mean(self, numel: int, step: int) -> Tensor:
        """Returns what the average of step ``step`` should be, float64 [N]."""
        ranks = range(self.group.world_size)
        return torch.stack([self.gradient(numel, step, rank).double() for rank in ranks]).mean(0)

    def agree(self, *faults: str | None) -> None:
        """Have every rank raise the first fault of the first rank that found one.

        Raises:
            CheckFailed: a rank found one.
        """
        for found in self.gather(next(filter(None, faults), None)):
            require(not found, found)

    def same_bits(self, tensor: Tensor, when: str) -> None:
        """Have every rank raise if they do not all hold the same bits.

        Raises:
            CheckFailed: they do not.
        """
        require_equal(self.gather(digest(tensor)), when)


class Run:
    """One instance of the method and its steps.

    Args:
        about: what is special about this one, for messages on where it hung or failed.
        flat: the gradient that the method works on, instead of a new one with ``shapes``.
    """

    def __init__(
        self, context: Context, shapes: Shapes, about: str = "", flat: FlatGradients | None = None
    ) -> None:
        self.context, self.about = context, f", {about}" if about else ""
        context.progress(0, f"building the method{self.about}")
        self.flat = context.flat(shapes) if flat is None else flat
        self.numel = self.flat.numel
        self.method = context.build(self.flat)
        self.segments: Sequence[Segment] = self.method.segments()
        self.steps = self.last = 0
        """Steps begun, and the number of the segment that ran last."""

    def walk(self, gradient: Tensor) -> Iterator[tuple[str, Segment]]:
        """Begin a step in which this rank's gradient is ``gradient``, [N]; the caller runs each segment.

        Yields what each segment is called in messages, and the segment.
        """
        self.flat.data.copy_(gradient)
        self.steps += 1
        for number, segment in enumerate(self.segments):
            self.last = number
            # Whoever hangs is then behind those that wait for it.
            # What is neither a Local nor a Wire has another check.
            doing, kind, detail = (
                (COMPUTING, "local segment", "phase")
                if isinstance(segment, Local)
                else (COMMUNICATING, "wire", "operation")
            )
            self.context.progress(self.steps, f"{doing}{self.about}")
            yield f"the {kind} {number} ({getattr(segment, detail, None)})", segment

    def wires(self, number: int) -> Iterator[tuple[str, Wire]]:
        """Begin step ``number``, run its local segments, and have the caller run each wire."""
        for called, segment in self.walk(self.gradient(number)):
            if isinstance(segment, Local):
                segment.run()
            else:
                yield called, segment

    def gradient(self, number: int) -> Tensor:
        """Returns this rank's gradient of step ``number``, [N]."""
        return self.context.gradient(self.numel, number)

    def step(self, number: int) -> Tensor:
        """Returns the average of the ranks' gradients of step ``number``, [N]."""
        return self.average(self.gradient(number))

    def average(self, gradient: Tensor) -> Tensor:
        """Returns the average, [N], when this rank's gradient is ``gradient``."""
        for _, segment in self.walk(gradient):
            segment.run()
        return self.method.average.clone()

    def outcome(self, gradient: Tensor) -> tuple[str, Tensor | None]:
        """Returns what became of a step (finite, not finite, skipped, or what it raised and where) and the average."""
        try:
            average = self.average(gradient)
        except Exception as error:  # noqa: BLE001 - what it raises is the outcome
            self.context.progress(
                self.steps, f"waiting for the others, having raised {describe(error)[:120]}{self.about}"
            )
            return f"raised {type(error).__name__} in segment {self.last}", None
        if self.method.skipped:
            return "skipped", average
        return ("finite" if bool(average.isfinite().all()) else "not finite"), average


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()[:24]


def require_equal(digests: Sequence[str], when: str) -> None:
    """Raise :class:`CheckFailed` unless the digests of all ranks' averages are equal."""
    for rank, each in enumerate(digests):
        require(each == digests[0], f"at {len(digests)} ranks, {when}: rank {rank}'s average is not rank 0's")


def fault_of(average: Tensor, numel: int) -> str | None:
    """Returns why ``average`` is not finite float32 [N]; None where it is."""
    if average.dtype != torch.float32 or tuple(average.shape) != (numel,):
        return f"`average` is {average.dtype} {list(average.shape)}, not float32 [{numel}]"
    return None if bool(average.isfinite().all()) else "the average is not finite"
