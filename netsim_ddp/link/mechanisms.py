"""The links without namespaces, and which mechanism makes a link."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Self

from netsim_ddp.errors import LinkUnavailable, UsageError
from netsim_ddp.link.base import Endpoint, Exit, Link, Process, enough_descriptors
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.link.tc.link import TcLink

_log = logging.getLogger(__name__)
_NAMES = {
    "bucket": "the bucket link",
    "none": "a link that is not shaped",
    "host": "the hosts' own network",
}


@dataclass(eq=False)
class _HostProcess(Process):
    _child: subprocess.Popen[bytes]

    def poll(self) -> Exit | None:
        code = self._child.poll()
        return None if code is None else Exit.of_code(code)

    def kill(self) -> None:
        self._child.kill()

    def signal(self, number: int) -> None:
        if self._child.poll() is None:
            os.killpg(self._child.pid, number)


class HostLink(Link):
    """No namespaces: every rank on the host's loopback. ``bucket`` and ``none`` are both made so."""

    def __init__(self, spec: LinkSpec, mechanism: Literal["bucket", "none", "host"]) -> None:
        super().__init__(spec)
        self.description = self.mechanism = mechanism
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        if missing := self.unsupported():
            raise LinkUnavailable(
                f"{_NAMES[self.mechanism]} has no {' and no '.join(missing)}", hint="use --link tc, on Linux"
            )
        enough_descriptors(self.spec.workers)
        self.endpoints = [
            Endpoint(rank, "127.0.0.1", "lo" if sys.platform.startswith("linux") else "lo0")
            for rank in range(self.spec.workers)
        ]
        return self

    def begin(self) -> None:
        """The workers' own group begins the bucket's time."""

    def unsupported(self) -> list[str]:
        """Returns what the spec asks for and this link cannot do. The bucket completes operations of the process group:
        it sees no packets that could be lost or queued, and of TCP it has a model of cubic's."""
        spec = self.spec
        wanted: dict[str, object] = {
            "loss": spec.loss,
            "queue": spec.queue_s,
            "congestion control": spec.congestion,
            "reordering": spec.reorder,
            f"delay by {spec.delay_by}": spec.delay_by != "auto",
        }
        if self.mechanism == "none":
            wanted |= {
                "delay": spec.delay_s,
                "slow rank": spec.slow_ranks,
                "timeline": spec.timeline,
                "credit": spec.credit_bytes,
            }
        return [name for name, value in wanted.items() if value]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.kill()
        for child in self._children:
            child.wait(timeout=10)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
        output: tuple[int, int] = (2, 2),
        **_: object,
    ) -> Process:
        """As :meth:`Link.spawn`: all endpoints are the same here, so that the other options change nothing."""
        # subprocess passes descriptors under their own numbers; a shell-free trampoline renumbers them.
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _RENUMBER, ",".join(map(str, fds)), *argv],
            env={**os.environ, **(env or {})},
            pass_fds=tuple(fds),
            stdin=subprocess.DEVNULL,
            stdout=output[0],
            stderr=output[1],
            start_new_session=True,
        )
        self._children.append(child)
        _log.debug("started process %s: %.160s", child.pid, " ".join(argv))
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


def choose(spec: LinkSpec, how: str, note: Callable[[str], None], *, beside: TcLink | None = None) -> Link:
    """Returns the link for ``how``, not entered yet: the mechanism that was asked for (tc, bucket or none), or with
    ``auto`` the most real one that works here; ``note`` hears why ``auto`` took it.

    Args:
        beside: a tc link whose helper shall hold this one too, if this is one.
    """
    if how == "tc":
        return TcLink(spec, beside)
    if how == "host":
        raise UsageError(
            "--link host needs ranks that were started on their hosts",
            hint="start netsim with torchrun or srun",
        )
    if how == "none":
        return HostLink(spec, "none")
    bucket = HostLink(spec, "bucket")
    if how == "bucket":
        return bucket
    if spec.tcp != "linux":
        note(f"link: bucket, because only it has --tcp {spec.tcp}")
        return bucket
    try:
        with TcLink(replace(spec, workers=1)):
            note("link: tc, because namespaces and tbf work here")
            return TcLink(spec, beside)
    except LinkUnavailable as error:
        if missing := bucket.unsupported():
            without = ", or leave it away: --loss 0" if spec.loss else ""
            raise LinkUnavailable(
                f"{error.message}, and the bucket link has no {missing[0]}", hint=f"{error.hint}{without}"
            ) from None
        note(f"link: bucket, because {error.message}")
        return bucket
