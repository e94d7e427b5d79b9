"""Gloo's receiving threads, kept from stopping a sender in the middle of its message.

Gloo has one thread per process that waits for its sockets (``gloo_tcp_loop``). A send holds its connection's lock
while it hands the data to the kernel; between interfaces of one host the kernel delivers at once, wakes that thread
and may give it the sender's very core. It then finds the lock taken, and asks epoll again and again until the
scheduler's next tick, up to 4 ms later, lets the sender go on (gloo's ``Pair::handleEvents`` tries the lock and
returns). With two ranks on two cores one in twenty exchanges of 16 KB took 4 ms instead of 0.3. Batch threads never
take a core from a running thread; on an idle core they run at once, as before.
"""

from __future__ import annotations

import os
from pathlib import Path

LOOP = "gloo_tcp_loop"


def spare_senders() -> int:
    """Make the receiving threads of this process batch threads; answers how many, 0 where that cannot be done.

    Call it when the process group is there. Linux only; needs no privileges.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return 0
    changed = 0
    for task in Path("/proc/self/task").glob("*"):
        try:
            if (task / "comm").read_text().strip() == LOOP:
                os.sched_setscheduler(int(task.name), os.SCHED_BATCH, os.sched_param(0))
                changed += 1
        except OSError:  # a thread that has just ended, or a sandbox that forbids it: then it stays as it was
            continue
    return changed
