"""Runs a program as if nobody stood between: same streams, same signals, same exit code."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from netsim_ddp.errors import UsageError
from netsim_ddp.link.base import die_with_parent
from netsim_ddp.tools.programs import check_program

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_FROM_TERMINAL = 0x80  # SI_KERNEL: a key was pressed, and the program has got the signal itself
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_POLL_S = 0.1
GRACE_S = 10.0


def run_program(program: Sequence[str], env: Mapping[str, str], done: Callable[[], bool]) -> tuple[int, bool]:
    """Run ``program`` with ``env`` added to the environment; returns its exit code (128 + n where signal n ended it),
    and whether it was ended here.

    Args:
        done: asked several times a second; the program is ended, with all that it started, when this says so.

    Raises:
        UsageError: it cannot be started.
    """
    check_program(program[0])
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)  # so that what it leaves behind is found
    stopped = signalled = False
    with _blocked() as before:

        def in_child() -> None:
            die_with_parent(signal.SIGTERM)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

        try:
            child = subprocess.Popen(program, env={**os.environ, **env}, preexec_fn=in_child)  # noqa: PLW1509
        except OSError as error:
            raise UsageError(f"cannot run {program[0]!r}: {error.strerror}", hint="check the file") from error
        try:
            while child.poll() is None:
                got = signal.sigtimedwait({*_PASSED_ON, signal.SIGCHLD}, _POLL_S)
                if got is not None and got.si_signo != signal.SIGCHLD:
                    signalled = True
                    if got.si_code != _FROM_TERMINAL:
                        child.send_signal(got.si_signo)
                elif done():
                    stopped = True
                    break
        finally:
            if stopped or signalled or child.poll() is None:
                _end_all(child)
    code = child.returncode
    return 0 if stopped else code if code >= 0 else 128 - code, stopped


@contextmanager
def _blocked() -> Iterator[set[signal.Signals]]:
    """Signals wait until they are asked for, and none interrupts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED_ON, signal.SIGCHLD})
    try:
        yield {each for each in before if isinstance(each, signal.Signals)}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_all(child: subprocess.Popen[bytes]) -> None:
    """End the program and all that it started: asked first (it tells its own), then killed."""
    deadline = time.monotonic() + GRACE_S
    if child.poll() is None:
        child.terminate()
    told: set[int] = set()
    while child.poll() is None or _descendants():
        if child.poll() is not None:  # who is left then was not told to end by it
            for pid in _descendants() - told:
                _signal(pid, signal.SIGTERM)
                told.add(pid)
        if time.monotonic() > deadline:
            for pid in _descendants():
                _signal(pid, signal.SIGKILL)
            child.wait()
            if time.monotonic() > deadline + GRACE_S:
                return
        _reap(child.pid)
        time.sleep(0.02)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _reap(own: int) -> None:
    """Take what the orphans, which are this process's children now, leave. The program itself is Popen's."""
    for pid in _descendants():
        if pid != own:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue


def _descendants() -> set[int]:
    """All processes that this one's children started, and they."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = set(), [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found
