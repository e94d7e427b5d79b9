"""Synchronises the ranks of one host between steps by shared memory and semaphores: not a byte on the link."""

from __future__ import annotations

import mmap
import multiprocessing
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from netsim_ddp.link.semaphores import shared

# Sleeping ranks wake one after another; a common start this far ahead finds all of them awake.
LEAD_S = 0.004
LEAD_PER_RANK_S = 0.25e-3
"""Of more ranks than sixteen each takes so much longer."""


class HostBarrier:
    """Made before the ranks are forked. No rank polls: on few cores that would slow those still at work.

    Waiting has a deadline, so that no rank waits for ever for one that has died.

    Raises:
        EnvironmentFault: this system has no shared memory for semaphores.
    """

    def __init__(self, workers: int, timeout_s: float) -> None:
        context = multiprocessing.get_context("fork")
        self._memory = mmap.mmap(-1, 8)
        self._turn = shared(context.Lock)
        self._barrier = shared(lambda: context.Barrier(workers))
        self._calls = [shared(lambda: context.Semaphore(0)) for _ in range(workers)]
        self._timeout_s = timeout_s
        self._lead_s = max(LEAD_S, LEAD_PER_RANK_S * workers)

    def wait(self) -> None:
        """Wait until every rank has called it.

        Raises:
            threading.BrokenBarrierError: a rank did not come in time.
        """
        self._barrier.wait(self._timeout_s)

    def start_together(self, rank: int) -> float:
        """Wait for all ranks, and agree on a moment a little ahead (CLOCK_MONOTONIC seconds) at which all go on."""
        self.wait()
        if rank == 0:
            struct.pack_into("d", self._memory, 0, time.monotonic() + self._lead_s)
        self.wait()
        return float(struct.unpack_from("d", self._memory)[0])

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let one rank at a time run what is inside.

        Raises:
            TimeoutError: the rank inside did not come out in time.
        """
        if not self._turn.acquire(timeout=self._timeout_s):
            raise TimeoutError("another rank held the host for too long")
        try:
            yield
        finally:
            self._turn.release()

    def take_turn(self, rank: int, at_once: int, *, backwards: bool) -> None:
        """Begin this rank's part of a round: ranks enter by number (or backwards), ``at_once`` of them at a time.

        A round begins after :meth:`wait` and ends with the next one. In between every rank takes exactly one turn, with
        the same ``at_once`` and ``backwards``, and hands it on by :meth:`pass_turn`.

        Raises:
            TimeoutError: the ranks before did not come out in time.
        """
        if self._position(rank, backwards=backwards) >= at_once and not self._calls[rank].acquire(
            timeout=self._timeout_s
        ):
            raise TimeoutError("the ranks before held the host for too long")

    def pass_turn(self, rank: int, at_once: int, *, backwards: bool) -> None:
        """End this rank's part of a round; the rank ``at_once`` positions later may begin."""
        follower = self._position(rank, backwards=backwards) + at_once
        if follower < len(self._calls):
            self._calls[self._position(follower, backwards=backwards)].release()

    def _position(self, rank: int, *, backwards: bool) -> int:
        """Returns the position of ``rank`` in the order, and likewise the rank at a position."""
        return len(self._calls) - 1 - rank if backwards else rank
