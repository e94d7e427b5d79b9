"""Messages between all pairs of ranks: what arrives is what was sent, whatever the sizes, on every kind of exchange."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

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


def beside_others(rank: int, workers: int) -> dict[str, Any]:
    """A user's own messages with torch's default tag, and two exchanges whose second round starts in another order on
    every rank."""
    rooms, exchanges, outgoing = [], [], []
    for owner in range(2):
        group = Group(rank, workers)
        out = [torch.full((ROOM,), 10 * owner + rank, dtype=torch.uint8)] * workers
        rooms.append([torch.full((ROOM,), 255, dtype=torch.uint8) for _ in range(workers)])
        exchanges.append(PeerExchange("test", group, out, rooms[-1], ROOM))
        outgoing.append(out)
    peer, other = (rank + 1) % workers, (rank - 1) % workers
    room = torch.full((64,), -1.0)
    mine = dist.irecv(room, src=other)
    assert mine is not None
    for each in exchanges:
        each.run()
    order = exchanges if rank == 0 else exchanges[::-1]
    for each in order:
        each.start()
    for each in order:
        each.finish()
    dist.send(torch.full((64,), float(rank)), dst=peer)
    mine.wait()
    heard = [[int(room[0]) for room in each] for each in rooms]
    return {"heard": heard, "user": room[:2].tolist(), "rank": rank}


@pytest.mark.parametrize("workers", [2, 3])
def test_messages_of_users_and_of_other_exchanges_are_left_alone(workers: int) -> None:
    for found in on_ranks(beside_others, workers):
        rank = found["rank"]
        assert found["user"] == [float((rank - 1) % workers)] * 2
        for owner, heard in enumerate(found["heard"]):
            assert heard == [255 if peer == rank else 10 * owner + peer for peer in range(workers)]


def test_tags_stay_in_their_range() -> None:
    """Upper half of a signed 32-bit number, whatever number of exchanges and of owners there has been."""
    from netsim_ddp.communication import segments

    channel = segments.Channel()
    channel._first = segments.LAST_TAG + 1 - (1 << 16)
    assert channel.tag(None, (1 << 16) - 1) == segments.LAST_TAG == 2**31 - 1
    assert segments.FIRST_TAG <= channel.tag(None, 1 << 20) <= segments.LAST_TAG
