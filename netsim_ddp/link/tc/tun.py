"""The command's end of a link's forwarder: start it, ask it, and say what stands in its way."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from netsim_ddp.errors import LinkLost, LinkUnavailable
from netsim_ddp.link.base import Process, module_command
from netsim_ddp.link.messages import Lines, send
from netsim_ddp.link.spec import LinkSpec

DEVICE = "/dev/net/tun"
REMEDY = f"docker run --device {DEVICE} in a container, sudo modprobe tun on a host"
ANSWER_TIMEOUT_S = 30.0
FORWARDER = "the forwarder, which carries the link's packets (netsim_ddp.link.tc.forwarder),"


def unavailable_reason() -> str | None:
    """Why no TAP device can be had here; None where nothing is known to stand in the way."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR))
    except OSError as error:
        return f"{DEVICE} cannot be opened: {error.strerror}"
    return None


@dataclass(frozen=True)
class ForwarderCounters:
    """What the forwarder counted: frames taken in, lost on purpose and dropped because it was too slow, by the rank
    that sent them; and the bytes of the largest frame."""

    taken: list[int]
    lost: list[int]
    overrun: list[int]
    largest: int


class ForwarderClient:
    """A running forwarder with one TAP device per rank of ``spec``.

    Args:
        spawn: :meth:`netsim_ddp.link.tc.link.TcLink.spawn` of the link.

    Raises:
        LinkUnavailable: it cannot have its devices.
    """

    def __init__(self, spec: LinkSpec, spawn: Callable[..., Process]) -> None:
        order = {key: getattr(spec, key) for key in ("delay_s", "jitter_s", "loss", "reorder", "seed")}
        argv = module_command(
            "netsim_ddp.link.tc.forwarder", "3", DEVICE, str(spec.workers), json.dumps(order)
        )
        self._control, theirs = socket.socketpair()
        self._lines = Lines(self._control)
        self._control.settimeout(ANSWER_TIMEOUT_S)
        with theirs:
            spawn(argv, fds=[theirs.fileno()], vital=FORWARDER)
        try:
            said = self._receive()
            if "error" in said:
                raise LinkUnavailable(f"no TAP device can be made: {said['error']}", hint=REMEDY)
        except BaseException:
            self.close()
            raise

    def counted(self, bare: bool | None = None) -> ForwarderCounters:
        """What was carried so far. From now on frames are carried at once and none is lost, if ``bare``, or again as
        ``spec`` says, if not.

        Raises:
            LinkLost: the forwarder is gone, or silent.
        """
        try:
            send(self._control, {} if bare is None else {"bare": bare})
        except (BrokenPipeError, ConnectionResetError):
            raise LinkLost(f"{FORWARDER} died", hint="run it again") from None
        return ForwarderCounters(**self._receive())

    def _receive(self) -> dict[str, Any]:
        messages: list[dict[str, Any]] | None = []
        try:
            while messages == []:
                messages = self._lines.receive()
        except TimeoutError:
            raise LinkLost(f"{FORWARDER} is silent for {ANSWER_TIMEOUT_S:g} s", hint="run it again") from None
        if messages is None:
            raise LinkLost(f"{FORWARDER} died", hint="run it again")
        return messages[0]

    def close(self) -> None:
        self._control.close()  # it reads the end of file, and its devices go with it
