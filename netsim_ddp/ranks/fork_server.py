"""Imports torch once, then forks ranks: ``python -m netsim_ddp.ranks.fork_server FD SETTINGS``.

Eight processes that each import torch take 20 s on two cores; eight forks take none. Forking is safe because this
process has one thread and touches neither CUDA nor a parallel region. It listens on the socket FD, and ends itself
with all its ranks when the other side is gone.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from netsim_ddp.errors import EnvironmentFault, UsageError
from netsim_ddp.link.base import Exit, die_with_parent
from netsim_ddp.link.messages import Lines, send
from netsim_ddp.ranks.jobs import Job, from_json, settings_from_json
from netsim_ddp.scenario import Settings

PR_SET_CHILD_SUBREAPER = 36
END_S = 5.0


def prepare(settings: Settings) -> None:
    """Import what every rank needs, read its data and compile the kernels, in one thread.

    Args:
        settings: the model and the data set are those of the ranks, all else is of no consequence.
    """
    import torch
    import torch._dynamo  # the first optimizer that a process makes imports it, and sympy with it: two seconds

    from netsim_ddp.compression import kernels
    from netsim_ddp.ranks import rank  # noqa: F401 - what every rank imports
    from netsim_ddp.ranks.barrier import HostBarrier
    from netsim_ddp.workloads import data, models

    HostBarrier(1, 1.0)  # what a machine cannot deliver is said before anything is built
    torch.set_num_threads(1)
    kernels.warm()
    models.preload(settings.model)
    data.preload(settings.dataset or "", data_dir=settings.data_dir, text=settings.text)
    with suppress(FileNotFoundError):  # only Linux says how many threads run
        if (threads := len(os.listdir("/proc/self/task"))) > 1:
            raise RuntimeError(f"{threads} threads run after the imports: forking would not be safe")


def serve(control: socket.socket) -> None:
    """Fork the ranks of one repeat after another, and tell how each ended."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    ranks: dict[int, tuple[int, int]] = {}  # by process: the number of its job, and of its repeat
    files: list[tuple[int, int]] = []
    settings: Settings | None = None
    own = descendants()  # such as multiprocessing's resource tracker, which tidies up after us
    if sys.platform.startswith("linux"):
        # What a rank started and left behind becomes a child of this process, which can then end it.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _end_with_the_command(ranks, own)
    orders = Lines(control)
    while True:
        readable = select.select([control.fileno(), wake_read], [], [])[0]
        if wake_read in readable:
            os.read(wake_read, 4096)
            _reap(control, ranks)
        if control.fileno() in readable:
            requests = orders.receive()
            if requests is None:
                _kill(ranks, own)
                return
            for request in requests:
                _kill(ranks, own)
                if request["kind"] == "fork":
                    # An "end" and the "fork" after it may arrive together: only a fork has descriptors.
                    descriptors, orders.fds = orders.fds, []
                    if request["settings"] is not None:
                        settings = settings_from_json(request["settings"])
                    assert settings is not None
                    _fork(
                        control,
                        from_json(request["jobs"], settings),
                        request["start"],
                        descriptors,
                        ranks,
                        files,
                        own,
                    )


def _fork(
    control: socket.socket,
    jobs: Sequence[Job],
    start: int,
    fds: list[int],
    ranks: dict[int, tuple[int, int]],
    files: list[tuple[int, int]],
    own: set[int],
) -> None:
    from netsim_ddp.link.bucket.operations import OperationTable
    from netsim_ddp.ranks import rank as forked
    from netsim_ddp.ranks.barrier import HostBarrier
    from netsim_ddp.ranks.jobs import Shared

    forked.task_of(jobs[0].task)  # imported here once, not by every rank
    bucket = jobs[0].mechanism == "bucket" and len(jobs) > 1
    try:
        barrier = HostBarrier(len(jobs), 4 * jobs[0].settings.timeout_s)
        files += [(anonymous_file(), anonymous_file()) for _ in range(len(jobs) - len(files))]
        operations = OperationTable(len(jobs)) if bucket else None
    except EnvironmentFault as error:
        cause = {"cause": "environment", "message": error.message, "hint": error.hint}
        send(control, {"kind": "refused", "start": start, **cause})
        return
    own |= descendants()
    # A rank's collector would write to every object that it inherits, and so make a copy of a hundred megabytes.
    gc.freeze()
    server = os.getpid()
    for number, job in enumerate(jobs):
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                control.close()
                for other, fd in enumerate(fds):
                    if other != number:
                        os.close(fd)
                shared = Shared(barrier, operations, *files[number], files[0][0])
                die_with_parent()
                if os.getppid() != server:
                    os._exit(1)  # it died before Linux was asked to tell of it
                forked.run(socket.socket(fileno=fds[number]), job, shared)
            except BaseException:  # noqa: BLE001 - a fork must never return into the server's loop
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        ranks[pid] = number, start
    for fd in fds:
        os.close(fd)


def _reap(control: socket.socket, ranks: dict[int, tuple[int, int]]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if (known := ranks.pop(pid, None)) is not None:
            ended = Exit.of_code(os.waitstatus_to_exitcode(status))
            rank, start = known
            # A command that is gone is heard of at the next turn, as the end of its messages.
            with suppress(BrokenPipeError, ConnectionResetError):
                send(control, {"kind": "exit", "rank": rank, "start": start, **asdict(ended)})


def _end_with_the_command(ranks: dict[int, tuple[int, int]], own: set[int]) -> None:
    """Have the command's death end this process by SIGTERM, which leaves time to end what the ranks have started."""

    def die(number: int, _: object) -> None:
        # Linux sends it once for each thread of the command that this process belonged to in turn: a second one must
        # not cut the clearing short.
        signal.signal(number, signal.SIG_IGN)
        _kill(ranks, own)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, die)
    die_with_parent(signal.SIGTERM)


def _kill(ranks: dict[int, tuple[int, int]], own: set[int]) -> None:
    """End the ranks that are left, and what they have started, without a message: the command no longer wants one."""
    for pid in ranks:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in ranks:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
    ranks.clear()
    end_descendants(own)


def descendants() -> set[int]:
    """This process's children, and all others of the session that it leads.

    Empty where there is no /proc, or one that tells of another PID namespace: what runs in one of its own ends with it.
    """
    me = os.getpid()
    try:
        if os.readlink("/proc/self") != str(me):
            return set()
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return set()
    found = set()
    for pid in pids:
        with suppress(OSError):  # it has ended meanwhile
            # pid (name) state ppid group session ...; a name may hold anything, brackets too
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            if me in (int(fields[1]), int(fields[3])) and pid != me:
                found.add(pid)
    return found


def end_descendants(keep: Collection[int]) -> None:
    """End all :func:`descendants` but ``keep``, and what they leave behind in turn: a user's code may have started
    processes in a rank."""
    deadline = time.monotonic() + END_S
    while (found := descendants().difference(keep)) and time.monotonic() < deadline:
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in found:
            with suppress(ChildProcessError):  # a grandchild, which its parent has to wait for
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.002)


def anonymous_file() -> int:
    """A descriptor of memory without a name, gone with the last process that holds it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("netsim-gradients")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def main(fd: int, settings: Settings) -> NoReturn:
    die_with_parent()
    control = socket.socket(fileno=fd)
    control.set_inheritable(False)
    with suppress(BlockingIOError):
        if control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"":
            sys.exit(1)  # the command died before Linux was asked to tell of it
    try:
        prepare(settings)
    except (UsageError, EnvironmentFault) as error:
        kind = "usage" if isinstance(error, UsageError) else "environment"
        send(control, {"kind": "refused", "cause": kind, "message": error.message, "hint": error.hint})
        sys.exit(1)
    except BaseException:  # noqa: BLE001 - the command prints it
        send(control, {"kind": "broken", "details": traceback.format_exc()})
        sys.exit(1)
    send(control, {"kind": "ready"})
    serve(control)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Settings.model_validate_json(sys.argv[2]))
