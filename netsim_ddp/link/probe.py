"""What the link really delivers, measured with plain TCP sockets before anything rests on it.

:func:`probe` starts one small process per rank inside the link (``python -m netsim_ddp.link.probe FD``), has
the slowest pair send alone, then every rank to its successor at once, and reports the goodput that the receivers
saw. The first says whether the link is what was asked for, the second whether this host can carry all of its
ranks' links at the same time.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from netsim_ddp.errors import EnvironmentFault, LinkOffTarget
from netsim_ddp.link.base import Endpoint, Link, die_with_parent, lifeline_pair
from netsim_ddp.link.spec import goodput
from netsim_ddp.units import format_rate

CHUNK_BYTES = 1 << 18
ANSWER_TIMEOUT_S = 30.0
TOLERANCE = 0.05
HOST_TOLERANCE = 0.10


@dataclass(frozen=True)
class ProbeReport:
    """Goodput in bit/s: of the slowest pair alone, and of the one that is held up most when all ranks send at
    once, scaled to the slowest pair's rate."""

    alone_bps: float
    together_bps: float

    def host_limited(self, ceiling_bps: float) -> bool:
        """Whether this host cannot carry all ranks' links at their full rate at once."""
        return self.together_bps < (1 - HOST_TOLERANCE) * ceiling_bps


def probe(link: Link) -> ProbeReport | None:
    """Measure ``link``; None with one rank, which has nobody to send to. Takes one to five seconds."""
    if link.spec.workers < 2:
        return None
    seconds = min(2.0, max(0.4, 2_000_000 * 8 / link.spec.slowest_bps))
    with _Peers(link) as peers:
        alone = peers.send([link.spec.slowest_pair], seconds)
        ring = list(link.spec.ring())
        together = peers.send(ring, seconds)
    # Each against what its own two sides allow: the host's limit shows first where the link is fastest.
    shares = [got / goodput(link.spec.pair_bps(*pair)) for got, pair in zip(together, ring, strict=True)]
    return ProbeReport(alone[0], min(shares) * link.spec.ceiling_bps)


def check(link: Link, report: ProbeReport) -> None:
    """Refuse a link that is not what was asked for.

    Raises:
        LinkOffTarget: the pair alone got less or more than the ceiling, by over 5%.
    """
    ceiling = link.spec.ceiling_bps
    error = report.alone_bps / ceiling - 1
    if abs(error) <= TOLERANCE:
        return
    low = error < 0
    raise LinkOffTarget(
        f"the {link.description} link delivers {format_rate(report.alone_bps)}, {abs(error):.0%} "
        f"{'below' if low else 'above'} the {format_rate(ceiling)} that {format_rate(link.spec.slowest_bps)}"
        " leaves after headers",
        hint="ask for a lower --bandwidth, or free this machine's cores" if low else "use --link bucket",
    )


class _Peers:
    """One probe process per rank and the sockets that steer them."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._controls: list[socket.socket] = []

    def __enter__(self) -> _Peers:
        for endpoint in self._link.endpoints:
            ours, theirs = lifeline_pair()
            with theirs:
                argv = [sys.executable, "-m", "netsim_ddp.link.probe", "3"]
                self._link.spawn(argv, rank=endpoint.rank, fds=[theirs.fileno()])
            ours.settimeout(ANSWER_TIMEOUT_S)
            self._controls.append(ours)
        return self

    def __exit__(self, *_: object) -> None:
        for control in self._controls:
            control.close()  # its process reads the end of file and exits

    def send(self, pairs: Sequence[tuple[int, int]], seconds: float) -> list[float]:
        """Goodput of each ``(sender, receiver)``, all at once, in bit/s as the receivers saw it."""
        addresses = {}
        for _, receiver in pairs:
            self._tell(receiver, listen=self._address(receiver), seconds=seconds)
            addresses[receiver] = self._hear(receiver)["port"]
        for sender, receiver in pairs:
            self._tell(sender, send=[self._address(receiver), addresses[receiver]], seconds=seconds)
        return [float(self._hear(receiver)["bps"]) for _, receiver in pairs]

    def _address(self, rank: int) -> str:
        endpoint: Endpoint = self._link.endpoints[rank]
        return endpoint.address

    def _tell(self, rank: int, **message: Any) -> None:
        self._controls[rank].sendall(json.dumps(message).encode() + b"\n")

    def _hear(self, rank: int) -> dict[str, Any]:
        line = b""
        try:
            while not line.endswith(b"\n"):
                byte = self._controls[rank].recv(1)
                if not byte:
                    raise EnvironmentFault(f"the probe of rank {rank} ended early")
                line += byte
        except TimeoutError:
            raise EnvironmentFault(f"the probe of rank {rank} is silent for {ANSWER_TIMEOUT_S:g} s") from None
        message: dict[str, Any] = json.loads(line)
        return message


def _serve(control: socket.socket) -> None:
    """One rank's side: listen or send as told, each in a thread, until the command hangs up."""
    with control.makefile("r", encoding="ascii") as lines:
        for line in lines:
            message = json.loads(line)
            if "listen" in message:
                listener = socket.create_server((message["listen"], 0))
                listener.settimeout(ANSWER_TIMEOUT_S)
                answer = {"port": listener.getsockname()[1]}
                control.sendall(json.dumps(answer).encode() + b"\n")
                work = threading.Thread(target=_receive, args=(control, listener, message["seconds"]))
            else:
                work = threading.Thread(target=_send, args=(tuple(message["send"]), message["seconds"]))
            work.daemon = True
            work.start()


def _send(address: tuple[str, int], seconds: float) -> None:
    data = bytes(CHUNK_BYTES)
    with socket.create_connection(address, timeout=ANSWER_TIMEOUT_S) as connection:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            connection.sendall(data[: CHUNK_BYTES // 8])


def _receive(control: socket.socket, listener: socket.socket, seconds: float) -> None:
    """Report the goodput over the middle of the transfer: from a third of it, so that neither the bucket's
    first burst nor TCP's slow start counts, to the moment the sender stops filling its socket's buffer."""
    buffer = bytearray(CHUNK_BYTES)
    with listener, listener.accept()[0] as connection:
        connection.settimeout(ANSWER_TIMEOUT_S)
        begin = time.monotonic()
        count = marked = 0
        start = last = begin
        while size := connection.recv_into(buffer):
            now = time.monotonic()
            if marked == 0 and now - begin >= seconds / 3:
                start, marked = now, count + size
            if now - begin <= seconds or count == marked:
                last, count = now, count + size
    bps = (count - marked) * 8 / (last - start) if last > start else 0.0
    control.sendall(json.dumps({"bps": bps}).encode() + b"\n")


def main(fd: int) -> NoReturn:
    die_with_parent()
    _serve(socket.socket(fileno=fd))
    sys.exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
