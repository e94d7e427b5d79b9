"""What Gloo sends for each operation: to whom, how many bytes, and what waits for what.

From Gloo's own sources, and the bytes of each collective counted on a loopback interface at P = 2 and 4: a ring
all-reduce in segments of which two are in flight, an all-gather in two half-chunks, a binomial broadcast, a
reduce-scatter that is an all-reduce.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from netsim_ddp.link.spec import SEGMENT_PAYLOAD, SEGMENT_WIRE

HEADER_BYTES = SEGMENT_WIRE - SEGMENT_PAYLOAD  # Ethernet 14, IP 20, TCP 20 + 12
PREAMBLE_BYTES = 48  # Gloo's, in front of every message
MAX_SEGMENT_BYTES = 1 << 20  # Gloo's ring segment


def wire_bytes(payload: int) -> int:
    """Bytes that ``payload`` bytes take on an Ethernet of MTU 1500, each segment's headers included."""
    return payload + HEADER_BYTES * -(-payload // SEGMENT_PAYLOAD)


def message_bytes(payload: int) -> int:
    """Wire bytes of one Gloo message with ``payload`` bytes of data."""
    return wire_bytes(payload + PREAMBLE_BYTES)


NOTICE_BYTES = message_bytes(0)  # "ready to send", and the "ready to receive" that comes back


@dataclass(frozen=True)
class Operation:
    """One collective or message, described alike by every rank that takes part.

    ``nbytes`` is payload: all-reduce, reduce, broadcast and reduce-scatter: the whole input tensor of one
    rank; all-gather, gather: one rank's contribution; scatter: what one rank receives; send: the message
    from member 0 to member 1. All-to-all reads ``splits[i][j]``, the bytes that i sends to j.
    """

    kind: str
    nbytes: int = 0
    root: int = 0
    itemsize: int = 1
    splits: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Sent:
    """What one rank's part in one exchange was, for whoever computes how long the link needs for it.

    ``kind`` is ``allreduce`` (``sizes``: the bytes of the tensor), ``alltoall`` (the bytes of the message to each rank,
    0 to itself) or ``messages`` (the bytes of what it sent, one after another).
    """

    kind: str
    sizes: tuple[int, ...]
    itemsize: int = 1


class Message(NamedTuple):
    """``wire`` bytes from member ``src`` to member ``dst``."""

    src: int
    dst: int
    wire: int


class Phase(NamedTuple):
    """Rounds of messages; a rank begins round i once it has received its round i - window."""

    rounds: tuple[tuple[Message, ...], ...]
    window: int


def _phase(rounds: Iterable[Iterable[tuple[int, int, int]]], window: int = 1) -> Phase:
    """A phase from (src, dst, payload bytes)."""
    return Phase(
        tuple(tuple(Message(a, b, message_bytes(size)) for a, b, size in each) for each in rounds), window
    )


def _ring_segments(p: int, nbytes: int, itemsize: int) -> tuple[int, int, Callable[[int], int]]:
    """Gloo's cut of a ring all-reduce: segments in all, segments per rank, and the length of each."""
    limit = itemsize * max(1, MAX_SEGMENT_BYTES // itemsize)
    count = max(-(-nbytes // limit), 2 * p)
    count = -(-count // p) * p
    size = math.ceil(math.ceil(nbytes / count) / itemsize) * itemsize
    return count, count // p, lambda segment: min(size, nbytes - (segment % count) * size)


def _ring(
    p: int, rounds: int, first: int, per_rank: int, length: Callable[[int], int], senders: Iterable[int]
) -> Phase:
    """Rank r sends segment (r + first)·per_rank + i to r - 1 in round i; empty segments are not sent."""
    return _phase(
        (
            [
                (r, (r - 1) % p, length((r + first) * per_rank + i))
                for r in senders
                if length((r + first) * per_rank + i) > 0
            ]
            for i in range(rounds)
        ),
        window=2,
    )


def _allreduce(p: int, op: Operation, senders: Iterable[int]) -> list[Phase]:
    count, per_rank, length = _ring_segments(p, op.nbytes, op.itemsize)
    rounds = count - per_rank
    return [_ring(p, rounds, first, per_rank, length, senders) for first in (1, 0)]


def _reduce(p: int, op: Operation, senders: Iterable[int]) -> list[Phase]:
    count, per_rank, length = _ring_segments(p, op.nbytes, op.itemsize)
    chunks = [
        (r, op.root, sum(max(0, length(r * per_rank + i)) for i in range(per_rank)))
        for r in range(p)
        if r != op.root
    ]
    return [_ring(p, count - 2, 1, per_rank, length, senders), _phase([[c for c in chunks if c[2] > 0]])]


def _allgather(p: int, op: Operation, senders: Iterable[int]) -> list[Phase]:
    halves = (op.nbytes // 2, op.nbytes - op.nbytes // 2)
    rounds = ([(r, (r + 1) % p, halves[i % 2]) for r in senders] for i in range(2 * (p - 1)))
    return [_phase(rounds, window=2)]


def _powers_of_two(p: int) -> list[int]:
    """Those below ``p``."""
    return [1 << bit for bit in range((p - 1).bit_length())]


def _broadcast(p: int, op: Operation, _senders: Iterable[int]) -> list[Phase]:
    rounds = (
        [((v + op.root) % p, (v + step + op.root) % p, op.nbytes) for v in range(step) if v + step < p]
        for step in _powers_of_two(p)
    )
    return [_phase(rounds)]


def _gather(p: int, op: Operation, _senders: Iterable[int]) -> list[Phase]:
    return [_phase([[(r, op.root, op.nbytes) for r in range(p) if r != op.root]])]


def _scatter(p: int, op: Operation, _senders: Iterable[int]) -> list[Phase]:
    return [_phase([[(op.root, r, op.nbytes) for r in range(p) if r != op.root]])]


def _alltoall(p: int, op: Operation, senders: Iterable[int]) -> list[Phase]:
    return [_phase([[(r, (r + i) % p, op.splits[r][(r + i) % p]) for i in range(1, p) for r in senders]])]


def _barrier(p: int, _op: Operation, _senders: Iterable[int]) -> list[Phase]:
    return [_phase([(r, (r + step) % p, 0) for r in range(p)] for step in _powers_of_two(p))]


def _send(_p: int, op: Operation, _senders: Iterable[int]) -> list[Phase]:
    return [_phase([[(0, 1, op.nbytes)]])]


_SCHEDULES: dict[str, Callable[[int, Operation, Iterable[int]], list[Phase]]] = {
    "allreduce": _allreduce,
    "reduce_scatter": _allreduce,  # Gloo all-reduces the whole input and copies a part of it
    "allgather": _allgather,
    "broadcast": _broadcast,
    "reduce": _reduce,
    "gather": _gather,
    "scatter": _scatter,
    "alltoall": _alltoall,
    "barrier": _barrier,
    "send": _send,
}
_EMPTY_IS_FREE = frozenset({"allreduce", "reduce_scatter", "reduce", "allgather"})
KINDS = tuple(_SCHEDULES)


KEPT_MEMBERS = 16
"""A collective of more ranks has too many messages to be kept: they grow as the square, and every rank would keep them.
Making them again takes a small part of what walking through them does."""


def schedule(op: Operation, members: int) -> tuple[Phase, ...]:
    """What Gloo sends for ``op`` among ``members`` ranks, phase by phase.

    Raises:
        ValueError: an operation that has no schedule here.
    """
    return (_kept if members <= KEPT_MEMBERS else _made)(op, members)


def _made(op: Operation, members: int) -> tuple[Phase, ...]:
    if op.kind not in _SCHEDULES:
        raise ValueError(f"the bucket has no schedule for {op.kind}")
    return _sent_by(range(members), op, members)


_kept = lru_cache(maxsize=64)(_made)


FOLDABLE = ("allreduce", "allgather", "alltoall")
"""Operations in which every rank sends and receives alike."""


@lru_cache(maxsize=64)
def folded(op: Operation, members: int) -> tuple[Phase, ...]:
    """What member 0 alone sends in :func:`schedule`, of an operation in which all do alike.

    Raises:
        ValueError: an operation in which they do not.
    """
    if op.kind not in FOLDABLE:
        raise ValueError(f"the ranks of {op.kind} do not all do alike")
    return _sent_by((0,), op, members)


def _sent_by(senders: Iterable[int], op: Operation, members: int) -> tuple[Phase, ...]:
    if members == 1 or (op.nbytes == 0 and op.kind in _EMPTY_IS_FREE):
        return ()
    return tuple(_SCHEDULES[op.kind](members, op, senders))


@lru_cache(maxsize=1024)
def charges(op: Operation, members: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bytes each member sends and receives, as a qdisc would count them, acknowledgements left out."""
    tx, rx = [0] * members, [0] * members
    for phase in schedule(op, members):
        for messages in phase.rounds:
            for a, b, wire in messages:
                tx[a] += wire + NOTICE_BYTES
                rx[b] += wire + NOTICE_BYTES
                tx[b] += NOTICE_BYTES
                rx[a] += NOTICE_BYTES
    return tuple(tx), tuple(rx)
