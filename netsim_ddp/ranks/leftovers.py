"""Processes that a user's code started in a rank and left behind: found and ended with the rank."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
END_S = 5.0


def adopt() -> None:
    """Become the parent of what dies with a parent below this process; where Linux can do that."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def below() -> set[int]:
    """This process's children, and all others of the session that it leads.

    Empty where /proc is none or tells of another PID namespace: what runs in one of its own ends with that.
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
        try:
            # pid (name) state ppid group session ...; a name may hold anything, brackets too
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if me in (int(fields[1]), int(fields[3])) and pid != me:
            found.add(pid)
    return found


def end(keep: Collection[int]) -> None:
    """End what is :func:`below`, but for ``keep``, and what that leaves behind in turn."""
    deadline = time.monotonic() + END_S
    while (found := below().difference(keep)) and time.monotonic() < deadline:
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in found:
            with suppress(ChildProcessError):  # a grandchild, which its parent has to wait for
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.002)
