"""Whole messages on a stream socket: JSON, one per line, with descriptors where they are needed.

A socket takes what fits its buffer and says how much that was. Whatever is sent here is sent to its end, and whatever
is received is handed on only when it is complete.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

CHUNK_BYTES = 1 << 20
LINE_LIMIT = 1 << 28
MAX_DESCRIPTORS = 128


def send(connection: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send all of ``message``, however long it is; ``fds`` travel with its first byte.

    Raises:
        OSError: the other side is gone, or takes nothing for as long as the socket's timeout allows.
    """
    data = memoryview(encoded(message))
    if fds:
        data = data[socket.send_fds(connection, [data], list(fds)) :]
    connection.sendall(data)


def encoded(message: dict[str, Any]) -> bytes:
    """``message`` as :func:`send` sends it: for whoever sends the same to many."""
    return json.dumps(message).encode() + b"\n"


class Lines:
    """Splits what arrives on a socket into JSON messages; the reader's side that never blocks."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.fds: list[int] = []
        """Descriptors that came with the messages; whoever takes them empties the list."""
        self._buffer = bytearray()

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that the bytes now waiting complete; None at the end of file. Blocks only if none wait."""
        try:
            data, fds, _, _ = socket.recv_fds(self.connection, CHUNK_BYTES, MAX_DESCRIPTORS)
        except ConnectionResetError:
            data, fds = b"", []
        self.fds += fds
        if not data:
            return None
        self._buffer += data
        if b"\n" not in data:
            if len(self._buffer) > LINE_LIMIT:
                raise ValueError("a message without end on the control channel")
            return []
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines]
