"""Buckets in flight: which piece of which bucket runs when, the same order on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import CodecWork, Local, Segment, Wire

DDP_FIRST_BUCKET_BYTES = 1 << 20
DDP_BUCKET_BYTES = 25 << 20


class Executor(Protocol):
    """Carries the pieces out: with a clock around each (``run``), replayed, or without one (the backend and hooks)."""

    def local(
        self,
        phase: Literal["compress", "decompress"],
        run: Callable[[], None],
        work: CodecWork | None = None,
    ) -> None: ...

    def start(self, wire: Wire) -> None: ...

    def finish(self, wire: Wire) -> None: ...


class InOrder:
    """Carries pieces out as they come, and knows which exchanges are under way."""

    def __init__(self) -> None:
        self._under_way: list[Wire] = []

    def local(self, phase: str, run: Callable[[], None], work: CodecWork | None = None) -> None:
        del phase, work
        run()

    def start(self, wire: Wire) -> None:
        wire.start()
        self._under_way.append(wire)

    def finish(self, wire: Wire) -> None:
        self._under_way.remove(wire)
        wire.finish()

    def drain(self) -> None:
        """Wait for what has been started, so that the next step's messages do not meet it."""
        while self._under_way:
            self._under_way.pop(0).finish()


@dataclass
class Stage:
    """Local pieces, then the exchange that they prepare (None: nothing is left to send)."""

    locals: list[Local] = field(default_factory=list)
    wire: Wire | None = None

    @property
    def wires(self) -> list[Wire]:
        return [] if self.wire is None else [self.wire]


def stages(segments: Sequence[Segment]) -> list[Stage]:
    """Cut a method's segments after each exchange."""
    found = [Stage()]
    for segment in segments:
        if isinstance(segment, Wire):
            found[-1].wire = segment
            found.append(Stage())
        else:
            found[-1].locals.append(segment)
    return found


def pipeline(executor: Executor, buckets: Sequence[Sequence[Stage]]) -> Iterator[int]:
    """Run every bucket's stages, one bucket behind the other: while bucket 2 is compressed, bucket 1 is on the wire.

    Yields each bucket's number when its gradient is needed; whoever iterates goes on when it is there.
    """
    depth = max((len(bucket) for bucket in buckets), default=0)
    for turn in range(len(buckets) + max(depth - 1, 0)):
        if turn < len(buckets):
            yield turn
        # The newest bucket first: its exchange fills the link while the older ones are decoded.
        for number in range(min(turn, len(buckets) - 1), max(turn - depth, -1), -1):
            if turn - number < len(buckets[number]):
                _run(executor, buckets[number], turn - number)


def starts_first(executor: Executor, buckets: Sequence[Sequence[Stage]]) -> Iterator[int]:
    """As :func:`pipeline`, but nothing is waited for before the last bucket is there."""
    for number, bucket in enumerate(buckets):
        yield number
        if bucket:
            _run(executor, bucket, 0)
    for level in range(1, max((len(bucket) for bucket in buckets), default=0)):
        for bucket in buckets:
            if level < len(bucket):
                _run(executor, bucket, level)


def _run(executor: Executor, bucket: Sequence[Stage], level: int) -> None:
    if level and (before := bucket[level - 1].wire) is not None:
        executor.finish(before)
    for piece in bucket[level].locals:
        executor.local(piece.phase, piece.run, piece.work)
    if (wire := bucket[level].wire) is not None:
        executor.start(wire)


def ddp_buckets(flat: FlatGradients) -> list[tuple[int, int]]:
    """``(first, last + 1)`` parameter of DDP's buckets in ready order: whole parameters, last to first, the first
    bucket of at least 1 MiB, the others of 25 MiB, in the types of the parameters."""
    buckets: list[tuple[int, int]] = []
    last = first = len(flat.parameters)
    limit, size = DDP_FIRST_BUCKET_BYTES, 0
    for first in range(len(flat.parameters) - 1, -1, -1):
        size += flat.parameters[first].numel() * flat.parameters[first].element_size()
        if size >= limit:
            buckets.append((first, last))
            last, limit, size = first, DDP_BUCKET_BYTES, 0
    if first < last:
        buckets.append((first, last))
    return buckets
