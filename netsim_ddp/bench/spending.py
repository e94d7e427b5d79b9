"""How a replayed rank spends the measured time of a piece of its own work."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from netsim_ddp.workloads.emulated import sleep_until

Spend = Callable[[float, float], None]
"""Returns ``seconds`` (the second argument) after the moment ``since`` (the first, of CLOCK_MONOTONIC)."""

# What at::parallel_for gives one thread: an operation on so many elements per thread keeps every thread busy for some
# 20 us, within the core's own cache.
_ELEMENTS_PER_THREAD = 32768
_LAST_S = 50e-6


def asleep(since: float, seconds: float) -> None:
    """Leaves the processor to others: on a machine of its own, the rank would have a core left for its exchanges."""
    sleep_until(since + seconds, clock=time.monotonic)


class Busy:
    """Keeps ``threads`` cores busy, as the work itself did.

    An exchange that runs beside then waits for a processor as it does beside the work: Gloo's thread, which moves the
    bytes, gets one up to some milliseconds late while all cores compute. What it takes is not part of a single thread's
    time, so that the piece lasts as much longer as the work would have.
    """

    def __init__(self, threads: int) -> None:
        self._clock = time.thread_time if threads == 1 else time.monotonic
        self._angles = torch.rand(threads * _ELEMENTS_PER_THREAD)
        self._sines = torch.empty_like(self._angles)

    def __call__(self, since: float, seconds: float) -> None:
        end = self._clock() + seconds - (time.monotonic() - since)
        while end - self._clock() > _LAST_S:
            torch.sin(
                self._angles, out=self._sines
            )  # unlike a loop of Python's, it leaves the interpreter to others
        while self._clock() < end:
            pass
