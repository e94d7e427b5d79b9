"""Threads of ranks that take turns on one host: awake and apart within a turn, asleep before the next one.

On a machine of its own a rank's threads come to the codec from a backward pass, awake and each on a core. Here they
were asleep while others had their turns. Linux then often wakes them on the core of the thread that calls them, and
eight small matrix products take 11 ms in place of 0.7; woken for each by itself, as ``OMP_WAIT_POLICY=PASSIVE`` has
them, they take twice as long as awake. That is a method of many small operations as its users never run it: PowerSGD's
codec took 13 ms where it takes 6.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from contextlib import suppress

import torch

SETTLE_S = 1e-3
"""Longer than an idle thread looks for work before it sleeps (:data:`netsim_ddp.ranks.launcher.SPINS`)."""
ELEMENTS_PER_THREAD = 32768
"""What torch gives one thread at least: so many elements per thread occupy every thread, within its core's cache."""


class TurnThreads:
    """The threads of this process, of which ``threads`` work in a turn; with one of them nothing needs to be done."""

    def __init__(self, threads: int) -> None:
        self._row = torch.ones(2 * threads * ELEMENTS_PER_THREAD) if threads > 1 else None
        self._cores: set[int] = set()
        if threads > 1 and hasattr(os, "sched_getaffinity"):
            self._cores = os.sched_getaffinity(0)
            self._libc = ctypes.CDLL(None)

    def wake(self) -> None:
        """Have all threads but the caller's on other cores than its own, and awake."""
        if len(self._cores) > 1:
            self._allow(self._cores - {self._libc.sched_getcpu()})
        if self._row is not None:
            self._row.sum()

    def settle(self) -> None:
        """Wait until threads have gone to sleep, and let them go where the system wants them."""
        if self._row is not None:
            time.sleep(SETTLE_S)
        if len(self._cores) > 1:
            self._allow(self._cores)

    @staticmethod
    def _allow(cores: set[int]) -> None:
        for name in os.listdir("/proc/self/task"):
            if (thread := int(name)) != threading.get_native_id():
                with suppress(OSError):  # it has ended, or a container does not let threads be placed
                    os.sched_setaffinity(thread, cores)
