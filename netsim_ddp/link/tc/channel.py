"""The command's end of the socket to a link's helper: start one, ask it, hang up."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from netsim_ddp.errors import LinkLost, LinkUnavailable, NetsimError
from netsim_ddp.link.base import Exit, Process, module_command
from netsim_ddp.link.messages import Lines, send

ANSWER_TIMEOUT_S = 60.0
_log = logging.getLogger(__name__)


class RemoteProcess(Process):
    """A process that the helper started; its end is an event on the channel."""

    def __init__(self, channel: Channel, pid: int) -> None:
        self._channel, self._pid = channel, pid

    def poll(self) -> Exit | None:
        self._channel.drain()
        # The helper is PID 1 of its processes: the kernel has killed them all when it is gone.
        return self._channel.exits.get(
            self._pid, Exit(None, signal.SIGKILL) if self._channel.broken else None
        )

    def kill(self) -> None:
        if self.poll() is None:
            self._channel.ask("kill", pid=self._pid, number=signal.SIGKILL)

    def signal(self, number: int) -> None:
        if self.poll() is None:
            self._channel.ask("kill", pid=-self._pid, number=number)


class Channel:
    """The command's end of the helper's socket, and the helper process itself."""

    def __init__(self, control: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.control, self.process = control, process
        self.exits: dict[int, Exit] = {}
        self.broken = False
        self.lost: LinkLost | None = None
        self._lines, self._waiting = Lines(control), deque[dict[str, Any]]()

    def ask(self, request: str, fds: Sequence[int] = (), **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer; events that come first are kept."""
        self.control.settimeout(ANSWER_TIMEOUT_S)
        try:
            send(self.control, {"request": request, **arguments}, fds)
        except (BrokenPipeError, ConnectionResetError):
            self.drain()  # the last events that it sent
            raise self._died() from None
        except TimeoutError:
            raise _silent() from None
        return self.receive_answer()

    def receive_answer(self) -> dict[str, Any]:
        while (message := self._receive(ANSWER_TIMEOUT_S)) is not None:
            if "error" in message:
                raise HelperError(message["error"])
            if "answer" in message:
                answer: dict[str, Any] = message["answer"]
                return answer
        raise _silent()

    def drain(self) -> None:
        """Take in every event that has arrived, without waiting."""
        try:
            while self._receive(0) is not None:
                pass
        except LinkUnavailable:
            self.broken = True

    def _receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message; None when none is complete within ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not self._waiting:
            self.control.settimeout(max(0.0, deadline - time.monotonic()))
            try:
                messages = self._lines.receive()
            except (TimeoutError, BlockingIOError):
                return None
            if messages is None:
                raise self._died()
            self._waiting += messages
        message = self._waiting.popleft()
        if message.get("event") == "exit":
            ended = self.exits[message["pid"]] = Exit.of_code(message["code"])
            _log.debug("process %s ended: %s", message["pid"], ended)
        if message.get("event") == "lost":
            ended = Exit.of_code(message["code"])
            self.lost = LinkLost(f"{message['what']} died: {ended}", hint="run it again")
        return message

    def _died(self) -> LinkLost:
        if self.lost is not None:
            return self.lost
        how = ""
        with suppress(subprocess.TimeoutExpired):
            how = f" ({Exit.of_code(self.process.wait(timeout=1))})"
        return LinkLost(f"the process that holds the link died{how}", hint="run it again")

    def close(self) -> None:
        """Hang up: the helper exits, and with it all that runs in its namespaces."""
        _log.debug("the link's helper, process %s, is told to end", self.process.pid)
        self.control.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=10)


def _silent() -> LinkUnavailable:
    return LinkUnavailable(f"the process that holds the link is silent for {ANSWER_TIMEOUT_S:g} s")


class HelperError(NetsimError):
    """The helper refused a request; the message is the system's."""


def open_channel() -> Channel:
    """Start a helper: in the host's user namespace as root, else (or when that is refused) in one of its own."""
    for mode in ["host", "user"] if os.geteuid() == 0 else ["user"]:
        try:
            return _start_helper(mode)
        except HelperError as error:
            refusal = error
    raise LinkUnavailable(
        f"namespaces are not allowed here ({refusal.message})",
        hint=f"{namespace_remedy()}, or use --link bucket",
        remedy=namespace_remedy(),
    )


def _start_helper(mode: str) -> Channel:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            module_command("netsim_ddp.link.tc.helper", str(theirs.fileno()), mode),
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=True,
        )
    _log.debug("started the link's helper, process %s (%s)", process.pid, mode)
    channel = Channel(ours, process)
    try:
        channel.receive_answer()
    except BaseException:
        channel.close()
        raise
    return channel


def namespace_remedy() -> str:
    """What stops user namespaces on this machine, and the line that lifts it."""
    for name, blocked, allowed in (
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("user.max_user_namespaces", "0", "10000"),
    ):
        with suppress(OSError):
            if Path("/proc/sys", *name.split(".")).read_text(encoding="ascii").strip() == blocked:
                return f"sudo sysctl -w {name}={allowed}"
    if os.path.exists("/.dockerenv"):
        return "start the container with --cap-add SYS_ADMIN --cap-add NET_ADMIN"
    return "run as root"
