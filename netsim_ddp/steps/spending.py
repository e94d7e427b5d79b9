"""How a replayed rank spends the measured time of a piece of its own work."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from netsim_ddp.workloads.emulated import sleep_until

Spend = Callable[[float], None]
"""Returns at the moment that it is given, in seconds of CLOCK_MONOTONIC."""

# What torch gives one thread at least: so many elements per thread occupy every thread, within the core's own cache.
_ELEMENTS_PER_THREAD = 32768
_LAST_S = 50e-6


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
        self._row = torch.ones(threads * _ELEMENTS_PER_THREAD)
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
