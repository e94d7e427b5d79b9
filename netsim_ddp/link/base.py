"""What a link is: enter it and it exists, with one endpoint per rank; leave it and nothing is left.

Three mechanisms implement it: ``tc`` (namespaces and qdiscs, :mod:`netsim_ddp.link.tc.link`), ``bucket`` (a
user-space token bucket that the workers' process group pays, :mod:`netsim_ddp.link.bucket.clock`) and ``none``
(the host's loopback, unshaped). ``host`` is the real network of several hosts, taken as it is.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Literal, Self

from netsim_ddp.errors import LinkLost, LinkUnavailable
from netsim_ddp.link.descriptors import enough_descriptors
from netsim_ddp.link.spec import LinkSpec

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoint:
    """Where one rank lives: the address and interface it must use, and its namespace (None: the host's)."""

    rank: int
    address: str
    interface: str
    namespace: int | None = None


@dataclass(frozen=True)
class Counters:
    """One rank's interface since the link was made: bytes with headers, as the qdiscs count them."""

    tx_bytes: int
    rx_bytes: int
    drops: int
    retransmits: int


@dataclass(frozen=True)
class Exit:
    """How a process ended: a code, or the signal that killed it."""

    code: int | None
    signal: int | None

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit code {self.code}"
        try:
            return f"killed by {signal.Signals(self.signal).name}"
        except ValueError:
            return f"killed by signal {self.signal}"


class Process(ABC):
    """A process that was started inside the link."""

    @abstractmethod
    def poll(self) -> Exit | None:
        """How it ended, or None while it runs."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL, to it alone; nothing happens when it has already ended."""

    @abstractmethod
    def signal(self, number: int) -> None:
        """Signal it and the children in its process group; nothing happens when it has already ended."""


class Link(ABC):
    """An emulated network of ``spec.workers`` ranks."""

    mechanism: Literal["tc", "bucket", "none", "host"]
    description: str
    """One short word for the table: ``tc/tbf``, ``bucket``, ``none``."""

    def __init__(self, spec: LinkSpec) -> None:
        self.spec = spec
        self.endpoints: list[Endpoint] = []

    @abstractmethod
    def __enter__(self) -> Self:
        """Make the link.

        Raises:
            LinkUnavailable: it cannot be made on this machine; the message says what stands in the way.
        """

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the link and everything that runs in it away, whatever happened."""

    @abstractmethod
    def spawn(
        self,
        argv: Sequence[str],
        *,
        rank: int | None = None,
        env: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
        share_namespaces: bool = False,
        output: tuple[int, int] = (2, 2),
        named: bool = False,
    ) -> Process:
        """Start ``argv`` in ``rank``'s endpoint, or beside all of them (None).

        Args:
            env: additions to this process's environment.
            fds: inherited as descriptors 3, 4, ... of the new process.
            share_namespaces: the process also inherits every rank's namespace, under the descriptor
                numbers that ``endpoints[rank].namespace`` gives.
            output: the descriptors that become its stdout and stderr.
            named: the process's host is called :func:`netsim_ddp.link.environment.host_name`, which resolves to the
                rank's address, where the link can do that.
        """

    @abstractmethod
    def begin(self) -> None:
        """A link that changes starts from its first rates and with full credit. Called before the warm-up of each
        repeat, so that all of them see the same."""

    def counters(self) -> list[Counters] | None:
        """Every rank's interface counters; None where the link has no interfaces of its own."""
        return None

    def lost(self) -> LinkLost | None:
        """Why the link is gone, where it is: its ranks' deaths are no fault of theirs."""
        return None

    def bare(self) -> AbstractContextManager[object]:
        """Within it no packet is delayed or lost on purpose, so that TCP fills the line at once."""
        return nullcontext()


class _HostProcess(Process):
    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child

    def poll(self) -> Exit | None:
        code = self._child.poll()
        if code is None:
            return None
        return Exit(code, None) if code >= 0 else Exit(None, -code)

    def kill(self) -> None:
        self._child.kill()

    def signal(self, number: int) -> None:
        if self._child.poll() is None:
            os.killpg(self._child.pid, number)


class HostLink(Link):
    """No namespaces: every rank on the host's loopback. ``bucket`` and ``none`` both stand on it."""

    _NAMES: ClassVar = {
        "bucket": "the bucket link",
        "none": "a link that is not shaped",
        "host": "the hosts' own network",
    }

    def __init__(self, spec: LinkSpec, mechanism: Literal["bucket", "none", "host"]) -> None:
        super().__init__(spec)
        self.mechanism = mechanism
        self.description = mechanism
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        if beyond := self.beyond():
            raise LinkUnavailable(
                f"{self._NAMES[self.mechanism]} has no {' and no '.join(beyond)}",
                hint="use --link tc, on Linux",
            )
        enough_descriptors(self.spec.workers)
        loopback = "lo" if sys.platform.startswith("linux") else "lo0"
        self.endpoints = [Endpoint(rank, "127.0.0.1", loopback) for rank in range(self.spec.workers)]
        return self

    def begin(self) -> None:
        """The workers' own group begins the bucket's time."""

    def beyond(self) -> list[str]:
        """What the spec asks for and this link cannot do. The bucket completes operations of the process group: it
        sees no packets that could be lost or queued, and of TCP it has a model of cubic's."""
        spec = self.spec
        wanted: dict[str, object] = {
            "loss": spec.loss,
            "queue": spec.queue_s,
            "congestion control": spec.congestion,
            "reordering": spec.reorder,
            f"delay by {spec.delay_by}": spec.delay_by != "auto",
        }
        if self.mechanism == "none":
            wanted |= {"delay": spec.delay_s, "slow rank": spec.slow_ranks}
            wanted |= {"timeline": spec.timeline, "credit": spec.credit_bytes}
        return [name for name, value in wanted.items() if value]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
        for child in self._children:
            child.wait(timeout=10)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        rank: int | None = None,
        env: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
        share_namespaces: bool = False,
        output: tuple[int, int] = (2, 2),
        named: bool = False,
    ) -> Process:
        del rank, share_namespaces, named  # all endpoints are the same place
        # subprocess passes descriptors under their own numbers; a shell-free trampoline renumbers them.
        trampoline = [sys.executable, "-I", "-S", "-c", _RENUMBER, ",".join(map(str, fds)), *argv]
        child = subprocess.Popen(
            trampoline,
            env={**os.environ, **(env or {})},
            pass_fds=tuple(fds),
            stdin=subprocess.DEVNULL,
            stdout=output[0],
            stderr=output[1],
            start_new_session=True,
        )
        self._children.append(child)
        _log.debug("started process %s: %s", child.pid, " ".join(argv)[:160])
        return _HostProcess(child)


_RENUMBER = """
import fcntl, os, sys
fds = [int(fd) for fd in sys.argv[1].split(",") if fd]
end = 3 + len(fds)
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, end) for fd in fds]
for target, fd in enumerate(high, 3):
    os.dup2(fd, target)
for fd in {*fds, *high}:
    if fd >= end:
        os.close(fd)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask Linux for this signal when the parent of this process dies; elsewhere the lifeline socket must do."""
    if sys.platform.startswith("linux"):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number, 0, 0, 0)


def lifeline_pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair of stream sockets: when one side's process dies, the other side reads EOF."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
