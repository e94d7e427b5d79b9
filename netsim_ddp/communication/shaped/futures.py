"""Works and futures that complete when the emulated link would have delivered, and never earlier."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from netsim_ddp.link.bucket.operations import Deadline

_NO_TIMEOUT = timedelta(0)
COARSE_S = 0.2e-3  # a condition variable wakes up this late at worst; the rest is slept exactly


def sleep_until(deadline: float) -> None:
    """Return at ``deadline`` (seconds of ``time.monotonic``), never before; the GIL is free meanwhile."""
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(left)


class DeadlineTimer:
    """Runs callbacks at absolute times, never early. One thread waits, and completes what is due itself.

    Before it runs a callback it hands the waiting to another thread: a callback may be a user's ``then``
    that itself waits for a later deadline.
    """

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        lock = threading.Lock()
        self._changed, self._seat = threading.Condition(lock), threading.Condition(lock)
        self._led = False
        self._spare = 0

    def at(self, deadline: float, callback: Callable[[], None]) -> None:
        """Run ``callback`` at ``deadline`` (seconds of ``time.monotonic``), at once if that has passed."""
        with self._changed:
            heapq.heappush(self._due, (deadline, next(self._order), callback))
            if self._due[0][0] == deadline:
                self._changed.notify()
            if not self._led and not self._spare:
                self._start()

    def _start(self) -> None:
        self._spare += 1
        threading.Thread(target=self._serve, name="netsim-deadlines", daemon=True).start()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while self._led:
                    self._seat.wait()
                self._led = True
                self._spare -= 1
                while not self._due or (left := self._due[0][0] - time.monotonic()) > COARSE_S:
                    self._changed.wait(left - COARSE_S if self._due else None)
                deadline, _, callback = heapq.heappop(self._due)
                self._led = False
                if self._spare:
                    self._seat.notify()
                else:
                    self._start()
            sleep_until(deadline)
            callback()
            with self._changed:
                self._spare += 1


_timers: dict[int, DeadlineTimer] = {}


def timer() -> DeadlineTimer:
    """This process's timer; threads do not survive a fork, so a child makes its own."""
    return _timers.setdefault(os.getpid(), DeadlineTimer())


class Lateness:
    """What the host added: operations whose data moved later than the emulated link would have had it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.host_late_s, self.host_late_count = 0.0, 0

    def note(self, moved: float, deadline: float) -> None:
        if moved > deadline:
            with self._lock:
                self.host_late_s += moved - deadline
                self.host_late_count += 1


class ShapedWork(dist.Work):
    """A collective whose future completes at its deadline."""

    def __init__(self, future: torch.futures.Future[object]) -> None:
        super().__init__()
        self._future = future

    def wait(self, timeout: timedelta = _NO_TIMEOUT) -> bool:
        if timeout > _NO_TIMEOUT:
            give_up = time.monotonic() + timeout.total_seconds()
            while not self._future.done():
                if time.monotonic() > give_up:
                    raise RuntimeError(f"the operation did not finish within {timeout.total_seconds():g} s")
                time.sleep(COARSE_S)
        self._future.wait()
        return True

    def synchronize(self) -> None:
        self.wait()

    def get_future(self) -> torch.futures.Future[object]:
        return self._future

    def is_completed(self) -> bool:
        return self._future.done()

    def is_success(self) -> bool:
        return self._future.done() and self.exception() is None

    def exception(self) -> BaseException | None:
        try:
            self._future.value()
        except RuntimeError as error:
            return error
        return None

    def result(self) -> object:  # type: ignore[override] # torch's stub knows lists of tensors alone
        return self._future.value()


class WaitedWork(dist.Work):
    """An operation that Gloo completes only when it is waited for (messages, reduce-scatter).

    The waiting thread itself sleeps until the deadline. ``get_future`` starts a thread that waits.
    """

    def __init__(self, real: dist.Work, collect: Deadline, late: Lateness, result: object) -> None:
        super().__init__()
        self._real, self._collect, self._late, self._result = real, collect, late, result
        self._lock = threading.Lock()
        self._finished = False
        self._error: BaseException | None = None
        self._future: torch.futures.Future[object] | None = None

    def wait(self, timeout: timedelta = _NO_TIMEOUT) -> bool:
        with self._lock:
            if self._finished:
                return True
            asked = time.monotonic()
            try:
                self._real.wait(timeout)
            except RuntimeError as error:
                self._error = error
                raise
            moved = time.monotonic()
            while (deadline := self._collect()) is None:
                time.sleep(COARSE_S)
            # Whoever asks late cannot know when the data came; it was late only if it kept the asker waiting.
            self._late.note(moved, max(asked, deadline))
            sleep_until(deadline)
            self._finished = True
        return True

    def synchronize(self) -> None:
        self.wait()

    def get_future(self) -> torch.futures.Future[object]:
        if self._future is None:
            future = self._future = torch.futures.Future()

            def complete() -> None:
                try:
                    self.wait()
                except RuntimeError as error:
                    future.set_exception(error)
                else:
                    future.set_result(self._result)

            threading.Thread(target=complete, name="netsim-wait", daemon=True).start()
        return self._future

    def is_completed(self) -> bool:
        return self._finished or self._error is not None

    def is_success(self) -> bool:
        return self._finished

    def exception(self) -> BaseException | None:
        return self._error

    def result(self) -> object:  # type: ignore[override] # torch's stub knows lists of tensors alone
        return self._result

    def source_rank(self) -> int:
        return int(self._real._source_rank())
