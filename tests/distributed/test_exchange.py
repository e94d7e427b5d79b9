"""Messages between all pairs of ranks: what arrives is what was sent, whatever the sizes, on every kind of exchange."""

from __future__ import annotations

import pytest
import torch

from netsim_ddp.communication.exchange import AnnouncedExchange, PeerExchange
from netsim_ddp.communication.segments import Group
from tests.distributed.ranks import on_ranks

ROOM = 5000
KINDS = {"sizes found out": PeerExchange, "sizes announced": AnnouncedExchange}


def size_of(sender: int, receiver: int, step: int) -> int:
    """From a single byte to all there is room for."""
    return (1, ROOM, 17 + 100 * sender + 31 * receiver)[(sender + receiver + step) % 3]


def content(sender: int, receiver: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * sender + 10 * receiver + step)
    size = size_of(sender, receiver, step)
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)


def exchange(rank: int, workers: int, kind: str) -> list[list[list[int]]]:
    """Three rounds over the same buffers: what this rank received of each rank."""
    outgoing = [torch.zeros(ROOM, dtype=torch.uint8) for _ in range(workers)]
    incoming = [torch.zeros(ROOM, dtype=torch.uint8) for _ in range(workers)]
    wire = KINDS[kind]("test", Group(rank, workers), outgoing, incoming, ROOM)
    found = []
    for step in range(3):
        for peer in range(workers):
            wire.sizes[peer] = size_of(rank, peer, step)
            outgoing[peer][: wire.sizes[peer]] = content(rank, peer, step)
        wire.run()
        assert wire.messages() == [size_of(rank, peer, step) for peer in range(workers) if peer != rank]
        found.append([incoming[peer][: size_of(peer, rank, step)].tolist() for peer in range(workers)])
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [2, 3])
def test_every_message_arrives_whole(kind: str, workers: int) -> None:
    for rank, rounds in enumerate(on_ranks(exchange, workers, kind)):
        for step, received in enumerate(rounds):
            for peer in range(workers):
                if peer != rank:
                    assert received[peer] == content(peer, rank, step).tolist(), (rank, peer, step)
