"""The process that holds the namespaces of a ``tc`` link: stdlib only, one thread, PID 1 of its own world.

``python -m netsim_ddp.link.tc.helper FD MODE`` enters new pid, net and mount namespaces (and a user namespace
when MODE is ``user``), remounts /proc, and serves requests on the socket FD. The command holds the other end and
nobody else does, so that its end of file means that the command is gone: the helper then exits, and because it is
PID 1 the kernel kills every process of its pid namespace, the network namespaces lose their last user, and
interfaces and qdiscs go with them. A SIGKILL of the command, of this process's parent or of this process all
end the same way.

Requests are JSON, one per line, with descriptors attached where needed; see :class:`Helper`.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from netsim_ddp.link.base import die_with_parent
from netsim_ddp.link.messages import Lines, send

CLONE_NEWNS, CLONE_NEWUTS = 0x00020000, 0x04000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MNT_DETACH = 2
HOSTS = "/etc/hosts"
COMMAND_TIMEOUT_S = 30.0
PASSED = 16
"""A child gets at most so many descriptors, as its first ones; a namespace has a higher number, the same in every
process."""

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: Any) -> None:
    if getattr(_libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def enter_namespace(fd: int) -> None:
    """Move the calling thread into the network namespace that ``fd`` refers to (setns(2))."""
    _call("setns", fd, CLONE_NEWNET)


def isolate(user_namespace: bool) -> None:
    """Leave the host's pid, net and mount namespaces; children of this process are then in the new ones."""
    uid, gid = os.getuid(), os.getgid()
    _call("unshare", CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWNS | (CLONE_NEWUSER if user_namespace else 0))
    if user_namespace:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            Path("/proc/self", name).write_text(text, encoding="ascii")


def _remount_proc() -> None:
    """Show this pid namespace's own /proc. Where a container masks parts of /proc the kernel refuses; the
    processes then see the host's numbers, which nothing here depends on."""
    _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    with suppress(PermissionError):
        _call("mount", b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None)


def name_host(names: list[list[str]]) -> None:
    """Give this process a host name, the first of ``names`` (address, name), and an /etc/hosts that knows all of them.

    Programs find out by it which host they are on: torchrun takes the rendezvous' endpoint for its own where the name
    of its host resolves to that address. Where a container forbids mounts, the host's own name stays, which it can
    resolve.
    """
    known = Path(HOSTS).read_bytes()
    _call("unshare", CLONE_NEWNS)
    try:
        _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        # A file that lies nowhere: on a disk in memory, which is hidden again as soon as the file is bound.
        _call("mount", b"netsim", b"/proc", b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, b"mode=755,size=4m")
    except PermissionError:
        return
    Path("/proc/hosts").write_bytes(
        "".join(f"{address}\t{name}\n" for address, name in names).encode() + known
    )
    os.chmod("/proc/hosts", 0o644)
    _call("mount", b"/proc/hosts", HOSTS.encode(), None, MS_BIND, None)
    _call("umount2", b"/proc", MNT_DETACH)
    _call("unshare", CLONE_NEWUTS)
    own = names[0][1].encode()
    _call("sethostname", own, len(own))


class Helper:
    """Serves the requests of one command. Every public method is a request; its arguments are the message's."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.home = self._own_namespace()
        self.ranks: list[int] = []
        self.children: set[int] = set()
        self.vital: dict[int, str] = {}
        """What the processes without which the link is none are called."""
        self.lost = False

    @staticmethod
    def _own_namespace() -> int:
        with open("/proc/self/ns/net", "rb") as file:
            return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, PASSED)

    def namespaces(self, count: int) -> dict[str, Any]:
        """Make ``count`` more anonymous network namespaces; returns their descriptors in this process, and the
        number that the other requests know the first of them by."""
        first = len(self.ranks)
        for _ in range(count):
            _call("unshare", CLONE_NEWNET)
            self.ranks.append(self._own_namespace())
        enter_namespace(self.home)
        return {"fds": self.ranks[first:], "first": first}

    def run(self, argv: list[str], rank: int | None, text: str = "") -> dict[str, Any]:
        """Run a short command in ``rank``'s namespace (None: the bridge's) and return what it printed."""
        namespace = self.home if rank is None else self.ranks[rank]
        try:
            done = subprocess.run(
                argv,
                input=text,
                text=True,
                capture_output=True,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
                pass_fds=tuple(self.ranks),
                preexec_fn=lambda: enter_namespace(namespace),
            )
        except FileNotFoundError:
            return {"code": 127, "out": "", "err": f"{argv[0]}: not found"}
        except subprocess.TimeoutExpired:
            return {"code": 124, "out": "", "err": f"{argv[0]}: no answer within {COMMAND_TIMEOUT_S:g} s"}
        return {"code": done.returncode, "out": done.stdout, "err": done.stderr.strip()}

    def read(self, path: str, rank: int) -> dict[str, Any]:
        """A file of /proc as ``rank``'s namespace shows it (sysfs would show the namespace it was mounted in)."""
        enter_namespace(self.ranks[rank])
        try:
            return {"text": Path(path).read_text(encoding="ascii")}
        finally:
            enter_namespace(self.home)

    def spawn(
        self,
        argv: list[str],
        rank: int | None,
        env: dict[str, str],
        cwd: str,
        share_namespaces: bool,
        names: list[list[str]],
        vital: str | None,
        fds: list[int],
    ) -> dict[str, Any]:
        """Start a long-lived process; ``fds`` (attached) become its descriptors 0, 1, 2, 3, ... With ``names``, as
        (address, host name) of all, its host has a name of its own: the first one's. If one that is called ``vital``
        fails, this process ends, and with it all that runs on the link."""
        namespace = self.home if rank is None else self.ranks[rank]
        if pid := os.fork():
            self.children.add(pid)
            if vital is not None:
                self.vital[pid] = vital
            for fd in fds:
                os.close(fd)
            return {"pid": pid}
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            os.chdir(cwd)
            for fd in self.ranks if share_namespaces else ():
                os.set_inheritable(fd, True)
            enter_namespace(namespace)
            if names:
                name_host(names)
            place_descriptors(fds)
            os.execvpe(argv[0], argv, env)
        except OSError as error:
            os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        finally:
            os._exit(127)

    def kill(self, pid: int, number: int) -> dict[str, Any]:
        """Signal a process that :meth:`spawn` started, or as ``-pid`` its group, while it is still ours to signal."""
        if abs(pid) in self.children:
            with suppress(ProcessLookupError):  # a child that has not made its group yet, or has just ended
                os.kill(pid, number)
        return {}

    def reap(self) -> None:
        """Collect the dead (as PID 1: everybody's) and tell the command about those that it started."""
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                if pid not in self.children:
                    continue
                self.children.discard(pid)
                code = os.waitstatus_to_exitcode(status)
                send(self.control, {"event": "exit", "pid": pid, "code": code})
                if (name := self.vital.pop(pid, None)) is not None and code != 0:
                    send(self.control, {"event": "lost", "what": name, "code": code})
                    self.lost = True

    def serve(self) -> None:
        """Say that the namespaces are made, then answer requests until the command hangs up or the link is lost."""
        send(self.control, {"answer": {}})
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        requests = Lines(self.control)
        while not self.lost:
            readable = select.select([self.control.fileno(), wake_read], [], [])[0]
            if wake_read in readable:
                os.read(wake_read, 4096)
                self.reap()
            if self.control.fileno() in readable:
                if (messages := requests.receive()) is None:
                    return
                for message in messages:  # the command awaits each answer, so the descriptors are this one's
                    fds, requests.fds = requests.fds, []
                    self.answer(message, fds)

    def answer(self, request: dict[str, Any], fds: list[int]) -> None:
        handlers: dict[str, Callable[..., dict[str, Any]]] = {
            "namespaces": self.namespaces,
            "run": self.run,
            "read": self.read,
            "spawn": lambda **arguments: self.spawn(fds=fds, **arguments),
            "kill": self.kill,
        }
        try:
            send(self.control, {"answer": handlers[request.pop("request")](**request)})
        except OSError as error:
            send(self.control, {"error": str(error)})


def place_descriptors(fds: list[int]) -> None:
    """Make ``fds``, at most :data:`PASSED`, the descriptors 0, 1, 2, ... of this process, inheritable, whatever their
    numbers are now."""
    for target, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, PASSED) for fd in fds]):
        os.dup2(fd, target)
    for fd in fds:
        if fd >= len(fds):
            os.close(fd)


def main(fd: int, user_namespace: bool) -> NoReturn:
    die_with_parent()
    control = socket.socket(fileno=fd)
    control.set_inheritable(False)
    try:
        isolate(user_namespace)
    except OSError as error:
        send(control, {"error": str(error)})
        os._exit(1)
    die_with_parent()  # again: gaining the capabilities of a user namespace cleared it
    if pid := os.fork():
        control.close()
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            os.kill(os.getpid(), os.WTERMSIG(status))  # end as it ended: the command says how
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    die_with_parent()
    try:
        _remount_proc()
        # A command that dies abruptly resets the connection instead of closing it.
        with suppress(ConnectionResetError, BrokenPipeError):
            Helper(control).serve()
    except BaseException:  # noqa: BLE001 - PID 1 must exit whatever happened, and say why on the way out
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "user")
