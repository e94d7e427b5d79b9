"""Carries out the pieces of one rank's step: concurrently, or measured alone and then replayed.

With more workers than cores the ranks of one host steal each other's time: what looks like 130 ms of compressing
is 33 ms on a machine of its own. :class:`Replayed` therefore plays every step twice. First for real: local pieces
one rank at a time with the host to itself, each timed, and the wire untimed. Then for the clock: all ranks start
together, sleep through the measured durations of their local pieces and send the same messages over the real link,
in the same order. Nothing but the network then competes for the host.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from netsim_ddp.communication.segments import CodecWork, Wire
from netsim_ddp.ranks.barrier import HostBarrier
from netsim_ddp.ranks.turn_threads import ELEMENTS_PER_THREAD, TurnThreads
from netsim_ddp.results.codec import Substitute
from netsim_ddp.steps.phases import HostClock, Phase, StepSample, StepTimer
from netsim_ddp.workloads.emulated import sleep_until

_LAST_S = 50e-6

Play = Callable[["Execution"], None]
"""The pieces of one step, in order; called once per pass, it must do nothing outside of them."""


Spend = Callable[[float], None]
"""Returns at the moment that it is given, in seconds of CLOCK_MONOTONIC."""


class Execution(ABC):
    """Carries out the pieces of a program's step."""

    def __init__(self, timer: StepTimer) -> None:
        self._timer = timer
        self._begin = 0.0
        self.computing: Spend = asleep
        """Lets the time pass that an emulated accelerator computes."""

    @abstractmethod
    def step(self, play: Play) -> StepSample:
        """Carry out one step."""

    @abstractmethod
    def local(self, phase: Phase, run: Callable[[], None], work: CodecWork | None = None) -> None:
        """A piece of this rank's own work; ``work`` where it is all the codec's."""

    @abstractmethod
    def compute(self, run: Callable[[], None]) -> None:
        """Forward and backward."""

    def until(self, offset: float) -> None:
        """An emulated accelerator computes: go on ``offset`` seconds after the step's begin."""
        self.computing(self._begin + offset)
        self._timer.computing_until(self._begin + offset)
        self._timer.lap("compute")

    def waits_for_data(self, seconds: float) -> None:
        """What an emulated accelerator's step begins with, and is not computation."""
        self.computing(self._timer.last() + seconds)
        self._timer.lap("other")
        self._timer.waited_for_data()

    def takes(self, phase: Phase, seconds: float) -> None:
        """A piece of which it is known how long it takes, and nothing else."""
        self.computing(self._timer.last() + seconds)
        self._timer.lap(phase)

    def start(self, wire: Wire) -> None:
        """Start an exchange that other pieces run beside."""
        self._timer.started(wire)
        wire.start()
        self._timer.sent(wire, wire.sent())
        self._timer.lap("send")

    def finish(self, wire: Wire) -> None:
        """Wait for an exchange that was started."""
        wire.finish()
        self._timer.lap("wire", wire)


class Concurrent(Execution):
    """Every piece when its turn comes; ranks share the host."""

    def __init__(self, timer: StepTimer, synchronize: Callable[[], None]) -> None:
        super().__init__(timer)
        self._synchronize = synchronize

    def step(self, play: Play) -> StepSample:
        self._synchronize()
        self._timer.begin()
        self._begin = time.monotonic()
        play(self)
        return self._timer.finish()

    def local(self, phase: Phase, run: Callable[[], None], work: CodecWork | None = None) -> None:
        del work
        run()
        self._timer.lap(phase)

    def compute(self, run: Callable[[], None]) -> None:
        self.local("compute", run)

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
    """Local pieces measured with cores of their own, then played again in their own time while the wire is real.

    A step's messages cross the link twice, so ``count`` is called before and after the second pass: the counters
    are read there.

    Args:
        computed: how long forward and backward of each measured step take, as
            :mod:`netsim_ddp.steps.compute_times` measured it for all methods: the seconds until each bucket is full,
            one after the other. Empty under an emulated accelerator.
        at_once: how many ranks measure at a time.
        threads: of a rank's work.
        spend: lets the measured time of a piece pass.
        substitute: the codec's pieces last what it says, instead of what they took here.
    """

    def __init__(
        self,
        timer: StepTimer,
        barrier: HostBarrier,
        rank: int,
        device: torch.device,
        count: Callable[[], None],
        *,
        computed: Sequence[Sequence[float]] = (),
        at_once: int = 1,
        threads: int = 1,
        spend: Spend,
        substitute: Substitute | None = None,
    ) -> None:
        super().__init__(timer)
        self._count, self._substitute = count, substitute
        self._barrier, self._rank, self._at_once = barrier, rank, at_once
        self._cuda = device.type == "cuda"
        self._computed, self._spend = computed, spend
        self._steps = self._next = 0
        self.measuring = True
        """Whether this is the first pass, which does the work; the second one plays it."""
        self.warming_up = True
        """A warm-up step is played once: that warms caches, kernels and connections alike."""
        self._durations: list[float] = []
        self._inside = self._backwards = False
        self._pool = TurnThreads(1 if self._cuda else threads)
        self._held_back: list[Wire] = []

    def step(self, play: Play) -> StepSample:
        self.measuring, self._durations = True, []
        self._backwards = not self._backwards
        self._barrier.wait()
        begin = time.monotonic()
        play(self)
        self._leave()
        elapsed = time.monotonic() - begin
        if self.warming_up:
            return StepSample([("other", begin, time.monotonic())], elapsed=elapsed)
        self.measuring, self._next = False, 0
        self._count()
        self._begin = self._barrier.start_together(self._rank)
        sleep_until(self._begin, clock=time.monotonic)
        self._timer.begin()
        play(self)
        sample = self._timer.finish()
        sample.elapsed = elapsed
        self._steps += 1
        self._count()
        return sample

    def local(self, phase: Phase, run: Callable[[], None], work: CodecWork | None = None) -> None:
        if self.measuring:
            self._enter()
            self._synchronize()
            begin = time.monotonic()
            run()
            self._synchronize()
            took = time.monotonic() - begin
            if work is not None and self._substitute is not None:
                took = substituted_seconds(self._substitute, work)
            self._durations.append(took)
            return
        self._play(self._durations[self._next], phase)
        self._next += 1

    def compute(self, run: Callable[[], None]) -> None:
        self.compute_once(run)
        if not self.measuring:
            self._play(sum(self._pass()), "compute")

    def compute_once(self, run: Callable[[], None]) -> None:
        """Forward and backward in the first pass; :meth:`filled` plays them bucket by bucket in the second."""
        if self.measuring:
            self._enter()
            run()
            self._synchronize()

    def filled(self, bucket: int) -> None:
        """Forward and backward go on until ``bucket`` is full."""
        if not self.measuring:
            self._play(self._pass()[bucket], "compute")

    def until(self, offset: float) -> None:
        if not self.measuring:
            super().until(offset)

    def waits_for_data(self, seconds: float) -> None:
        if not self.measuring:
            super().waits_for_data(seconds)

    def takes(self, phase: Phase, seconds: float) -> None:
        if not self.measuring:
            super().takes(phase, seconds)

    def start(self, wire: Wire) -> None:
        if self.measuring:
            # Not before it is waited for: what comes until then belongs to the same turn.
            self._held_back.append(wire)
        else:
            super().start(wire)

    def finish(self, wire: Wire) -> None:
        if not self.measuring:
            super().finish(wire)
        elif wire in self._held_back:
            self._exchange()

    def _synchronize(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()

    def _pass(self) -> Sequence[float]:
        return self._computed[self._steps]

    def _play(self, seconds: float, phase: Phase) -> None:
        """Let ``seconds`` pass from the last lap's end, so that waking late once does not add up over the step."""
        self._spend(self._timer.last() + seconds)
        self._timer.lap(phase)

    def _enter(self, *, working: bool = True) -> None:
        if not self._inside:
            self._barrier.take_turn(self._rank, self._at_once, backwards=self._backwards)
            self._inside = True
            if working:
                self._pool.wake()

    def _leave(self) -> None:
        """Every rank has its turn between two exchanges, used or not."""
        if self._inside:
            self._pool.settle()
        self._enter(working=False)
        self._inside = False
        self._barrier.pass_turn(self._rank, self._at_once, backwards=self._backwards)

    def _exchange(self) -> None:
        """Carry out the exchanges that wait, while no rank measures anything."""
        self._leave()
        self._barrier.wait()
        for wire in self._held_back:
            wire.run()
        self._held_back.clear()
        self._barrier.wait()


def substituted_seconds(times: Substitute, work: CodecWork) -> float:
    """Returns the seconds that ``work`` takes where ``times`` were measured."""
    select = times.select_seconds(*work.selected) if work.selected else 0.0
    return (
        select + sum(map(times.encode_seconds, work.encoded)) + sum(map(times.decode_seconds, work.decoded))
    )


def asleep(until: float) -> None:
    """Leaves the processor to others, as if the rank had a core to spare for its exchanges."""
    sleep_until(until, clock=time.monotonic)


class Busy:
    """Keeps ``threads`` cores busy, as the work itself did.

    An exchange that runs beside then waits for a processor as it does beside the work: Gloo's thread, which moves the
    bytes, gets one up to some milliseconds late while all cores compute. Long operations without a system call are the
    point: as Linux returns from a call it gives the processor to a thread that waits for it, where arithmetic keeps it
    to the end of its slice. And they leave Python's interpreter to others, as a backward pass does.
    """

    def __init__(self, threads: int) -> None:
        self._row = torch.ones(threads * ELEMENTS_PER_THREAD)
        self._rows_per_s = 1e5
        for _ in range(3):
            self(time.monotonic() + 1e-3)

    def __call__(self, until: float) -> None:
        while (left := until - (begin := time.monotonic())) > _LAST_S:
            rows = max(1, int(0.8 * left * self._rows_per_s))
            self._row.expand(rows, -1).sum()
            self._rows_per_s = rows / (time.monotonic() - begin)
        while time.monotonic() < until:
            pass


class CudaClock:
    """CUDA events, for work that is only queued when the call returns; no synchronisation within the step."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        last = self.mark()
        last.synchronize()
        now = time.monotonic()
        return [now - mark.elapsed_time(last) / 1e3 for mark in marks]


def step_timer(device: torch.device) -> StepTimer:
    """Takes the laps of a step that ``device`` computes."""
    return StepTimer(CudaClock() if device.type == "cuda" else HostClock())
