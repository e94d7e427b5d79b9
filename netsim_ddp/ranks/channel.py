"""The connection between the command and a rank: JSON, one message per line, never on the link.

Each side reads end of file when the other has ended, and a rank then ends itself.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from typing import Any, NoReturn

from netsim_ddp.link.messages import Lines, send

ORPHANED = 87

COMPUTING, COMMUNICATING = "computing", "communicating"
"""What a rank says that it is doing within a step: read after ``failed while`` and ``made no progress: at step 3,``."""


class RankChannel:
    """A rank's end. A daemon thread listens, so that the rank ends itself even while it waits in a collective."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True, name="netsim-lifeline").start()

    def _listen(self) -> None:
        lines = Lines(self._connection)
        while (messages := lines.receive()) is not None:
            for message in messages:
                self._inbox.put(message)
        os._exit(ORPHANED)

    def progress(self, step: int, doing: str) -> None:
        """Tell how far this rank is; the command names the rank that is furthest behind when none goes on."""
        self._send({"kind": "progress", "step": step, "doing": doing})

    def gather(self, point: str, value: Any = None) -> list[Any]:
        """Wait for all ranks at ``point``, and return every rank's ``value``, in rank order.

        Waits without a limit of its own: the command has the deadline and ends this rank at it.
        """
        self._send({"kind": "gather", "point": point, "value": value})
        values: list[Any] = self._inbox.get()["values"]
        return values

    def result(self, record: dict[str, Any]) -> None:
        self._send({"kind": "result", "record": record})

    def warn(self, text: str) -> None:
        """Have a warning shown, once for all ranks that raise it."""
        self._send({"kind": "warning", "text": text})

    def fail(self, **what: Any) -> NoReturn:
        """Report why this rank cannot go on, and end it."""
        self._send({"kind": "error", **what})
        os._exit(1)

    def _send(self, message: dict[str, Any]) -> None:
        try:
            send(self._connection, message)
        except BrokenPipeError:
            os._exit(ORPHANED)
