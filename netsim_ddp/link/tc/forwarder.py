"""Carries the packets of a tc link between its ranks, late, and loses some.

Started as ``python -m netsim_ddp.link.tc.forwarder FD``. It stands in the bridge's namespace, for kernels without
netem. Every rank has a TAP device ``t<rank>`` there, the only way out of its bridge: what the rank sends comes in by
it, already at the rank's rate, and what is for the rank goes out by it, to the bucket of what the rank receives. A
frame leaves ``delay_s`` after it came, give or take up to ``jitter_s`` (uniform), or never, with probability ``loss``.

Frames carry a virtio_net_hdr, so that a packet of many segments passes as one and checksums are left out, as on veth.
Where frames differ from each other, by loss or jitter, each holds one segment: the kernel cuts them before.

Told over the socket FD, one JSON object a line, to carry everything at once for a while, and to count. End of file on
FD means that the link is over, and the process exits.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import sys
import time
from collections import defaultdict
from contextlib import suppress
from typing import Any, NoReturn

from netsim_ddp.link.base import die_with_parent
from netsim_ddp.link.messages import Lines, send

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
PR_SET_TIMERSLACK = 29
NEEDS_PRIVILEGE = -10
"""Its niceness, where that is allowed: ranks that compute must not make packets late."""

HEADER = 10  # bytes of the virtio_net_hdr, then the receiver's address
LAST_OF_ADDRESS = HEADER + 5  # a rank's is 02:00:00:00:00:(rank + 1), see plan.mac
LARGEST = HEADER + 14 + 65536  # what the kernel hands over at once
BATCH = 16  # frames of one rank before another's turn


def open_tap(device: str, name: str, *, whole: bool) -> int:
    """Make TAP device ``name`` in this namespace; returns its descriptor. ``whole``: packets of many segments stay one.

    Raises:
        OSError: ``device`` cannot be opened, or the kernel refuses.
    """
    fd = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | (TUN_F_TSO4 if whole else 0))
    return fd


class Forwarder:
    """What lies between ranks. ``lost`` and ``taken`` count frames by the rank that sent them."""

    def __init__(
        self, delay_s: float, jitter_s: float, loss: float, reorder: bool, seed: int, taps: list[int]
    ) -> None:
        self.delay_s, self.jitter_s, self.loss, self.reorder = delay_s, jitter_s, loss, reorder
        self.seed, self.taps = seed, taps
        self.draws: dict[tuple[int, int], random.Random] = {}
        """By sender and receiver: what happens to the n-th frame between two ranks depends on the seed, the two and n
        alone."""
        self.latest_s: dict[tuple[int, int], float] = defaultdict(float)
        """By sender and receiver: when the frame before leaves, which none overtakes."""
        self.pending: list[tuple[float, int, int, bytes]] = []
        """Frames on their way, a heap: when each leaves, its number, by which device, and itself."""
        self.bare = False
        """Whether frames leave at once and none is lost, for now."""
        self.count = self.largest = 0
        self.lost, self.taken = [0] * len(taps), [0] * len(taps)

    def serve(self, control: socket.socket) -> None:
        """Carry frames until the command hangs up."""
        requests = Lines(control)
        ranks = {fd: rank for rank, fd in enumerate(self.taps)}
        everything = [control.fileno(), *self.taps]
        while True:
            wait = max(0.0, self.pending[0][0] - time.monotonic()) if self.pending else None
            for fd in select.select(everything, (), (), wait)[0]:
                if fd in ranks:
                    self.receive(fd, ranks[fd])
                elif not self.answer(requests):
                    return
            while self.pending and self.pending[0][0] <= time.monotonic():
                _, _, out, frame = heapq.heappop(self.pending)
                try:
                    os.write(out, frame)
                except OSError as error:
                    if error.errno != errno.EIO:  # a rank that is still being made misses what is sent to all
                        raise

    def receive(self, fd: int, sender: int) -> None:
        """Take in the frames that ``sender`` has ready, as far as its turn goes."""
        for _ in range(BATCH):
            try:
                frame = os.read(fd, LARGEST)
            except BlockingIOError:
                return
            self.taken[sender] += 1
            self.largest = max(self.largest, len(frame) - HEADER)
            others = [rank for rank in range(len(self.taps)) if rank != sender]
            receivers = others if frame[HEADER] & 1 else [frame[LAST_OF_ADDRESS] - 1]
            for receiver in receivers:
                if 0 <= receiver < len(self.taps):
                    self.send(frame, sender, receiver)

    def send(self, frame: bytes, sender: int, receiver: int) -> None:
        """Have ``frame`` leave when it shall, if it shall."""
        pair = sender, receiver
        if pair not in self.draws:
            self.draws[pair] = random.Random(f"{self.seed} {sender} {receiver}")
        due = time.monotonic()
        if not self.bare:
            if self.loss and self.draws[pair].random() < self.loss:
                self.lost[sender] += 1
                return
            due += self.delay_s
            if self.jitter_s:
                due += self.draws[pair].uniform(-self.jitter_s, self.jitter_s)
                if not self.reorder:
                    due = self.latest_s[pair] = max(due, self.latest_s[pair])
        self.count += 1
        heapq.heappush(self.pending, (due, self.count, self.taps[receiver], frame))

    def answer(self, requests: Lines) -> bool:
        """Carry out what was asked; False at the end of the link."""
        messages = requests.receive()
        for message in messages or ():
            self.bare = message.get("bare", self.bare)
            send(
                requests.connection,
                {
                    "taken": self.taken,
                    "lost": self.lost,
                    "largest": self.largest,
                    "overrun": self.overruns(),
                },
            )
        return messages is not None

    def overruns(self) -> list[int]:
        """Frames that each rank's device dropped, because this process was too slow for them."""
        with open("/proc/net/dev", encoding="ascii") as file:
            rows = [line.replace(":", " ").split() for line in file]
        drops = {row[0]: int(row[12]) for row in rows if row[0].startswith("t") and row[1].isdigit()}
        return [drops[f"t{rank}"] for rank in range(len(self.taps))]


def main(fd: int, device: str, ranks: int, order: dict[str, Any]) -> NoReturn:
    die_with_parent()
    control = socket.socket(fileno=fd)
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)  # ns; the default lets a wait end 50 us late
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NEEDS_PRIVILEGE)
    try:
        taps = [
            open_tap(device, f"t{rank}", whole=not order["loss"] and not order["jitter_s"])
            for rank in range(ranks)
        ]
    except OSError as error:
        send(control, {"error": error.strerror or str(error)})
        sys.exit(0)  # said already
    send(control, {})
    with suppress(ConnectionResetError, BrokenPipeError):
        Forwarder(**order, taps=taps).serve(control)
    sys.exit(0)


if __name__ == "__main__":
    import json

    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
