"""One interpreter for all tests, which has imported torch, and forks what would else import it again.

Importing torch takes a fork server longer than all else that a test has it do. :func:`forking` has this process's
links on the host's loopback fork their fork servers from that interpreter, and ``python -m tests.forking command
WORDS`` is ``python -m netsim_ddp WORDS`` that does. They are processes with all that a fork server has, but for their
parent: tests of how one is started, and of what is left when the command is killed, use the command as it is.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from netsim_ddp.link.base import Process, die_with_parent
from netsim_ddp.link.mechanisms import HostLink, _HostProcess
from netsim_ddp.ranks.launcher import _environment

ROOT = Path(__file__).parent.parent
ADDRESS = "NETSIM_TEST_FORKS"
MODULE = "netsim_ddp.ranks.fork_server"
THREADS = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"}
OF_THE_FORK = {
    "PYTHONPATH",
    "COLUMNS",
    "LINES",
    "GLOO_SOCKET_IFNAME",
    "TMPDIR",
    "TORCHINDUCTOR_CACHE_DIR",
    ADDRESS,
    *THREADS,
}
"""Beside pytest's own, variables that nothing has read before the fork, or, of threads, that every rank overrides, and
one that importing torch sets. One that differs otherwise needs an interpreter of its own."""
TARGETS = {"fork_server": (3, 1, 2), "ranks": (0, 1, 2)}
"""What is forked, and the numbers that its descriptors have."""
REQUEST_BYTES = 1 << 20


@functools.cache
def address() -> str:
    """Where the interpreter listens. The first call starts one, unless the process above this one has."""
    if (given := os.environ.get(ADDRESS)) is not None:
        return given
    folder = tempfile.TemporaryDirectory(prefix="netsim-forks-")
    path = os.path.join(folder.name, "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(16)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, "serve", str(listener.fileno())],
            env=os.environ | _environment(1) | {"PYTHONPATH": str(ROOT)},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
        )

    def close() -> None:
        process.kill()
        process.wait(timeout=10)
        folder.cleanup()

    atexit.register(close)
    return path


class Fork:
    """What a link asks of a ``subprocess.Popen``, of a process that the interpreter has forked."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid, self.returncode = pid, None
        self._connection = connection

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.returncode = json.loads(self._connection.recv(REQUEST_BYTES) or "-9")
            self._connection.close()
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)


def fork(
    role: str, word: str, env: Mapping[str, str], fds: Sequence[int], at: str | None = None
) -> Fork | None:
    """Have a ``role`` of :data:`TARGETS` forked with ``word``, this process's environment and folder, ``env`` too, and
    ``fds``; None where the environment needs an interpreter of its own."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(at or address())
    request = {"role": role, "word": word, "env": {**os.environ, **env}, "folder": os.getcwd()}
    socket.send_fds(connection, [json.dumps(request).encode()], fds)
    if (pid := json.loads(connection.recv(REQUEST_BYTES))) is not None:
        return Fork(connection, pid)
    connection.close()
    return None


@contextmanager
def forking(path: str | None = None) -> Iterator[None]:
    """Links of this process on the host's loopback have fork servers forked by the interpreter that listens at
    ``path``, this process's own if not given; all else they start as ever."""
    at, spawn = path or address(), HostLink.spawn

    def spawned(
        link: HostLink,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
        output: tuple[int, int] = (2, 2),
        **other: Any,
    ) -> Process:
        child = fork("fork_server", argv[-1], env or {}, [*fds, *output], at) if MODULE in argv else None
        if child is not None:
            link._children.append(child)  # type: ignore[arg-type]
            return _HostProcess(child)  # type: ignore[arg-type]
        return spawn(link, argv, env=env, fds=fds, output=output, **other)

    with mock.patch.object(HostLink, "spawn", spawned):
        yield


def serve(listener: socket.socket) -> None:
    """The interpreter: fork whatever is asked for, and tell each asker the process and how it ended."""
    own = dict(os.environ)  # before torch adds to it
    from netsim_ddp.ranks import fork_server
    from netsim_ddp.steps import worker  # noqa: F401
    from netsim_ddp.training import task  # noqa: F401
    from tests.distributed import ranks

    ranks.prepare()
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    asked: dict[int, socket.socket] = {}
    while True:
        readable = select.select([listener, wake_read], [], [])[0]
        if wake_read in readable:
            os.read(wake_read, 4096)
            with suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    with suppress(BrokenPipeError), asked.pop(ended[0]) as connection:
                        connection.send(json.dumps(os.waitstatus_to_exitcode(ended[1])).encode())
        if listener not in readable:
            continue
        connection, _ = listener.accept()
        message, fds, *_ = socket.recv_fds(connection, REQUEST_BYTES, 8)
        request = json.loads(message)
        given: dict[str, str] = request["env"]
        differs = {name for name, _ in own.items() ^ given.items()} - OF_THE_FORK
        pid = None if any(not name.startswith("PYTEST") for name in differs) else os.fork()
        if pid == 0:
            try:
                for each in (listener, connection, *asked.values()):
                    each.close()
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.setsid()
                above = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in fds]
                for fd in {*fds, wake_read, wake_write}:
                    os.close(fd)
                for fd, target in zip(above, TARGETS[request["role"]], strict=True):
                    os.dup2(fd, target)
                    os.close(fd)
                os.chdir(request["folder"])
                tempfile.tempdir = None
                os.environ.clear()
                os.environ.update(given)
                found = given.get("PYTHONPATH", "").split(os.pathsep)
                sys.path[:] = [*filter(None, found), *(each for each in sys.path if each != str(ROOT))]
                if request["role"] == "ranks":
                    warnings.simplefilter("ignore")
                    ranks.main()
                    os._exit(0)
                fork_server.main(3, fork_server.Settings.model_validate_json(request["word"]))
            except SystemExit as end:
                os._exit(end.code if isinstance(end.code, int) else 1)
            except BaseException:  # noqa: BLE001 - a fork must never return into the loop
                traceback.print_exc()
                os._exit(1)
        connection.send(json.dumps(pid).encode())
        for fd in fds:
            os.close(fd)
        if pid is None:
            connection.close()
        else:
            asked[pid] = connection


def main(role: str, *words: str) -> None:
    if role == "serve":
        die_with_parent()
        serve(socket.socket(fileno=int(words[0])))
    else:
        from netsim_ddp import cli

        sys.argv[:] = ["netsim", *words]
        with forking(os.environ[ADDRESS]):
            cli.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
