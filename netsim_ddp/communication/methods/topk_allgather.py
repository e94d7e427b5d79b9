"""Top-K by a sparse all-gather: every rank sends its entries to all others."""

from __future__ import annotations

from typing import Any

from netsim_ddp.communication.exchange import peer_exchange
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.messages import Inbox, Mailbox
from netsim_ddp.communication.segments import CodecWork, Group, Local, Segment
from netsim_ddp.communication.sparse import SelectedEntries


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
        self._inbox = Inbox([self._mailbox] * group.world_size, flat.data.device)
        self._messages = self._inbox.messages
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
        if self.received is not None:
            self._keep_rounded(self.received)

    def _sum(self) -> None:
        if (refused := self._inbox.refused()) is not None:
            self._refuse(f"rank {refused} found a gradient that is not finite")
            return
        runs = self._inbox.read(self.group.world_size)
        # In rank order, so that every rank computes the same bits.
        self._conclude(sum(peak / self.group.world_size for peak in runs.peaks.tolist()), runs, add=True)
