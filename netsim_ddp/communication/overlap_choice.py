"""``overlap="auto"``: a hook's steps are timed with and without overlap, and all ranks keep what is faster.

Whether it pays to exchange beside the backward pass depends on what this can hide (a slow link's time, a delay) and
what it costs (an exchange for each bucket, processors that the backward pass uses itself), which nobody knows
beforehand.
"""

from __future__ import annotations

import logging
import time
from statistics import median

import torch
import torch.distributed as dist

from netsim_ddp.communication.segments import Group

_log = logging.getLogger(__name__)

WARM_UP, TIMED = 3, 8
"""Steps of each way that are not timed, because DDP cuts its buckets anew and buffers are made, and that are."""
WORTH = 0.03
"""The share of a step that overlap must save: it takes more messages."""


class OverlapChoice:
    """What the next step does. Every rank asks before each of its steps, of which all have the same number."""

    def __init__(self) -> None:
        self.decided: bool | None = None
        self._took: tuple[list[float], list[float]] = ([], [])
        """Seconds from step to step, without and with overlap."""
        self._steps = 0
        self._last: float | None = None

    def overlap(self, group: Group, device: torch.device) -> bool:
        """Whether the step that now begins shall overlap. The ranks agree in one small all-reduce, once."""
        if self.decided is None and self._steps == 2 * (WARM_UP + TIMED):
            self.decided = self._decide(group, device)
        return self._on if self.decided is None else self.decided

    def step_ended(self) -> None:
        """The step's averages are there."""
        if self.decided is not None:
            return
        now = time.monotonic()
        if self._last is not None and self._steps % (WARM_UP + TIMED) >= WARM_UP:
            self._took[self._on].append(now - self._last)
        self._last, self._steps = now, self._steps + 1

    @property
    def _on(self) -> bool:
        return self._steps >= WARM_UP + TIMED

    def _decide(self, group: Group, device: torch.device) -> bool:
        """By the median step of the slowest rank."""
        medians = torch.tensor(
            list(map(median, self._took)), dtype=torch.float32, device=group.wire_device(device)
        )
        dist.all_reduce(medians, dist.ReduceOp.MAX, group=group.process_group)
        without, with_it = medians.tolist()
        chosen = with_it < without * (1 - WORTH)
        _log.info(
            "overlap=auto: %s, of steps of %.3g ms with and %.3g ms without overlap",
            "on" if chosen else "off",
            with_it * 1e3,
            without * 1e3,
        )
        return bool(chosen)
