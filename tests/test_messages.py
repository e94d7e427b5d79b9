"""A message is sent and received whole, whatever a socket's buffer holds, with the descriptors that belong to it."""

from __future__ import annotations

import os
import socket
import threading

from netsim_ddp.link.messages import Lines, send


def test_a_message_longer_than_any_buffer_arrives_whole_with_its_descriptors() -> None:
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    long, short = {"jobs": ["x" * 1_000_000] * 3}, {"kind": "end"}
    with ours, theirs:

        def speak() -> None:
            send(ours, short)
            send(ours, long, [writing, reading])
            send(ours, short)
            ours.shutdown(socket.SHUT_WR)

        speaking = threading.Thread(target=speak)
        speaking.start()
        lines, got = Lines(theirs), []
        fds_at = None
        while (messages := lines.receive()) is not None:
            got += messages
            if lines.fds and fds_at is None:
                fds_at = len(got)
        speaking.join(10)
    assert got == [short, long, short]
    assert fds_at in (0, 1), "they come with the first byte of their message"
    os.write(lines.fds[0], b"here")
    assert os.read(lines.fds[1], 4) == b"here"
    for fd in (*lines.fds, reading, writing):
        os.close(fd)
