"""One rank's side of a probe: ``python -m netsim_ddp.link.probe.peer FD``, plain TCP sockets and nothing but stdlib.

Told over the socket FD, one JSON object a line, to listen or to connect for one of three transfers: ``bulk`` (as
much as passes in some seconds), ``messages`` (each after an idle pause) and ``pings``. The side that sees the end of
a transfer answers with what it measured. End of file on FD means that the command is gone, and the process exits.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from netsim_ddp.link.base import die_with_parent

CHUNK_BYTES = 1 << 18
SEND_BYTES = 1 << 15  # small, so that a slow link's sender stops soon after its time
DEADLINE_S = 60.0

Answer = Callable[..., None]


def _send_bulk(connection: socket.socket, order: dict[str, Any], _answer: Answer) -> None:
    data = bytes(SEND_BYTES)
    end = time.monotonic() + order["seconds"]
    with suppress(BrokenPipeError, ConnectionResetError):  # the receiver has seen enough
        while time.monotonic() < end:
            connection.sendall(data)


def _receive_bulk(connection: socket.socket, order: dict[str, Any], answer: Answer) -> None:
    """Answer the goodput over the middle of the transfer: from a third of it, so that neither the bucket's first
    burst nor TCP's slow start counts, to the moment the sender stops filling its socket's buffer. What that still
    holds is not waited for: a slow link would be busy with it for minutes."""
    seconds, buffer = order["seconds"], bytearray(CHUNK_BYTES)
    count = marked = 0
    begin = start = last = time.monotonic()
    while size := connection.recv_into(buffer):
        now = time.monotonic()
        if marked == 0 and now - begin >= seconds / 3:
            start, marked = now, count + size
        if now - begin <= seconds or count == marked:
            last, count = now, count + size
        if now - begin > seconds and count > marked > 0:
            break
    answer(bps=(count - marked) * 8 / (last - start) if last > start else 0.0)


def _send_messages(connection: socket.socket, order: dict[str, Any], answer: Answer) -> None:
    """Send ``count`` messages of ``size`` bytes, each after ``idle_s`` of silence, and answer how long each took from
    the call to its last byte's arrival. Ranks of an emulated link share one clock, so no round trip is in it."""
    data, times = bytes(order["size"]), []
    with connection.makefile("rb") as stream:
        for _ in range(order["warmup"] + order["count"]):
            time.sleep(order["idle_s"])
            begin = time.monotonic()
            connection.sendall(data)
            (arrived,) = struct.unpack("d", stream.read(8))
            times.append(arrived - begin)
    answer(seconds=times[order["warmup"] :])


def _receive_messages(connection: socket.socket, order: dict[str, Any], _answer: Answer) -> None:
    buffer = bytearray(order["size"])
    with connection.makefile("rb") as stream:
        while stream.readinto(buffer) == len(buffer):
            connection.sendall(struct.pack("d", time.monotonic()))


def _send_pings(connection: socket.socket, order: dict[str, Any], answer: Answer) -> None:
    times = []
    for _ in range(order["count"]):
        begin = time.monotonic()
        connection.sendall(b"p")
        if not connection.recv(1):
            raise ConnectionResetError("the other rank hung up")
        times.append(time.monotonic() - begin)
    answer(seconds=times)


def _echo(connection: socket.socket, _order: dict[str, Any], _answer: Answer) -> None:
    while byte := connection.recv(1):
        connection.sendall(byte)


_TRANSFERS = {
    "bulk": (_send_bulk, _receive_bulk),
    "messages": (_send_messages, _receive_messages),
    "pings": (_send_pings, _echo),
}


def serve(control: socket.socket) -> None:
    """Carry out orders, each in a thread of its own, until the command hangs up."""
    speaking = threading.Lock()

    def answer(**values: Any) -> None:
        with speaking:
            control.sendall(json.dumps(values).encode() + b"\n")

    with control.makefile("r", encoding="ascii") as lines:
        for line in lines:
            order = json.loads(line)
            listener = None
            if "listen" in order:
                listener = socket.create_server((order["listen"], 0))
                listener.settimeout(DEADLINE_S)
                answer(port=listener.getsockname()[1])
            threading.Thread(target=_carry_out, args=(order, answer, listener), daemon=True).start()


def _carry_out(order: dict[str, Any], answer: Answer, listener: socket.socket | None) -> None:
    """Receive on a connection to ``listener``, or connect and send where there is none."""
    send, receive = _TRANSFERS[order["transfer"]]
    if listener is None:
        connection = socket.create_connection(tuple(order["connect"]), timeout=DEADLINE_S)
    else:
        with listener:
            connection = listener.accept()[0]
    with connection:
        connection.settimeout(DEADLINE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        (send if listener is None else receive)(connection, order, answer)


if __name__ == "__main__":
    die_with_parent()
    serve(socket.socket(fileno=int(sys.argv[1])))
