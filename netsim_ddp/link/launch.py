"""Any program on the link: one process per rank, its output passed on line by line, and one end for all of them.

Ranks run until all have ended, one fails, the time is up or the user interrupts. Whatever is left then is asked to
end (SIGTERM), and killed with the link a few seconds later.
"""

from __future__ import annotations

import os
import selectors
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

from netsim_ddp.errors import INTERRUPTED, RankTimeout
from netsim_ddp.link.base import Endpoint, Exit, Link, Process, socket_environment
from netsim_ddp.units import format_duration

MASTER_PORT = 29500  # torchrun's default; no other program is in rank 0's namespace
GRACE_S = 5.0  # for the others to end by themselves, when one has failed
DRAIN_S = 1.0  # a background process may hold a rank's output open for ever
POLL_S = 0.02
READ_BYTES = 1 << 16
LINE_LIMIT = 1 << 20


@dataclass
class LaunchedRank:
    """One rank's process and how it went. ``ended_here``: it was still running when another failed or the time was
    up, and was told to end."""

    rank: int
    process: Process
    began: float
    exit: Exit | None = None
    wall_s: float = 0.0
    ended_here: bool = False


@dataclass
class Outcome:
    """How a launch ended: every rank, and the exit code that stands for all of them."""

    ranks: list[LaunchedRank]
    first_failure: LaunchedRank | None = None
    interrupted: bool = False
    timed_out: bool = False
    wall_s: float = 0.0

    @property
    def exit_code(self) -> int:
        """The first failing rank's, 128 + n where signal n killed it, as a shell has it."""
        if self.interrupted:
            return INTERRUPTED
        if self.timed_out:
            return RankTimeout.exit_code
        ended = None if self.first_failure is None else self.first_failure.exit
        if ended is None:
            return 0
        return ended.code if ended.code is not None else 128 + (ended.signal or 0)


def rank_environment(endpoints: Sequence[Endpoint], rank: int, *, one_per_node: bool) -> dict[str, str]:
    """What ``torchrun`` would set, and what binds the rank's sockets to its interface.

    Args:
        one_per_node: every rank is the only one of its node: local rank 0 of 1.
    """
    world = len(endpoints)
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": "0" if one_per_node else str(rank),
        "LOCAL_WORLD_SIZE": "1" if one_per_node else str(world),
        "GROUP_RANK": str(rank) if one_per_node else "0",
        "NODE_RANK": str(rank) if one_per_node else "0",
        "MASTER_ADDR": endpoints[0].address,
        "MASTER_PORT": str(MASTER_PORT),
        **socket_environment(endpoints[rank]),
    }


def launch(
    link: Link,
    argv: Sequence[str],
    out: BinaryIO,
    err: BinaryIO,
    *,
    one_per_node: bool = False,
    timeout_s: float | None = None,
    defaults: Mapping[str, str] | None = None,
    added: Mapping[str, str] | None = None,
) -> Outcome:
    """Run ``argv`` once per rank; returns how it went. Ctrl-C reaches the ranks as SIGINT; a second one ends
    the waiting for them.

    Args:
        out, err: where the ranks' stdout and stderr go, each line behind its rank's number.
        defaults: environment for the ranks where this process's own does not say otherwise.
        added: environment for the ranks, whatever this process's own says.
    """
    began = time.monotonic()
    ranks, streams = [], []
    for endpoint in link.endpoints:
        environment = {
            **{key: value for key, value in (defaults or {}).items() if key not in os.environ},
            **(added or {}),
            **rank_environment(link.endpoints, endpoint.rank, one_per_node=one_per_node),
        }
        reads, writes = zip(*(os.pipe() for _ in (out, err)), strict=True)
        try:
            process = link.spawn(
                argv, rank=endpoint.rank, env=environment, output=(writes[0], writes[1]), named=True
            )
        finally:
            for write in writes:
                os.close(write)
        ranks.append(LaunchedRank(endpoint.rank, process, time.monotonic()))
        streams += [_Stream(endpoint.rank, read, to) for read, to in zip(reads, (out, err), strict=True)]
    outcome = Outcome(ranks)
    running = _Running(outcome, streams, began + timeout_s if timeout_s else None)
    try:
        with _interrupt_noted(running):
            running.until_ended()
    finally:
        running.close()
    outcome.interrupted = running.interrupted
    outcome.wall_s = time.monotonic() - began
    return outcome


@contextmanager
def _interrupt_noted(running: _Running) -> Iterator[None]:
    """The first Ctrl-C is seen between two pieces of output, not in the middle of one, which would then be passed on
    twice or not at all; the second one ends the waiting, as a KeyboardInterrupt."""

    def note(number: int, frame: object) -> None:
        del number, frame
        if running.interrupted:
            raise KeyboardInterrupt
        running.interrupted = True

    if (
        threading.current_thread() is not threading.main_thread()
    ):  # who may not set a handler, and gets no signal
        yield
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class _Stream:
    """One rank's stdout or stderr on its way to ours."""

    rank: int
    fd: int
    to: BinaryIO
    rest: bytearray = field(default_factory=bytearray)

    def read(self) -> bool:
        """Pass on the lines that are there; returns False at the end. A carriage return ends a line too: that is how
        progress bars are drawn."""
        data = os.read(self.fd, READ_BYTES)
        self.rest += data
        while self.rest:
            ends = [at for at in (self.rest.find(b"\n"), self.rest.find(b"\r")) if at >= 0]
            if not ends and data and len(self.rest) < LINE_LIMIT:
                break
            end = min(ends) + 1 if ends else len(self.rest)
            line = bytes(self.rest[:end])
            del self.rest[:end]
            self.to.write(b"[%d] " % self.rank + line + (b"" if ends else b"\n"))
        self.to.flush()
        return bool(data)


class _Running:
    """The event loop of one launch."""

    def __init__(self, outcome: Outcome, streams: Sequence[_Stream], deadline: float | None) -> None:
        self._outcome, self._deadline = outcome, deadline
        self.interrupted = False
        self._selector = selectors.DefaultSelector()
        for stream in streams:
            self._selector.register(stream.fd, selectors.EVENT_READ, stream)

    def until_ended(self) -> None:
        """Until all ranks have ended; or one failed, the time is up or the user interrupts, and the rest is ended
        too."""
        outcome = self._outcome
        while self._left() and outcome.first_failure is None and not outcome.timed_out:
            self._poll()
            if self.interrupted:
                self.end(signal.SIGINT)
                return
            if self._left() and outcome.first_failure is None and self._deadline is not None:
                outcome.timed_out = time.monotonic() > self._deadline
        self.end(signal.SIGTERM)

    def end(self, number: int) -> None:
        """Tell the ranks that are left to end, give them a moment for it, and pass on the last output of all."""
        for rank in self._left():
            rank.ended_here = True
            rank.process.signal(number)
        deadline = time.monotonic() + GRACE_S
        while self._left() and time.monotonic() < deadline:
            self._poll()
        deadline = time.monotonic() + DRAIN_S
        while self._selector.get_map() and time.monotonic() < deadline:
            self._pass_on(POLL_S)

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            self._close(key.data)
        self._selector.close()

    def _left(self) -> list[LaunchedRank]:
        return [rank for rank in self._outcome.ranks if rank.exit is None]

    def _poll(self) -> None:
        self._pass_on(POLL_S)
        for rank in self._left():
            rank.exit = rank.process.poll()
            rank.wall_s = time.monotonic() - rank.began
            failed = rank.exit is not None and rank.exit.code != 0
            if failed and not rank.ended_here and self._outcome.first_failure is None:
                self._outcome.first_failure = rank

    def _pass_on(self, seconds: float) -> None:
        """Pass on what is written within ``seconds``."""
        for key, _ in self._selector.select(seconds):
            if not key.data.read():
                self._close(key.data)

    def _close(self, stream: _Stream) -> None:
        self._selector.unregister(stream.fd)
        os.close(stream.fd)


def timeout_error(outcome: Outcome, timeout_s: float) -> RankTimeout:
    """What to say when the time was up."""
    late = [str(rank.rank) for rank in outcome.ranks if rank.ended_here]
    who = f"rank {late[0]} was" if len(late) == 1 else f"ranks {', '.join(late)} were"
    return RankTimeout(
        f"{who} still running after {format_duration(timeout_s)}",
        rank=int(late[0]),
        hint="a longer --timeout, if the program needs it",
    )
