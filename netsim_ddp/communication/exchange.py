"""Messages between every pair of ranks, sent directly: one message to each peer, whose size may differ each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from netsim_ddp.communication.segments import Group, Wire


class PeerExchange(Wire):
    """Every rank sends one message to each other rank and receives one from each.

    Receivers do not know the size beforehand: they offer room for the largest, and the message says how long it is.
    Receives are posted before the sends, and rank r sends to r+1 first, r+2 next, so that no receiver is everybody's
    first choice.

    Args:
        outgoing: the buffer for each rank, uint8; one's own is not sent. The same buffer may stand for several.
        incoming: room for what each rank sends, uint8.
        expected: bytes of a message before the first exchange.
    """

    def __init__(
        self,
        operation: str,
        group: Group,
        outgoing: Sequence[Tensor],
        incoming: Sequence[Tensor],
        expected: int,
    ) -> None:
        self.operation = operation
        self._group, self._outgoing, self._incoming = group, outgoing, incoming
        self._tag = next(group.tags)
        self.sizes = [expected] * group.world_size
        """Bytes of each rank's message; whoever writes the messages sets them before the exchange starts."""
        self._works: list[dist.Work] = []

    def start(self) -> None:
        me, ranks, group = self._group.rank, self._group.world_size, self._group.process_group
        for step in range(1, ranks):
            peer = (me - step) % ranks
            self._note(dist.irecv(self._incoming[peer], group=group, tag=self._tag, group_src=peer))
        for step in range(1, ranks):
            peer = (me + step) % ranks
            message = self._outgoing[peer][: self.sizes[peer]]
            self._note(dist.isend(message, group=group, tag=self._tag, group_dst=peer))

    def _note(self, work: dist.Work | None) -> None:
        assert work is not None
        self._works.append(work)

    def finish(self) -> None:
        for work in self._works:
            work.wait()
        self._works.clear()

    def messages(self) -> list[int]:
        return [size for rank, size in enumerate(self.sizes) if rank != self._group.rank]

    @property
    def payload_bytes(self) -> int:
        return sum(self.messages())
