"""Messages between every pair of ranks, sent directly: one message to each peer, whose size may differ each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from netsim_ddp.communication.exchange_errors import named
from netsim_ddp.communication.group_store import timeout_of
from netsim_ddp.communication.segments import Collective, Group, Local, Segment, Wire
from netsim_ddp.link.bucket.schedule import Sent


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

    group: Group
    ordered = False  # tags tell its messages from all others

    def __init__(
        self,
        operation: str,
        group: Group,
        outgoing: Sequence[Tensor],
        incoming: Sequence[Tensor],
        expected: int,
    ) -> None:
        self.operation = operation
        self.group, self._outgoing, self._incoming = group, outgoing, incoming
        self._number = next(group.tags)
        self.sizes = [expected] * group.world_size
        """Bytes of each rank's message; whoever writes the messages sets them before the exchange starts."""
        self._works: list[tuple[int | None, dist.Work]] = []
        """With the peer of each, where it has only one."""
        self._timeout: timedelta | None = None
        self.stand_in: Callable[[], None] | None = None
        """Writes into ``incoming`` what the others would have sent, where that is not what this rank sends itself."""

    @property
    def _tag(self) -> int:
        return self.group.channel.tag(self.group.process_group, self._number)

    def start(self) -> None:
        group = self.group.process_group
        for peer, room in self._receives():
            with named(self, peer):
                self._note(peer, dist.irecv(room, group=group, tag=self._tag, group_src=peer))
        for peer, message in self._sends():
            with named(self, peer):
                self._note(peer, dist.isend(message, group=group, tag=self._tag, group_dst=peer))

    def _receives(self) -> list[tuple[int, Tensor]]:
        me, ranks = self.group.rank, self.group.world_size
        return [(peer, self._incoming[peer]) for peer in ((me - step) % ranks for step in range(1, ranks))]

    def _sends(self) -> list[tuple[int, Tensor]]:
        me, ranks = self.group.rank, self.group.world_size
        peers = [(me + step) % ranks for step in range(1, ranks)]
        return [(peer, self._outgoing[peer][: self.sizes[peer]]) for peer in peers]

    def _note(self, peer: int, work: dist.Work | None) -> None:
        assert work is not None
        self._works.append((peer, work))

    def finish(self) -> None:
        works, self._works = self._works, []
        if self._timeout is None:
            self._timeout = timeout_of(self.group.process_group)
        latest = time.monotonic() + self._timeout.total_seconds()
        for peer, work in works:
            with named(self, peer):
                if peer is None:
                    work.wait()  # NCCL would have the processor wait for the GPU, were a timeout given
                else:  # all together have the group's timeout; zero would be none
                    work.wait(timedelta(seconds=max(latest - time.monotonic(), 1e-3)))

    def echo(self) -> None:
        if self.stand_in is not None:
            self.stand_in()
            return
        mine = self._outgoing[self.group.rank][: self.sizes[self.group.rank]]
        for peer, room in enumerate(self._incoming):
            if peer != self.group.rank:
                room[: mine.numel()].copy_(mine)

    def messages(self) -> list[int]:
        return [size for rank, size in enumerate(self.sizes) if rank != self.group.rank]

    def sent(self) -> Sent:
        return Sent(
            "alltoall", tuple(0 if rank == self.group.rank else size for rank, size in enumerate(self.sizes))
        )

    @property
    def payload_bytes(self) -> int:
        return sum(self.messages())


class AnnouncedExchange(PeerExchange):
    """The same where a receive must ask for exactly what was sent (NCCL): the sizes go ahead, one int64 to each
    peer, and :meth:`start` waits for them. They are no payload."""

    ordered = True

    def start(self) -> None:
        group, device = self.group.process_group, self._incoming[0].device
        told = torch.tensor(self.sizes, dtype=torch.int64, device=device)
        heard = torch.empty_like(told)
        with named(self):
            dist.all_to_all_single(heard, told, group=group)
            sizes = heard.tolist()
        operations = [
            *(self._operation(dist.irecv, room[: sizes[peer]], peer) for peer, room in self._receives()),
            *(self._operation(dist.isend, message, peer) for peer, message in self._sends()),
        ]
        with named(self):
            self._works = [(None, work) for work in dist.batch_isend_irecv(operations)]

    def _operation(self, kind: Callable[..., dist.Work | None], message: Tensor, peer: int) -> dist.P2POp:
        return dist.P2POp(kind, message, group=self.group.process_group, group_peer=peer, tag=self._tag)


def peer_exchange(
    operation: str, group: Group, outgoing: Sequence[Tensor], incoming: Sequence[Tensor], expected: int
) -> PeerExchange:
    """The exchange that ``group``'s backend can do."""
    kind = AnnouncedExchange if group.backend == "nccl" else PeerExchange
    return kind(operation, group, outgoing, incoming, expected)


def all_reduce(tensor: Tensor, group: Group) -> Wire:
    """The sum of ``tensor`` over ranks, in place."""
    size = tensor.numel() * tensor.element_size()

    def begin() -> dist.Work | None:
        return dist.all_reduce(tensor, group=group.process_group, async_op=True)

    # A ring all-reduce sends 2(P-1) messages of size/P.
    messages = (-(-size // group.world_size),) * (2 * (group.world_size - 1))
    sent = Sent("allreduce", (size,), tensor.element_size())
    return Collective(
        "all_reduce", begin, size, messages, sent, echo=lambda: _scale(tensor, group.world_size)
    )


def all_gather(tensor: Tensor, gathered: Tensor, group: Group) -> Wire:
    """``tensor`` of every rank, in rank order, in ``gathered`` [P, *shape]; its shape and type are the same on all.

    Both must lie where they can cross the wire, see :meth:`Group.wire_device`.

    Raises:
        ValueError: ``gathered`` has another shape or type.
    """
    wanted = (group.world_size, *tensor.shape)
    if tuple(gathered.shape) != wanted or gathered.dtype != tensor.dtype:
        raise ValueError(
            f"gathered must be {list(wanted)}, {tensor.dtype}; it is {list(gathered.shape)}, {gathered.dtype}"
        )
    size = tensor.numel() * tensor.element_size()

    def begin() -> dist.Work | None:
        return dist.all_gather(list(gathered.unbind(0)), tensor, group=group.process_group, async_op=True)

    messages = (size,) * (group.world_size - 1)
    return Collective("all_gather", begin, size, messages, echo=lambda: _copy(gathered, tensor))


def summed(tensor: Tensor, group: Group) -> list[Segment]:
    """:func:`all_reduce` of a tensor that may lie where it cannot cross the wire: then by way of the host."""
    device = group.wire_device(tensor.device)
    if device == tensor.device:
        return [all_reduce(tensor, group)]
    host = torch.empty_like(tensor, device=device, pin_memory=True)
    return [
        Local("compress", lambda: _copy(host, tensor)),
        all_reduce(host, group),
        Local("decompress", lambda: _copy(tensor, host)),
    ]


def _scale(tensor: Tensor, factor: int) -> None:
    tensor.mul_(factor)


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)
