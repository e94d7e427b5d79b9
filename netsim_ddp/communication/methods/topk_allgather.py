"""Top-K by a sparse all-gather: every rank sends its entries to all others."""

from __future__ import annotations

from typing import Any

from netsim_ddp.communication.exchange import peer_exchange
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.messages import Mailbox
from netsim_ddp.communication.segments import CodecWork, Group, Local, Segment
from netsim_ddp.communication.sparse import SelectedEntries
from netsim_ddp.compression.kernels import largest
from netsim_ddp.compression.shards import add_at


class TopKAllGather(SelectedEntries):
    """``topk-allgather``: every rank sends its k entries to all, and sums what it receives in rank order.

    Args:
        options: as :class:`SelectedEntries` takes them.
    """

    name = "topk-allgather"
    collective = "allgather"

    def __init__(self, flat: FlatGradients, group: Group, **options: Any) -> None:
        super().__init__(flat, group, **options)
        device = group.wire_device(flat.data.device)
        self._mailbox = Mailbox(self.codec, self.selection.capacity, flat.numel, device)
        self._messages = [self._mailbox.buffer() for _ in range(group.world_size)]
        self._gather = peer_exchange(
            "gather",
            group,
            [self._messages[group.rank]] * group.world_size,
            self._messages,
            self._mailbox.expected_nbytes(self.selection.budget.final),
        )

    def _exchange(self) -> list[Segment]:
        k = self.selection.budget.final
        return [
            Local("compress", self._compress, CodecWork((self.flat.numel, k), encoded=(k,))),
            self._gather,
            Local("decompress", self._sum, CodecWork(decoded=(k,) * self.group.world_size)),
        ]

    def _compress(self) -> None:
        mine, ranks = self._messages[self.group.rank], self.group.world_size
        if not self._select():
            self._gather.sizes = [self._mailbox.refuse(mine)] * ranks
            return
        self._gather.sizes = [self._mailbox.write(self.values, self.indices, mine, self.received)] * ranks
        if self.received is not None and self.total is not None:  # which keeps what rounding takes
            self.total[self.indices.long()] = self.values - self.received

    def _sum(self) -> None:
        total = self._average
        self._clear_average()
        refused = [rank for rank, message in enumerate(self._messages) if self._mailbox.refused(message)]
        if refused:
            self._refuse(f"rank {refused[0]} found a gradient that is not finite")
            return
        # In rank order, so that every rank computes the same bits.
        for sender, message in enumerate(self._messages):
            values, indices = self._mailbox.read(message, sender)
            self._peak += largest(values) / self.group.world_size
            indices = indices.to(total.device)
            add_at(total, indices, values.to(total.device) / self.group.world_size)
            self._written.append(indices)
        self._conclude()
