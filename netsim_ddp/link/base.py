"""What a link is: enter it and it exists, with one endpoint per rank; leave it and nothing is left.

Three mechanisms implement it: ``tc`` (namespaces and qdiscs, :mod:`netsim_ddp.link.tc.link`), ``bucket`` (a
user-space token bucket that the workers' process group pays, :mod:`netsim_ddp.link.bucket.clock`) and ``none``
(the host's loopback, unshaped). ``host`` is the real network of several hosts, taken as it is.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from netsim_ddp.errors import EnvironmentFault, LinkLost
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.units import counted

OWN_DESCRIPTORS, DESCRIPTORS_PER_RANK = 40, 6
"""Of a command, its fork server or a rank: what it needs for itself, and for each rank beside it: a connection of the
process group, a channel, a namespace, recorded gradients, a pipe to ``tc``, and one to spare."""

USUAL_DESCRIPTORS = 1024
"""The soft limit of most systems, which no program minds."""

ROOT = Path(__file__).parents[2]
"""The folder that netsim_ddp is imported from."""


@dataclass(frozen=True)
class Endpoint:
    """What one rank must use: its address and interface, and its namespace (None: the host's)."""

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

    def since(self, before: Counters) -> Counters:
        """Returns what has been counted after ``before``."""
        return Counters(*(new - old for new, old in zip(astuple(self), astuple(before), strict=True)))


@dataclass(frozen=True)
class Exit:
    """How a process ended: a code, or the signal that killed it."""

    code: int | None
    signal: int | None

    @classmethod
    def of_code(cls, code: int) -> Self:
        """What :class:`subprocess.Popen` calls the return code: negative where a signal ended the process."""
        return cls(code, None) if code >= 0 else cls(None, -code)

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit code {self.code}"
        names = {each.value: each.name for each in signal.Signals}
        return f"killed by {names.get(self.signal, f'signal {self.signal}')}"


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
        vital: str | None = None,
    ) -> Process:
        """Start ``argv`` in ``rank``'s endpoint, or beside all of them (None).

        Args:
            env: additions to this process's environment.
            fds: inherited as descriptors 3, 4, ... of the new process.
            share_namespaces: the process also inherits every rank's namespace, under the descriptor
                numbers that ``endpoints[rank].namespace`` gives.
            output: the descriptors that become its stdout and stderr.
            named: the process's host is called :func:`host_name`, which resolves to the rank's address, where the link
                can do that.
            vital: what to call the process where the link is lost when it fails.
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

    def give_room(self) -> bool:
        """Lose less of the rate where this host wakes up late, at the price of messages that are earlier after idle.

        Returns whether there was more to give.
        """
        return False

    def bare(self) -> AbstractContextManager[object]:
        """Within it no packet is delayed or lost on purpose, so that TCP fills the line at once."""
        return nullcontext()


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask Linux for this signal when the parent of this process dies; elsewhere it must watch its socket."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, number, 0, 0, 0)  # 1 is PR_SET_PDEATHSIG


def enough_descriptors(workers: int) -> None:
    """Raise this process's limit, which its children inherit, where it is lower than what is usual or than what
    ``workers`` ranks need.

    Raises:
        EnvironmentFault: the hard limit does not allow it.
    """
    needed = OWN_DESCRIPTORS + DESCRIPTORS_PER_RANK * workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(needed, USUAL_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise EnvironmentFault(
            f"this process may have {hard} files open (ulimit -Hn), and {counted(workers, 'worker')} need {needed}",
            hint=f"have the limit raised to {needed}, with ulimit -n, LimitNOFILE= or docker run --ulimit nofile="
            f"{needed}; or use fewer --workers",
        )
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
    )


def host_name(rank: int) -> str:
    """What the host of ``rank`` is called on a link with a network for each rank."""
    return f"netsim-{rank}"


def socket_environment(endpoint: Endpoint) -> dict[str, str]:
    """Returns the environment variables that bind a program's sockets to its rank's interface, for Gloo, TensorPipe
    and NCCL. Unset, Gloo resolves the hostname and may end up on the loopback, and NCCL passes
    data between ranks of one machine through memory, both past the link."""
    return {
        "GLOO_SOCKET_IFNAME": endpoint.interface,
        "TP_SOCKET_IFNAME": endpoint.interface,
        "NCCL_SOCKET_IFNAME": f"={endpoint.interface}",
        "NCCL_NET": "Socket",
        "NCCL_IB_DISABLE": "1",
        "NCCL_P2P_DISABLE": "1",
        "NCCL_SHM_DISABLE": "1",
        "NCCL_HOSTID": host_name(endpoint.rank),
    }


def module_command(name: str, *words: str) -> list[str]:
    """Returns the command that runs module ``name`` with ``words`` in a new process.

    A user's ``types.py`` or ``random.py`` in the current folder is not the standard library's: that folder is left out
    (``-P``), unless it is where netsim itself lies.
    """
    return [sys.executable, *([] if ROOT.samefile(os.getcwd()) else ["-P"]), "-m", name, *words]
