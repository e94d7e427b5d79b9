"""DDP's own all-reduce as a communication hook that reads the clock.

No ``from __future__ import annotations`` here: DDP compares a hook's annotations with the types themselves.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket

from netsim_ddp.communication.segments import Group


@dataclass
class TransferLog:
    """State of :func:`timed_all_reduce_hook`: when each bucket of the current step was sent and had arrived.

    Times are seconds of ``time.monotonic``; ``last_bucket`` is called when the backward pass is through.
    """

    group: Group
    last_bucket: Callable[[], None] = lambda: None
    transfers: list[list[float]] = field(default_factory=list)


def timed_all_reduce_hook(state: TransferLog, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """What DDP does without a hook, with the clock read: average the bucket over ranks, asynchronously."""
    gradients = bucket.buffer().div_(state.group.world_size)
    buffer = gradients.to(state.group.wire_device(gradients.device))
    if bucket.is_last():
        state.last_bucket()
    transfer = [time.monotonic(), float("inf")]
    state.transfers.append(transfer)
    work = dist.all_reduce(buffer, group=state.group.process_group, async_op=True)
    assert work is not None
    future: torch.futures.Future[list[torch.Tensor]] = work.get_future()

    def done(finished: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        transfer[1] = time.monotonic()
        reduced = finished.value()[0]
        return reduced if reduced.device == gradients.device else gradients.copy_(reduced)

    return future.then(done)
