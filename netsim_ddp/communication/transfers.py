"""DDP's own all-reduce, and its 16-bit hooks, as a communication hook that reads the clock.

No ``from __future__ import annotations`` here: DDP compares a hook's annotations with the types themselves.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket

from netsim_ddp.communication.segments import Group
from netsim_ddp.link.bucket.schedule import Sent


@dataclass
class TransferLog:
    """State of :func:`timed_all_reduce_hook`: when each bucket of the current step was sent and had arrived, and what
    that asked of the link.

    Times are seconds of ``time.monotonic``; ``last_bucket`` is called when the backward pass is through. ``rounded``
    is the type that gradients are sent in, as torch's ``fp16_compress_hook`` and ``bf16_compress_hook`` do; None sends
    them in their own.
    """

    group: Group
    rounded: torch.dtype | None = None
    last_bucket: Callable[[], None] = lambda: None
    transfers: list[list[float]] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)

    def clear(self) -> None:
        """A step begins."""
        self.transfers, self.sent = [], []


def timed_all_reduce_hook(state: TransferLog, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """What DDP does without a hook or with a 16-bit one, with the clock read: average the bucket over ranks,
    asynchronously."""
    gradients = bucket.buffer()
    # torch's 16-bit hooks round first and divide what is rounded.
    sent = gradients if state.rounded is None else gradients.to(state.rounded)
    buffer = sent.div_(state.group.world_size).to(state.group.wire_device(gradients.device))
    if bucket.is_last():
        state.last_bucket()
    transfer = [time.monotonic(), float("inf")]
    state.transfers.append(transfer)
    state.sent.append(Sent("allreduce", (buffer.nbytes,), buffer.element_size()))
    work = dist.all_reduce(buffer, group=state.group.process_group, async_op=True)
    assert work is not None
    future: torch.futures.Future[list[torch.Tensor]] = work.get_future()

    def done(finished: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        transfer[1] = time.monotonic()
        reduced = finished.value()[0]
        same = reduced.device == gradients.device and reduced.dtype == gradients.dtype
        return reduced if same else gradients.copy_(reduced)

    return future.then(done)
