"""Forward and backward, measured once for all methods of a replayed run, so that methods differ only in their own work.

Every rank takes the same number of passes, each followed by the optimizer, as in a step. A pass is kept as the seconds
until each of DDP's buckets is full, one after the other; without overlap their sum counts. The fork server keeps what
was found for the other methods of the same repeat.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Protocol

import torch

from netsim_ddp.ranks.barrier import HostBarrier
from netsim_ddp.ranks.turn_threads import TurnThreads

WARM_PASSES, WARM_S = 2, 0.3
LEAST_PASSES, MEASURED_S = 5, 1.5
"""Passes go on for so long, and until there are so many: what disturbs the host for a moment must not be the compute
figure of a whole run."""


class Passes(Protocol):
    """Forward, backward and optimizer of one rank without any exchange."""

    def take(self) -> list[float]:
        """One pass: the seconds of forward and backward until each bucket is full, one after the other."""


@dataclass
class ComputeTimes:
    """What one rank found, in the order of the passes.

    Attributes:
        passes: seconds until each bucket was full, ``at_once`` ranks computing at a time.
        alone: forward and backward in seconds with the host to itself, pass by pass; empty where ``at_once`` is 1.
        memory: seconds to add one buffer of the gradient's size to another, ``at_once`` ranks at a time.
        memory_alone: likewise with the host to itself.
    """

    passes: list[list[float]] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    memory_alone: list[float] = field(default_factory=list)

    def of_steps(self, steps: int) -> list[list[float]]:
        """A pass for each of ``steps`` steps, from all over the time that was measured."""
        return [self.passes[step * len(self.passes) // steps] for step in range(steps)]

    def slowdowns(self) -> tuple[float, float] | None:
        """What ranks beside this one cost it, as a factor: in forward and backward, and in memory; None without any."""
        if not self.alone:
            return None
        beside = median(sum(chunks) for chunks in self.passes)
        return beside / median(self.alone), median(self.memory) / median(self.memory_alone)


def measure(passes: Passes, numel: int, barrier: HostBarrier, rank: int, at_once: int) -> ComputeTimes:
    """Take passes, every other one with the host to itself where ranks share it.

    Args:
        numel: of the gradient.
    """
    found = ComputeTimes()
    residual, gradient = torch.zeros(numel), torch.ones(numel)
    threads = TurnThreads(torch.get_num_threads())
    count, first, began = 0, 0.0, None
    while True:
        # All ranks read the same moment, so they agree on when it is enough.
        moment = barrier.start_together(rank)
        first = first or moment
        if began is None and count >= WARM_PASSES and moment - first >= WARM_S:
            began = moment
        if began is not None and len(found.passes) >= LEAST_PASSES and moment - began >= MEASURED_S:
            return found
        for ranks in dict.fromkeys((at_once, 1)):
            backwards = count % 2 == 1
            barrier.take_turn(rank, ranks, backwards=backwards)
            threads.wake()
            chunks = passes.take()
            begin = time.monotonic()
            residual.add_(gradient)
            took = time.monotonic() - begin
            threads.settle()
            barrier.pass_turn(rank, ranks, backwards=backwards)
            if began is not None and ranks == at_once:
                found.passes.append(chunks)
                found.memory.append(took)
            elif began is not None:
                found.alone.append(sum(chunks))
                found.memory_alone.append(took)
            barrier.wait()
        count += 1


def once(
    file: int,
    what: dict[str, Any],
    agree: Callable[[bool], bool],
    find: Callable[[], ComputeTimes],
) -> ComputeTimes:
    """Returns what ``find`` returns, from ``file`` if an earlier rank has left it there for the same ``what``.

    Args:
        agree: whether all ranks say yes.
    """
    try:
        kept = json.loads(os.pread(file, os.fstat(file).st_size, 0) or b"{}")
    except ValueError:
        kept = {}
    if agree(kept.get("what") == what):
        return ComputeTimes(**kept["times"])
    times = find()
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps({"what": what, "times": asdict(times)}).encode(), 0)
    return times
