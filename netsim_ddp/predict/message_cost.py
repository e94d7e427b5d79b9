"""What a host adds to every exchange beside the network, measured between two processes with a core each.

A ring all-reduce is a chain of rounds, each one message long: what a round takes on a link that takes nothing is the
host's. In an exchange with every peer all messages are under way at once: the first one takes a round, each further one
what the host needs to hand it over.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor

from netsim_ddp.errors import EnvironmentFault

ROUNDS, WARM_UP, BURST, TINY = 30, 5, 16, 64
WORKED = 16 << 20  # bytes written before each exchange: a step's messages find caches full of something else
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class MessageCost:
    """Seconds of one round, and of each message beyond the first in an exchange in which many are under way."""

    round_s: float
    message_s: float = 0.0


Costs = Mapping[str, MessageCost]
"""By the kind of exchange: ``allreduce``, ``alltoall``."""
NONE: Costs = {}


@lru_cache(maxsize=1)
def measured() -> Costs:
    """This host's costs. Call it before this process has threads: it forks.

    Raises:
        EnvironmentFault: two processes could not exchange messages on this host's loopback.
    """
    context = multiprocessing.get_context("fork")
    answers: SimpleQueue[dict[str, float]] = context.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="netsim-") as folder:
        ranks = [
            context.Process(target=_rank, args=(rank, Path(folder) / "store", answers), daemon=True)
            for rank in range(2)
        ]
        for each in ranks:
            each.start()
        for each in ranks:
            each.join(TIMEOUT_S)
        failed = any(each.exitcode != 0 for each in ranks)
        for each in ranks:
            each.kill()
    if failed:
        raise EnvironmentFault(
            "two processes on this machine could not exchange messages to measure what one costs",
            hint="netsim doctor says whether Gloo works here",
        )
    took = answers.get()
    message_s = max(0.0, (took["burst"] - took["single"]) / (BURST - 1))
    return {
        "allreduce": MessageCost(took["ring"] / 2),
        "alltoall": MessageCost(took["single"], message_s),
        "messages": MessageCost(took["single"]),
    }


def _rank(rank: int, store: Path, answers: SimpleQueue[dict[str, float]]) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=TIMEOUT_S / 2)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timeout)
    rooms = torch.zeros(2, BURST, TINY, dtype=torch.uint8)
    row = torch.zeros(2 * TINY)

    def ring() -> None:
        dist.all_reduce(row)

    found = {
        "single": _median(lambda: _exchange(rooms[:, :1], 1 - rank)),
        "burst": _median(lambda: _exchange(rooms, 1 - rank)),
        "ring": _median(ring),
    }
    if rank == 0:
        answers.put(found)
    dist.destroy_process_group()


def _exchange(rooms: Tensor, peer: int) -> None:
    received, sent = rooms
    works = [dist.irecv(room, peer, tag=tag) for tag, room in enumerate(received)]
    works += [dist.isend(room, peer, tag=tag) for tag, room in enumerate(sent)]
    for work in works:
        assert work is not None
        work.wait()


def _median(run: Callable[[], None]) -> float:
    work, took = torch.zeros(WORKED // 4), []
    for _ in range(WARM_UP + ROUNDS):
        work.add_(1.0)
        dist.barrier()
        begin = time.monotonic()
        run()
        took.append(time.monotonic() - begin)
    return median(took[WARM_UP:])
