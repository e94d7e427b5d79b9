"""One rank's step without the others: its local work is done and timed, its exchanges are only noted.

The method's own segments run, in the order in which a step runs them; in place of an exchange the rank receives what it
would have sent itself (:meth:`~netsim_ddp.communication.segments.Wire.echo`), so that what comes after it works on
messages of the right size. What is noted is played on a link's clock by :mod:`netsim_ddp.predict.clock`.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from netsim_ddp.communication import cost
from netsim_ddp.communication.building import build_method
from netsim_ddp.communication.exchange import PeerExchange
from netsim_ddp.communication.executor import pipeline, stages, starts_first
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.framing import wire_bytes
from netsim_ddp.communication.segments import CodecWork, Group, Wire, segments_of
from netsim_ddp.link.base import die_with_parent
from netsim_ddp.link.bucket.schedule import Sent
from netsim_ddp.stolen import NOTICEABLE, StolenTime

WARMUP, STEPS, MORE, BUDGET_S = 2, 5, 15, 0.5
"""A step is rehearsed that often, and more often while that takes no time: another program's turn on the processor is
then in few of them."""
TRIES = 3
OTHERS = 32 << 20
"""Bytes that go through the caches before a step and during an exchange, as those of a backward pass, or of the ranks
that share a host. Without them what a step works on stays in the caches: small models' codecs were predicted up to a
third too fast."""
Substituted = Callable[[CodecWork], float]


@dataclass(frozen=True)
class Full:
    """The gradient of a bucket is needed."""

    bucket: int


@dataclass(frozen=True)
class Work:
    """A local piece, and how long it took in each rehearsed step, seconds."""

    phase: Literal["compress", "decompress"]
    took_s: tuple[float, ...]


@dataclass(frozen=True)
class Start:
    """Exchange ``wire`` begins, which asks ``sent`` of the link."""

    wire: int
    sent: Sent


@dataclass(frozen=True)
class Finish:
    """Exchange ``wire`` is waited for."""

    wire: int


Event = Full | Work | Start | Finish


@dataclass(frozen=True)
class Rehearsal:
    """The step of one method among ``world_size`` ranks.

    Attributes:
        payload_bytes: what a rank hands over in a step.
        wire_bytes: what it sends, at the interface.
        collective: how sparse entries travel, where the method could have chosen otherwise.
    """

    world_size: int
    events: tuple[Event, ...]
    payload_bytes: int
    wire_bytes: int
    residual_bytes: int
    collective: str | None = None


class _Notes:
    """Runs a step's pieces, and notes them.

    Args:
        evict: has the caches hold something else.
        echo: the rank receives what it would have sent itself; else, of messages from every peer, those of the step
            before are there still.
    """

    def __init__(self, substituted: Substituted | None, evict: Callable[[], object], *, echo: bool) -> None:
        self._substituted, self._evict, self._echo = substituted, evict, echo
        self._numbers: dict[int, int] = {}
        self.events: list[Event] = []

    def local(
        self,
        phase: Literal["compress", "decompress"],
        run: Callable[[], None],
        work: CodecWork | None = None,
    ) -> None:
        begin = time.perf_counter()
        run()
        took = time.perf_counter() - begin
        if work is not None and self._substituted is not None:
            took = self._substituted(work)
        self.events.append(Work(phase, (took,)))

    def start(self, wire: Wire) -> None:
        self._numbers[id(wire)] = len(self._numbers)
        self.events.append(Start(self._numbers[id(wire)], wire.sent()))

    def finish(self, wire: Wire) -> None:
        self._evict()
        if self._echo or not isinstance(wire, PeerExchange):
            wire.echo()
        self.events.append(Finish(self._numbers[id(wire)]))


def rehearse(
    name: str,
    params: Mapping[str, Any],
    flat: FlatGradients,
    buckets: Sequence[tuple[int, int]],
    gradients: Sequence[Sequence[Tensor]],
    group: Group,
    substituted: Substituted | None = None,
    *,
    as_ddp: bool = False,
    at_once: int = 1,
) -> Rehearsal:
    """Rehearse a step of the method ``name`` as rank 0 of ``group``, which needs no processes.

    Args:
        buckets: (first, last + 1) parameter of each part of ``flat`` that is exchanged by itself, in the order in
            which backward fills them; one of everything where the method does not overlap.
        gradients: sets of recorded gradients, which take turns.
        substituted: the seconds of a piece that is all the codec's, instead of those that it took here.
        as_ddp: exchanges start as their buckets become full, and are waited for after the last, as DDP does.
        at_once: the step is rehearsed by so many processes, of which one is timed: ranks of one host take memory
            bandwidth from each other.

    Raises:
        UsageError: an exchange of the user's own, of which it is not known what the others would send.
    """
    methods = [
        build_method(name, flat.part(*bucket) if len(buckets) > 1 else flat, group, as_ddp=True, **params)
        for bucket in buckets
    ]
    parts = [stages(segments_of(method, name)) if group.world_size > 1 else [] for method in methods]
    sets = itertools.cycle(gradients)
    others = torch.zeros(OTHERS, dtype=torch.uint8)

    def one(*, echo: bool = False) -> list[Event]:
        others.add_(1)
        for view, gradient in zip(flat.views, next(sets), strict=True):
            view.copy_(gradient)
        notes = _Notes(substituted, lambda: others.add_(1), echo=echo)
        with torch.no_grad():
            for bucket in (starts_first if as_ddp else pipeline)(notes, parts):
                notes.events.append(Full(bucket))
        return notes.events

    for _ in range(WARMUP):
        one(echo=True)
    with _beside(one, at_once - 1):
        steps = _undisturbed(one)
    wires = [stage.wire for part in parts for stage in part if stage.wire is not None]
    return Rehearsal(
        world_size=group.world_size,
        events=tuple(map(_merged, zip(*steps, strict=True))),
        payload_bytes=cost.payload_bytes(wires),
        wire_bytes=wire_bytes(cost.messages(wires)),
        residual_bytes=sum(method.residual_bytes for method in methods),
        collective="+".join(sorted({each.collective for each in methods if each.collective})) or None,
    )


def _undisturbed(one: Callable[[], list[Event]]) -> list[list[Event]]:
    """Several steps, one after the other; again where others had this machine's processors meanwhile, and then those
    that were disturbed least."""
    tries: list[tuple[float, list[list[Event]]]] = []
    while len(tries) < TRIES and (not tries or tries[-1][0] > NOTICEABLE):
        began, stolen, steps = time.perf_counter(), StolenTime(), []
        for number in range(MORE):
            if number >= STEPS and time.perf_counter() - began > BUDGET_S:
                break
            steps.append(one())
        tries.append((stolen.share or 0.0, steps))
    return min(tries, key=lambda tried: tried[0])[1]


@contextmanager
def _beside(run: Callable[[], object], count: int) -> Iterator[None]:
    """Within it ``count`` other processes do ``run`` again and again."""
    children = []
    try:
        for _ in range(count):
            if (child := os.fork()) == 0:
                with suppress(BaseException):
                    die_with_parent()
                    while True:
                        run()
                os._exit(0)
            children.append(child)
        yield
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _merged(events: Sequence[Event]) -> Event:
    """The same event of every step: with all of its times, and the sizes of the last step."""
    last = events[-1]
    if not isinstance(last, Work):
        return last
    return replace(last, took_s=tuple(s for each in events if isinstance(each, Work) for s in each.took_s))
