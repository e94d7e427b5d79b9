"""When something happened: on the host, or on a GPU, whose work the host has only queued."""

from __future__ import annotations

import time
from typing import Any

import torch

Mark = Any
"""A moment, of the clock that made it."""


class HostClock:
    """``time.perf_counter``, which on Linux is one clock for all processes."""

    each = True
    """Whether a mark costs so little that every parameter can have one."""

    def mark(self) -> Mark:
        return time.perf_counter()

    def settle(self) -> None:
        """Called before the first question: every mark is final."""

    def between(self, earlier: Mark, later: Mark) -> float:
        return float(later - earlier)

    def on_host(self, mark: Mark) -> float:
        return float(mark)


class DeviceClock:
    """CUDA events in the stream that is current: when the device came to them. Nothing waits for the device before
    :meth:`settle`."""

    each = False

    def __init__(self) -> None:
        self._here = 0.0
        self._last: Mark = None

    def mark(self) -> Mark:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def settle(self) -> None:
        self._last = self.mark()
        torch.cuda.synchronize()
        self._here = time.perf_counter()

    def between(self, earlier: Mark, later: Mark) -> float:
        return float(earlier.elapsed_time(later)) / 1e3

    def on_host(self, mark: Mark) -> float:
        return self._here - self.between(mark, self._last)


def clock_for(device: torch.device) -> HostClock | DeviceClock:
    return DeviceClock() if device.type == "cuda" else HostClock()
