"""Starts the ranks of a repeat inside the link, watches them, and ends all of them when one fails.

Every wait has a deadline: ranks report progress, and when none goes on for too long the one that is furthest behind
is named. The first failure wins; ranks that only lost their peer are not blamed.
"""

from __future__ import annotations

import dataclasses
import logging
import selectors
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from netsim_ddp.errors import EnvironmentFault, NetsimError, RankError, RankTimeout, UsageError
from netsim_ddp.link.base import Exit, Link, Process, module_command
from netsim_ddp.link.messages import Lines, encoded, send
from netsim_ddp.ranks.channel import COMPUTING
from netsim_ddp.ranks.jobs import Job, settings_to_json, to_json
from netsim_ddp.results.ready import ReadyTimes
from netsim_ddp.scenario import Settings
from netsim_ddp.units import format_duration
from netsim_ddp.workloads.files import provide

_log = logging.getLogger(__name__)
START_TIMEOUT_S = 180.0
GRACE_S = 1.0
POLL_S = 0.25
SPINS = 20_000
"""So often an idle thread of GNU's OpenMP looks for work before it sleeps: for a third of a millisecond, within which
the next small operation of a row comes. Its own default is 300,000."""
SERVER = "the process that starts the workers"
PRELOADED = {"model", "dataset", "data_dir", "text"}
"""The settings that decide what a fork server imports and reads before it forks."""


@dataclasses.dataclass
class _RankState:
    """What the command knows of one rank."""

    rank: int
    lines: Lines
    step: int = -1
    doing: str = "starting"
    at: tuple[int, int] = (-1, 0)
    record: dict[str, Any] | None = None
    finished: bool = False


@dataclasses.dataclass
class _Failure:
    rank: int
    cause: str
    message: str
    hint: str | None = None
    details: str = ""
    doing: str = ""

    @property
    def blame(self) -> int:
        """Smaller comes first: a killed rank, then one with an error of its own, then one that lost a peer."""
        return {"killed": 0, "usage": 1, "environment": 1, "rank": 1, "peer": 2}[self.cause]

    def error(self) -> NetsimError:
        if self.cause == "usage":
            return UsageError(self.message, hint=self.hint)
        if self.cause == "environment":
            return EnvironmentFault(self.message, hint=self.hint)
        return RankError(
            f"rank {self.rank} failed while {self.doing}: {self.message}",
            rank=self.rank,
            details=self.details,
            hint=self.hint,
        )


Gathered = Callable[[str, list[Any]], None]
"""Called when all ranks have reached a point, with its name and their values, before they go on."""


class Launcher:
    """The fork server inside ``link``; :meth:`run` runs one repeat in fresh processes.

    Args:
        settings: number of threads, deadline, and what the fork server imports and reads beforehand for all ranks:
            the model and the data set that they name, no data set where they are not resolved.
        environment: variables of the ranks' processes, beside those that netsim sets.
    """

    def __init__(
        self, link: Link, settings: Settings, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self._environment = {**_environment(settings.threads), **(environment or {})}
        self._link, self._settings = link, settings
        self._control: socket.socket | None = None
        self._warned: set[str] = set()
        self._sent: Settings | None = None
        self._server: Process | None = None
        self._lines: Lines | None = None
        self.ready: ReadyTimes | None = None
        """When a backward pass of the model has its gradients ready, once its ranks have been asked: kept for the runs
        that follow, as their recorded gradients are."""
        self.parameters: int | None = None
        """Of the model, once a rank has been asked; 0 where they are not in this machine's memory but a GPU's."""
        self.starts = 0
        """Repeats started so far; news of how a rank ended carries its repeat's number."""

    def __enter__(self) -> Launcher:
        # Here and not in the fork server, which is inside the link: no way leads to the internet from there.
        settings = self._settings
        provide(settings.dataset or "", settings.data_dir, download=settings.download, apart=True)
        ours, theirs = socket.socketpair()
        with theirs:
            self._server = self._link.spawn(
                module_command(
                    "netsim_ddp.ranks.fork_server", "3", settings.model_dump_json(include=PRELOADED)
                ),
                env=self._environment,
                fds=[theirs.fileno()],
                share_namespaces=True,
            )
        self._control, self._lines = ours, Lines(ours)
        self._await_ready(ours, self._lines)
        _log.info("the fork server has imported torch and read its data")
        return self

    def _await_ready(self, control: socket.socket, lines: Lines) -> None:
        control.settimeout(START_TIMEOUT_S)
        try:
            while (messages := lines.receive()) == []:
                pass
        except TimeoutError:
            raise EnvironmentFault(f"importing torch took more than {START_TIMEOUT_S:g} s") from None
        if messages is None:
            raise self.lost() or EnvironmentFault(self._server_gone(), hint="netsim doctor says more")
        answer = messages[0]
        if answer["kind"] == "refused":
            kind = UsageError if answer["cause"] == "usage" else EnvironmentFault
            raise kind(answer["message"], hint=answer["hint"])
        if answer["kind"] == "broken":
            last = answer["details"].strip().splitlines()[-1]
            raise EnvironmentFault(f"the workers cannot start: {last}", hint="netsim doctor says more")

    def __exit__(self, *_: object) -> None:
        if self._control is not None:
            self._control.close()  # the server reads the end of file, ends its ranks and itself
        deadline = time.monotonic() + 5
        while self._server is not None and self._server.poll() is None:
            if time.monotonic() > deadline:
                self._server.kill()
                return
            time.sleep(0.01)

    def run(self, jobs: Sequence[Job], gathered: Gathered) -> list[dict[str, Any]]:
        """Run one repeat, one job per rank.

        Returns:
            The ranks' records, in rank order.

        Raises:
            RankError: a rank raised or was killed; its traceback is in ``details``.
            RankTimeout: no rank made progress for too long.
        """
        self.starts += 1
        _log.info("forking %d ranks for %s", len(jobs), jobs[0].label)
        ranks = [_RankState(rank, Lines(ours)) for rank, ours in enumerate(self.start(jobs))]
        try:
            return _EventLoop(self, ranks, gathered, self._settings.timeout_s).run()
        finally:
            for rank in ranks:
                rank.lines.connection.close()
            self.end_ranks()

    def start(self, jobs: Sequence[Job]) -> list[socket.socket]:
        """Start one process per job, and return our ends of their channels."""
        pairs = [socket.socketpair() for _ in jobs]
        try:
            self.fork(jobs, [theirs for _, theirs in pairs], self.starts)
        finally:
            for _, theirs in pairs:
                theirs.close()
        return [ours for ours, _ in pairs]

    def fork(self, jobs: Sequence[Job], channels: Sequence[socket.socket], start: int) -> None:
        """Have one process per job forked, which talks on the channel of the same number, for repeat ``start``."""
        assert self._control is not None
        settings = jobs[0].settings
        # The fork server keeps the last settings that it was sent: they are not sent again for every repeat.
        changed = settings_to_json(settings) if settings is not self._sent else None
        self._sent = settings
        order = {"kind": "fork", "start": start, "jobs": to_json(jobs), "settings": changed}
        try:
            send(self._control, order, [channel.fileno() for channel in channels])
        except (BrokenPipeError, ConnectionResetError):
            raise self.lost() or RankError(self._server_gone()) from None
        except TimeoutError:
            raise RankError(f"{SERVER} takes no order for {START_TIMEOUT_S:g} s") from None

    def warn(self, rank: int, text: str) -> None:
        """Show a warning of Python's that ``rank`` has raised: once, however many ranks and repeats raise it."""
        if text not in self._warned:
            self._warned.add(text)
            _log.warning("rank %d warns: %s", rank, text)

    def lost(self) -> NetsimError | None:
        """Why the link is gone, where it is."""
        return self._link.lost()

    def _server_gone(self) -> str:
        """Which process is gone, and how it ended as far as that can still be told."""
        deadline = time.monotonic() + GRACE_S
        while self._server is not None and time.monotonic() < deadline:
            if (ended := self._server.poll()) is not None:
                return f"{SERVER} died: {ended}"
            time.sleep(0.01)
        return f"{SERVER} died"

    def servers(self) -> list[Lines]:
        """The connections on which it is said how ranks ended."""
        assert self._lines is not None
        return [self._lines]

    def gone(self, server: Lines) -> str:
        """What to say when ``server``, one of :meth:`servers`, has hung up."""
        return self._server_gone() if server is self._lines else "a rank's host is gone"

    def end_ranks(self) -> None:
        """End the ranks of the last repeat that are left, silently."""
        assert self._control is not None
        with suppress(OSError):  # the server is gone, and its ranks with it
            send(self._control, {"kind": "end"})


class _EventLoop:
    """One repeat's event loop."""

    def __init__(
        self, launcher: Launcher, ranks: list[_RankState], gathered: Gathered, timeout_s: float
    ) -> None:
        self._launcher, self._start = launcher, launcher.starts
        self._ranks, self._gathered = ranks, gathered
        self._timeout_s = self._patience_s = timeout_s
        self._waiting: dict[str, dict[int, Any]] = {}
        self._failures: list[_Failure] = []
        self._fail_at = float("inf")
        self._last = self._began = time.monotonic()
        self._selector = selectors.DefaultSelector()
        for server in launcher.servers():
            self._selector.register(server.connection, selectors.EVENT_READ, server)
        for rank in ranks:
            rank.lines.connection.settimeout(timeout_s)
            self._selector.register(rank.lines.connection, selectors.EVENT_READ, rank)

    def run(self) -> list[dict[str, Any]]:
        with self._selector:
            while not all(rank.finished for rank in self._ranks):
                for key, _ in self._selector.select(POLL_S):
                    if isinstance(key.data, Lines):
                        self._from_server(key.data)
                    else:
                        self._from_rank(key.data)
                self._check_deadlines()
        return [rank.record for rank in self._ranks if rank.record is not None]

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        if now > self._fail_at:
            raise min(self._failures, key=lambda failure: failure.blame).error()
        if now - self._last > self._patience_s and not self._failures:
            behind = min(self._ranks, key=lambda rank: rank.at)
            where = f"at step {behind.step}, " if behind.step >= 0 else ""
            raise RankTimeout(
                f"rank {behind.rank} made no progress for {format_duration(self._patience_s)}: {where}"
                f"{behind.doing}",
                rank=behind.rank,
                hint="a longer --timeout, if the step is really that long",
            )

    def _fail(self, failure: _Failure) -> None:
        """Keep a failure, and wait a moment for its cause: a peer's error can come before news of a killed rank."""
        _log.info("rank %d failed while %s: %s", failure.rank, failure.doing, failure.message)
        self._failures.append(failure)
        self._fail_at = min(self._fail_at, time.monotonic() + GRACE_S)

    def _from_server(self, server: Lines) -> None:
        messages = server.receive()
        if messages is None:
            raise self._launcher.lost() or RankError(self._launcher.gone(server))
        for message in messages:
            if message["kind"] == "refused" and message["start"] == self._start:
                raise EnvironmentFault(message["message"], hint=message["hint"])
            if message["kind"] != "exit" or message["start"] != self._start:
                continue  # a rank of the repeat before may end after its result was taken
            rank = self._ranks[message["rank"]]
            ended = Exit(message["code"], message["signal"])
            _log.debug("rank %d ended: %s", rank.rank, ended)
            if ended.signal is not None:
                self._fail(_Failure(rank.rank, "killed", str(ended), doing=rank.doing))
            elif not rank.finished and not any(failure.rank == rank.rank for failure in self._failures):
                self._fail(_Failure(rank.rank, "rank", f"ended early with {ended}", doing=rank.doing))

    def _from_rank(self, rank: _RankState) -> None:
        messages = rank.lines.receive()
        if messages is None:
            self._selector.unregister(rank.lines.connection)  # the server will say how it ended
            return
        for message in messages:
            self._last = time.monotonic()
            self._handle(rank, message)

    def _handle(self, rank: _RankState, message: dict[str, Any]) -> None:
        kind = message.pop("kind")
        if kind == "progress":
            rank.step, rank.doing = message["step"], message["doing"]
            rank.at = (rank.step, 0 if rank.doing.startswith(COMPUTING) else 1)
        elif kind == "gather":
            self._gather(rank, message["point"], message["value"])
        elif kind == "warning":
            self._launcher.warn(rank.rank, message["text"])
        elif kind == "result":
            rank.record = message["record"]
        elif kind == "error":
            self._fail(_Failure(rank.rank, **message))

    def _gather(self, rank: _RankState, point: str, value: Any) -> None:
        rank.at = (rank.step, 2)
        received = self._waiting.setdefault(point, {})
        received[rank.rank] = value
        if len(received) < len(self._ranks):
            return
        del self._waiting[point]
        values = [received[number] for number in range(len(self._ranks))]
        _log.debug("all ranks are at %r after %.2f s", point, time.monotonic() - self._began)
        if point == "built":
            _log.info(
                "%d ranks are ready, %.1f s after they were forked",
                len(values),
                time.monotonic() - self._began,
            )
            # A step on a slow link may take longer than a hang is given.
            self._patience_s = self._timeout_s + 10 * max(fact["ideal_s"] for fact in values)
        self._gathered(point, values)
        answer = encoded({"values": values})  # once: all ranks get what all have said
        for each in self._ranks:
            each.finished = point == "done"
            with suppress(BrokenPipeError, ConnectionResetError):  # it died since; the server will say how
                each.lines.connection.sendall(answer)


def _environment(threads: int) -> dict[str, str]:
    """What must be set before torch and numpy are imported."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # A rank's idle threads must not spin for long on cores that another rank needs.
        "GOMP_SPINCOUNT": str(SPINS),
        "OMP_WAIT_POLICY": "PASSIVE",  # runtimes other than GNU's
        "OPENBLAS_NUM_THREADS": "1",  # its threads would start with the import, before the fork
        "NUMBA_NUM_THREADS": str(threads),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking for GPUs must not initialise CUDA before the fork
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # a namespace has no resolver, and c10d warns of it once per connection
    }
