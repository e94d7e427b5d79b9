"""A stream of bytes from rank 0 to rank 1 of a link, and when they arrived: plain sockets, no torch."""

from __future__ import annotations

import json
import socket
import sys
from bisect import bisect_right
from statistics import median

from netsim_ddp.link.base import Link

_RECEIVE = """
import json, socket, sys, time
control = socket.socket(fileno=3)
listener = socket.create_server((sys.argv[1], 0))
control.sendall(json.dumps(listener.getsockname()[1]).encode() + b"\\n")
connection, _ = listener.accept()
arrivals, count, begin = [], 0, None
while data := connection.recv(1 << 16):
    begin = time.monotonic() if begin is None else begin
    count += len(data)
    arrivals.append((time.monotonic() - begin, count))
control.sendall(json.dumps(arrivals).encode() + b"\\n")
"""
_SEND = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    connection.sendall(bytes(1 << 14))
"""

_ECHO = """
import json, socket, sys
control = socket.socket(fileno=3)
listener = socket.create_server((sys.argv[1], 0))
control.sendall(json.dumps(listener.getsockname()[1]).encode() + b"\\n")
connection, _ = listener.accept()
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while data := connection.recv(1):
    connection.sendall(data)
"""
_PING = """
import json, socket, sys, time
control = socket.socket(fileno=3)
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
trips = []
for _ in range(15):
    begin = time.monotonic()
    connection.sendall(b"x")
    connection.recv(1)
    trips.append(time.monotonic() - begin)
control.sendall(json.dumps(trips).encode() + b"\\n")
"""


class Arrivals:
    """Bytes that had arrived at given times after the first one."""

    def __init__(self, pairs: list[tuple[float, int]]) -> None:
        self._times, self._counts = [time for time, _ in pairs], [count for _, count in pairs]

    def goodput_bps(self, begin: float, end: float) -> float:
        counts = [self._counts[max(0, bisect_right(self._times, at) - 1)] for at in (begin, end)]
        return (counts[1] - counts[0]) * 8 / (end - begin)


def stream(link: Link, seconds: float) -> Arrivals:
    """Send for ``seconds`` as fast as the link takes it."""
    ours, theirs = socket.socketpair()
    address = link.endpoints[1].address
    with ours, theirs:
        link.spawn([sys.executable, "-c", _RECEIVE, address], rank=1, fds=[theirs.fileno()])
        theirs.close()
        ours.settimeout(seconds + 20)
        port = json.loads(_line(ours))
        link.spawn([sys.executable, "-c", _SEND, address, str(port), str(seconds)], rank=0)
        return Arrivals(json.loads(_line(ours)))


def round_trip_s(link: Link) -> float:
    """The median time of a byte to rank 1 and back."""
    (ours, theirs), (answers, result) = socket.socketpair(), socket.socketpair()
    address = link.endpoints[1].address
    with ours, theirs, answers, result:
        link.spawn([sys.executable, "-c", _ECHO, address], rank=1, fds=[theirs.fileno()])
        theirs.close()
        ours.settimeout(20)
        port = json.loads(_line(ours))
        link.spawn([sys.executable, "-c", _PING, address, str(port)], rank=0, fds=[result.fileno()])
        result.close()
        answers.settimeout(20)
        return median(json.loads(_line(answers)))


def _line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        data = connection.recv(1 << 16)
        assert data, "the receiver ended early"
        line += data
    return line
