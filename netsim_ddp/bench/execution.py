"""How one rank carries out the pieces of a step: as they come, or measured alone and then replayed.

With more workers than cores the ranks of one host steal each other's time: what looks like 130 ms of compressing
is 33 ms on a machine of its own. :class:`Replayed` therefore plays every step twice. First for real: local pieces
one rank at a time with the host to itself, each timed, and the wire untimed. Then for the clock: all ranks start
together, sleep through the measured durations of their local pieces and send the same messages over the real link,
in the same order. Nothing but the network then competes for the host.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from netsim_ddp.bench.meeting import MeetingPoint
from netsim_ddp.bench.phases import Phase, StepSample, StepTimer
from netsim_ddp.communication.segments import CodecWork, Wire
from netsim_ddp.results.codec import Substitute
from netsim_ddp.workloads.emulated import sleep_until

Play = Callable[["Execution"], None]
"""The pieces of one step, in order; called once per pass, it must do nothing outside of them."""


class Execution(ABC):
    """What a program's step is written against."""

    def __init__(self, timer: StepTimer) -> None:
        self._timer = timer
        self._begin = 0.0

    @abstractmethod
    def step(self, play: Play) -> StepSample:
        """Carry out one step."""

    @abstractmethod
    def local(self, phase: Phase, run: Callable[[], None], work: CodecWork | None = None) -> None:
        """A piece of this rank's own work; ``work`` where it is all the codec's."""

    @abstractmethod
    def until(self, offset: float) -> None:
        """An emulated accelerator computes: go on ``offset`` seconds after the step's begin."""

    @abstractmethod
    def start(self, wire: Wire) -> None:
        """Start an exchange that other pieces run beside."""

    @abstractmethod
    def finish(self, wire: Wire) -> None:
        """Wait for an exchange that was started."""


class Concurrent(Execution):
    """Every piece when its turn comes; ranks share the host."""

    def __init__(self, timer: StepTimer, meet: Callable[[], None]) -> None:
        super().__init__(timer)
        self._meet = meet

    def step(self, play: Play) -> StepSample:
        self._meet()
        self._timer.begin()
        self._begin = time.monotonic()
        play(self)
        return self._timer.finish()

    def local(self, phase: Phase, run: Callable[[], None], work: CodecWork | None = None) -> None:
        del work
        run()
        self._timer.lap(phase)

    def until(self, offset: float) -> None:
        sleep_until(self._begin + offset, clock=time.monotonic)
        self._timer.computing_until(self._begin + offset)
        self._timer.lap("compute")

    def start(self, wire: Wire) -> None:
        self._timer.started(wire)
        wire.start()
        self._timer.sent(wire, wire.sent())
        self._timer.lap("send")

    def finish(self, wire: Wire) -> None:
        wire.finish()
        self._timer.lap("wire", wire)

    def computed(self) -> None:
        """What has passed since the last piece was forward or backward."""
        self._timer.lap("compute")

    def computed_and_started(self, wire: object) -> None:
        """Backward is through, and somebody else (DDP) has started an exchange, which :meth:`waited` ends."""
        self._timer.lap("compute")
        self._timer.started(wire)

    def waited(self, wire: object) -> None:
        self._timer.lap("wire", wire)


class Replayed(Execution):
    """Local pieces measured one rank at a time, then slept through while the wire is real.

    A step's messages cross the link twice, so ``count`` is called before and after the second pass: the counters
    are read there. With ``substitute`` the codec's pieces last what it says, instead of what they took here.
    """

    def __init__(
        self,
        timer: StepTimer,
        meeting: MeetingPoint,
        rank: int,
        device: torch.device,
        count: Callable[[], None],
        substitute: Substitute | None = None,
    ) -> None:
        super().__init__(timer)
        self._count = count
        self._substitute = substitute
        self._meeting, self._rank = meeting, rank
        self._synchronize = torch.cuda.synchronize if device.type == "cuda" else _nothing
        self._measuring = True
        self.warming_up = True
        """A warm-up step is played once: that warms caches, kernels and connections alike."""
        self._durations: list[float] = []
        self._next = 0

    def step(self, play: Play) -> StepSample:
        self._measuring, self._durations = True, []
        self._meeting.meet()
        begin = time.monotonic()
        play(self)
        elapsed = time.monotonic() - begin
        if self.warming_up:
            now = time.monotonic()
            return StepSample([("other", begin, now)], elapsed=elapsed)
        self._measuring, self._next = False, 0
        self._count()
        self._begin = self._meeting.start_together(self._rank)
        sleep_until(self._begin, clock=time.monotonic)
        self._timer.begin()
        play(self)
        sample = self._timer.finish()
        sample.elapsed = elapsed
        self._count()
        return sample

    def local(self, phase: Phase, run: Callable[[], None], work: CodecWork | None = None) -> None:
        if self._measuring:
            with self._meeting.turn():
                self._synchronize()
                begin = time.monotonic()
                run()
                self._synchronize()
                took = time.monotonic() - begin
            if work is not None and self._substitute is not None:
                took = substituted_seconds(self._substitute, work)
            self._durations.append(took)
            return
        # From the last lap's end, so that waking late once does not add up over the step.
        sleep_until(self._timer.last() + self._durations[self._next], clock=time.monotonic)
        self._next += 1
        self._timer.lap(phase)

    def until(self, offset: float) -> None:
        if self._measuring:
            return
        sleep_until(self._begin + offset, clock=time.monotonic)
        self._timer.computing_until(self._begin + offset)
        self._timer.lap("compute")

    def start(self, wire: Wire) -> None:
        if self._measuring:
            self._together(wire)
            return
        self._timer.started(wire)
        wire.start()
        self._timer.sent(wire, wire.sent())
        self._timer.lap("send")

    def finish(self, wire: Wire) -> None:
        if not self._measuring:
            wire.finish()
            self._timer.lap("wire", wire)

    def measure(self, run: Callable[[], None]) -> None:
        """Work that takes its own time in pieces, which :meth:`spent` plays later."""
        if self._measuring:
            with self._meeting.turn():
                run()

    def spent(self, seconds: float) -> None:
        """A piece of forward or backward that took ``seconds``."""
        if not self._measuring:
            sleep_until(self._timer.last() + seconds, clock=time.monotonic)
            self._timer.lap("compute")

    def _together(self, wire: Wire) -> None:
        """For real, while no rank measures anything."""
        self._meeting.meet()
        wire.run()
        self._meeting.meet()


def substituted_seconds(times: Substitute, work: CodecWork) -> float:
    """How long ``work`` takes where ``times`` were measured."""
    select = times.select_seconds(*work.selected) if work.selected else 0.0
    return (
        select + sum(map(times.encode_seconds, work.encoded)) + sum(map(times.decode_seconds, work.decoded))
    )


def _nothing() -> None:
    return None
