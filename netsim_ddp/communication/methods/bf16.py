"""bfloat16 on the wire: half the bytes of float32 with its range, at 8 bits of precision.

Not by the library's all-reduce: some builds of Gloo refuse bfloat16, and those that take it round after every
addition, P - 1 times. Here each rank owns a stretch of the buffer, sums what all ranks send for it in float32 and in
rank order, and sends the mean to all: two roundings whatever P, for the bytes of a ring.
"""

from __future__ import annotations

import torch
from torch import Tensor

from netsim_ddp.communication.exchange import peer_exchange
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Group, Local, Method, Segment


class BFloat16Exchange(Method):
    """``bf16``: round(mean of the ranks' rounded gradients), the same bits on every rank."""

    name = "bf16"
    stateless = True

    def __init__(self, flat: FlatGradients, group: Group) -> None:
        super().__init__(flat, group)
        ranks, device = group.world_size, group.wire_device(flat.data.device)
        share = max(1, -(-flat.numel // ranks))  # padded to one size; Gloo may hang on empty messages
        self._rounded = torch.zeros(ranks, share, dtype=torch.bfloat16, device=device)
        self._received = torch.zeros_like(self._rounded)
        self._sum = torch.zeros(share, dtype=torch.float32, device=device)
        mine = self._rounded[group.rank]
        size = share * mine.element_size()
        self._scatter = peer_exchange("scatter", group, _bytes(self._rounded), _bytes(self._received), size)
        # Everybody has received what this rank sent of the others' stretches: their means may replace it.
        self._gather = peer_exchange(
            "gather", group, [mine.view(torch.uint8)] * ranks, _bytes(self._rounded), size
        )

    def segments(self) -> list[Segment]:
        return [
            Local("compress", self._round),
            self._scatter,
            Local("decompress", self._mean),
            self._gather,
            Local("decompress", self._widen),
        ]

    def _round(self) -> None:
        self._rounded.view(-1)[: self.flat.numel].copy_(self.flat.data)

    def _mean(self) -> None:
        rank, ranks = self.group.rank, self.group.world_size
        self._sum.zero_()
        for sender in range(ranks):
            self._sum.add_(self._rounded[rank] if sender == rank else self._received[sender])
        self._rounded[rank].copy_(self._sum.div_(ranks))

    def _widen(self) -> None:
        self.flat.data.copy_(self._rounded.view(-1)[: self.flat.numel])


def _bytes(rows: Tensor) -> list[Tensor]:
    """Every row of ``rows`` [P, share] as bytes, on the same memory."""
    return [row.view(torch.uint8) for row in rows]
