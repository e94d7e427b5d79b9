"""Kernel TCP over a line with a rate and a delay, made in user space: two network namespaces, a TUN device in each,
and a process per direction that carries every packet across.

Each direction is a serial line with an endless queue in front of it, as the bucket link is: a packet leaves when all
before it have, at the line's rate with its Ethernet header counted, and arrives one delay later. Needs root and
/dev/net/tun. Whatever is started dies with the process that started it, and the namespaces with them.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from netsim_ddp.link.base import die_with_parent

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
PR_SET_TIMERSLACK = 29
TCP_INFO, TCP_CONGESTION = 11, 13
ETHERNET_BYTES = 14  # a TUN device carries IP packets: the frame around them is counted, as a qdisc does
SPIN_S = 60e-6  # shorter than this nobody can sleep
ADDRESSES = ("10.9.0.1", "10.9.0.2")
PORT = 5000
HEAD = struct.Struct("q")
MOMENT = struct.Struct("d")

Sockets = tuple[socket.socket, socket.socket]


def tun_in_new_namespace(own: str, peer: str) -> int:
    """Move this process to a network namespace of its own, with one TUN device; its descriptor."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no network namespace: this needs root")
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"line", IFF_TUN | IFF_NO_PI))
    for words in (f"addr add {own} peer {peer} dev line", "link set line up mtu 1500 txqueuelen 100000"):
        subprocess.run(["ip", *words.split()], check=True, timeout=10)
    return device


def carry(source: int, sink: int, rate_bps: float, delay_s: float) -> None:
    """One direction of the line, for ever."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    os.set_blocking(source, False)
    waiting: deque[tuple[float, bytes]] = deque()
    free, read, write, clock = 0.0, os.read, os.write, time.monotonic
    while True:
        now = clock()
        while waiting and waiting[0][0] <= now:
            write(sink, waiting.popleft()[1])
        try:
            for _ in range(8):
                packet = read(source, 2048)
                free = max(free, clock()) + (len(packet) + ETHERNET_BYTES) * 8 / rate_bps
                waiting.append((free + delay_s, packet))
        except BlockingIOError:
            pause = waiting[0][0] - clock() if waiting else 1.0
            if pause > SPIN_S:
                select.select([source], [], [], pause - SPIN_S)


def receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionResetError
        data += piece
    return data


def serve(control: socket.socket) -> None:
    """Answer the moment at which each message was complete."""
    with socket.create_server((ADDRESSES[1], PORT)) as listener:
        control.sendall(b"r")
        connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    room = bytearray(1 << 20)
    while True:
        left = HEAD.unpack(receive(connection, HEAD.size))[0] - HEAD.size
        while left:
            left -= connection.recv_into(room, min(len(room), left))
        connection.sendall(MOMENT.pack(time.monotonic()))


def ask(control: socket.socket, size: int, idle_s: float, count: int, deadline_s: float) -> None:
    """Send ``count`` messages of ``size`` bytes over one new connection, each after ``idle_s``."""
    connection = socket.socket()
    connection.settimeout(deadline_s)
    connection.setsockopt(socket.IPPROTO_TCP, TCP_CONGESTION, b"cubic")
    connection.connect((ADDRESSES[1], PORT))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    message = HEAD.pack(size) + bytes(size - HEAD.size)
    found: list[dict[str, Any]] = []
    for _ in range(count):
        time.sleep(idle_s)
        begin = time.monotonic()
        connection.sendall(message)
        end = MOMENT.unpack(receive(connection, MOMENT.size))[0]
        found.append({"seconds": end - begin, **state(connection)})
    control.sendall(json.dumps(found).encode() + b"\n")


def state(connection: socket.socket) -> dict[str, int]:
    """What the kernel says of the sender: window and threshold in segments, timeout and round trip in microseconds,
    and how many segments it sent again."""
    words = struct.unpack_from("24I", connection.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 256), 8)
    names = {"cwnd": 18, "ssthresh": 17, "rto_us": 0, "rtt_us": 15, "retransmits": 23}
    return {name: words[place] for name, place in names.items()}


def child(work: Callable[[], None], children: list[int]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            die_with_parent()
            work()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - the parent hears of it by the closed socket
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(1)
    children.append(pid)


def trace(
    rate_bps: float, delay_s: float, size: int, idle_s: float, count: int, deadline_s: float
) -> list[dict[str, Any]]:
    """``count`` messages of ``size`` bytes, from a fresh connection in fresh namespaces.

    Raises:
        RuntimeError: it was not done by ``deadline_s``, or a process of it failed.
    """
    children: list[int] = []
    pairs: list[Sockets] = [socket.socketpair() for _ in range(2)]

    def end(number: int) -> None:
        control = pairs[number][1]
        for ours, _ in pairs:
            ours.close()
        device = tun_in_new_namespace(ADDRESSES[number], ADDRESSES[1 - number])
        socket.send_fds(control, [b"d"], [device])
        receive(control, 1)
        if number:
            serve(control)
        else:
            ask(control, size, idle_s, count, deadline_s)

    try:
        for number in range(2):
            child(lambda number=number: end(number), children)  # type: ignore[misc]
        devices = []
        for ours, theirs in pairs:
            theirs.close()
            ours.settimeout(deadline_s)
            devices += socket.recv_fds(ours, 1, 1)[1]
        for source, sink in (devices, devices[::-1]):
            child(lambda source=source, sink=sink: carry(source, sink, rate_bps, delay_s), children)  # type: ignore[misc]
        client, server = pairs[0][0], pairs[1][0]
        server.sendall(b"g")
        receive(server, 1)
        client.sendall(b"g")
        line = b""
        while not line.endswith(b"\n"):
            piece = client.recv(1 << 16)
            if not piece:
                raise RuntimeError("the sender of the trace ended early")
            line += piece
        found: list[dict[str, Any]] = json.loads(line)
        return found
    except (TimeoutError, ConnectionResetError) as error:
        raise RuntimeError(f"the trace did not end: {error}") from None
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)
        for each in pairs:
            each[0].close()
