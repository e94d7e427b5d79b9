"""Which rank of a bucket link called which operation when, in memory that all ranks of a host share.

They share one :class:`OperationTable`, made before they fork. Each rank notes there when it called an operation; the
last member to call it runs the one clock that all ranks, groups and messages share, and writes every member's
deadline, before its own part of the real operation starts. So whoever has finished moving data finds its deadline in
the table, and no rank has to repeat another's arithmetic.
"""

from __future__ import annotations

import itertools
import mmap
import multiprocessing
import threading
import time
import zlib
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from contextlib import contextmanager
from typing import cast

from netsim_ddp.errors import NetsimError, RankTimeout, UsageError
from netsim_ddp.link.bucket.clock import LinkClock
from netsim_ddp.link.bucket.schedule import Operation, charges
from netsim_ddp.link.semaphores import shared

_LOCK_TIMEOUT_S = 60.0
_MESSAGES_PER_PAIR = 64

Deadline = Callable[[], float | None]
"""Returns when an operation is done for this rank, in seconds of ``time.monotonic``; None as long as that is open."""


class OperationTable:
    """The calls of operations and the clock's own state, in anonymous shared memory: only processes that are forked
    later share it.

    Groups have a ring of ``slots`` operations each, found by sequence number; a slot is used again only
    when all its members have taken their deadlines out. Messages between two ranks have a ring per ordered
    pair, matched by tag in order of posting. Everything is written under one lock.

    Args:
        workers: ranks on this host, all of them.
        slots: operations of one group that may be in flight at once.
        groups: process groups that may be made (the default group is one).
    """

    _SLOT = 4  # sequence + 1, signature, members that called it, the last call's time
    _PAIR = 7  # key, bytes, posted by sender, by receiver, deadline of sender, of receiver, times taken

    def __init__(self, workers: int, slots: int = 128, groups: int = 8) -> None:
        self.workers, self.slots, self.groups = workers, slots, groups
        self._lock = shared(multiprocessing.get_context("fork").Lock)
        self._slot_cells = self._SLOT + workers * (4 + workers)
        self._directory = LinkClock.cells(workers)
        self._rings = self._directory + groups
        self._in_flight = self._rings + groups * slots * self._slot_cells
        self._pairs = self._in_flight + workers * workers
        # The first messages of all pairs lie together, then the second ones: of memory that is seldom used up, what is
        # never written to takes none.
        self._row = workers * workers * self._PAIR
        cells = self._pairs + _MESSAGES_PER_PAIR * self._row
        raw = memoryview(mmap.mmap(-1, 8 * cells))
        self.ints, self.floats = raw.cast("q"), raw.cast("d")
        self.clock = cast("MutableSequence[float]", self.floats[: self._directory])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the table.

        Raises:
            RankTimeout: a rank died while it held the table.
        """
        if not self._lock.acquire(timeout=_LOCK_TIMEOUT_S):
            raise RankTimeout("a rank died while it held the arrival table of the emulated link")
        try:
            yield
        finally:
            self._lock.release()

    def group_index(self, name: str) -> int:
        """Returns the number of the ring of the group called ``name``, the same in every rank."""
        key = zlib.crc32(name.encode()) + 1
        with self.locked():
            for cell in range(self._directory, self._rings):
                self.ints[cell] = self.ints[cell] or key
                if self.ints[cell] == key:
                    return cell - self._directory
        raise UsageError(
            f"the netsim process group keeps {self.groups} groups and {name!r} is one more",
            hint="make out-of-band groups with dist.new_group(backend='gloo'), or use --link tc",
        )

    def slot(self, group: int, sequence: int) -> int:
        """Returns the first cell of the slot for operation ``sequence`` of ``group``."""
        return self._rings + (group * self.slots + sequence % self.slots) * self._slot_cells

    def columns(self, slot: int) -> range:
        """Returns the first cells of a slot's columns, one entry per member: deadline, tx, rx, taken, splits."""
        first = slot + self._SLOT
        return range(first, first + 5 * self.workers, self.workers)

    def pair(self, src: int, dst: int) -> range:
        """Returns the first cells of the messages from ``src`` to ``dst``."""
        first = self._pairs + (src * self.workers + dst) * self._PAIR
        return range(first, first + _MESSAGES_PER_PAIR * self._row, self._row)

    def in_flight(self, src: int, dst: int) -> int:
        """Returns the cell that counts the messages from ``src`` to ``dst`` which are in one of :meth:`pair`'s."""
        return self._in_flight + src * self.workers + dst


class GroupMember:
    """One rank's side of the table for one group: note each call, and read its deadline later.

    What :meth:`call` and :meth:`post` return gives this rank's deadline once it is known, else None. Once all data has
    moved that is nearly always; only a rank that a collective does not make wait for all others (a gather's
    sender) can be earlier than the last call.
    """

    def __init__(
        self, table: OperationTable, clock: LinkClock, group: int, members: Sequence[int], rank: int
    ) -> None:
        self.table, self.clock, self.group = table, clock, group
        self.members, self.rank = tuple(members), rank
        self._sequence, self._counting = itertools.count(), threading.Lock()
        self.tx_bytes = self.rx_bytes = 0

    def begin(self) -> None:
        """The links' time begins; see :meth:`LinkClock.begin`."""
        with self.table.locked():
            self.clock.begin(time.monotonic())

    def expected_s(self, sizes: Sequence[int], sender: int, receiver: int) -> list[float]:
        """When messages between two members would be there, from now; see :meth:`LinkClock.expected_s`."""
        with self.table.locked():
            return self.clock.expected_s(
                sizes, self.members[sender], self.members[receiver], time.monotonic()
            )

    def charge(self, tx: int, rx: int) -> None:
        """Count bytes that this rank has sent and received."""
        with self._counting:
            self.tx_bytes += tx
            self.rx_bytes += rx

    def call(self, op: Operation, sends: Sequence[int], timeout_s: float) -> Deadline:
        """Note the call of a collective; ``sends`` are this rank's bytes to each member in an all-to-all.

        Raises:
            RankTimeout: the operation ``slots`` calls ago is still unfinished somewhere.
            NetsimError: another rank calls a different operation at this place.
        """
        now, sequence = time.monotonic(), next(self._sequence)
        table, ints, floats = self.table, self.table.ints, self.table.floats
        slot = table.slot(self.group, sequence)
        deadlines, tx, rx, taken, _ = (first + self.rank for first in table.columns(slot))
        while not self._enter(slot, sequence, now, op, sends):
            if time.monotonic() > now + timeout_s:
                raise RankTimeout(
                    f"{op.kind}: the operation {table.slots} calls ago has not finished everywhere"
                )
            time.sleep(1e-3)

        def deadline() -> float | None:
            found = floats[deadlines]
            if found:
                self.charge(ints[tx], ints[rx])
                ints[taken] = sequence + 1
            return found or None

        return deadline

    def _enter(self, slot: int, sequence: int, now: float, op: Operation, sends: Sequence[int]) -> bool:
        """Note the call if the slot is free or already this operation's; the last member to call runs the clock."""
        ints, floats, size = self.table.ints, self.table.floats, len(self.members)
        deadlines, tx, rx, taken, splits = self.table.columns(slot)
        signature = zlib.crc32(repr((op.kind, op.nbytes, op.root, op.itemsize)).encode())
        with self.table.locked():
            owner = ints[slot]
            if owner != sequence + 1:
                if owner and any(ints[taken + m] != owner for m in range(size)):
                    return False
                ints[slot], ints[slot + 1], ints[slot + 2], floats[slot + 3] = sequence + 1, signature, 0, 0.0
            if ints[slot + 1] != signature:
                raise NetsimError(
                    f"rank {self.rank} calls {op.kind} ({op.nbytes} bytes), another rank something else"
                )
            floats[slot + 3] = max(floats[slot + 3], now)
            floats[deadlines + self.rank] = 0.0
            for m, count in enumerate(sends, splits + self.rank * size):
                ints[m] = count
            ints[slot + 2] += 1
            if ints[slot + 2] == size:
                if op.kind == "alltoall":
                    rows = range(splits, splits + size * size, size)
                    op = Operation(op.kind, splits=tuple(tuple(ints[row : row + size]) for row in rows))
                for m, found in enumerate(
                    zip(*self.clock.complete(op, [floats[slot + 3]] * size, self.members), strict=True)
                ):
                    floats[deadlines + m], ints[tx + m], ints[rx + m] = found
        return True

    def post(self, peer: int, tag: int, nbytes: int, *, sending: bool) -> Deadline:
        """Note one end of a message; sends and receives of one tag are matched in the order of their posting.

        Raises:
            UsageError: too many messages between the two ranks that nobody waited for.
        """
        now = time.monotonic()
        ints, floats = self.table.ints, self.table.floats
        ends = (self.rank, peer) if sending else (peer, self.rank)
        src, dst = (self.members[end] for end in ends)
        mine, other = (2, 3) if sending else (3, 2)
        key = (self.group << 32 | tag & 0xFFFFFFFF) + 1
        counted = self.table.in_flight(src, dst)
        with self.table.locked():
            cells = self.table.pair(src, dst)
            cell, free, others = -1, -1, ints[counted]
            for each in cells:
                if ints[each] == 0:
                    free = each if free < 0 else free
                else:
                    others -= 1
                    earlier = cell < 0 or floats[each + other] < floats[cell + other]
                    if ints[each] == key and not floats[each + mine] and earlier:
                        cell = each
                if free >= 0 and not others:
                    break
            if cell < 0:
                if free < 0:
                    raise UsageError(
                        f"more than {len(cells)} messages in flight from rank {src} to rank {dst}",
                        hint="wait for the Work of every isend and irecv",
                    )
                cell = free
                ints[cell] = key
                ints[counted] += 1
            floats[cell + mine] = now
            if sending:
                ints[cell + 1] = nbytes
            if floats[cell + other]:
                floats[cell + 4], floats[cell + 5] = self.clock.complete(
                    Operation("send", ints[cell + 1]), (floats[cell + 2], floats[cell + 3]), (src, dst)
                ).deadlines

        def deadline() -> float | None:
            if not floats[
                cell + mine + 2
            ]:  # asked again and again: whoever computes it needs the table meanwhile
                return None
            with self.table.locked():
                found = floats[cell + mine + 2]
                if found:
                    tx, rx = charges(Operation("send", ints[cell + 1]), 2)
                    self.charge(tx[mine - 2], rx[mine - 2])
                    ints[cell + 6] += 1
                    if ints[cell + 6] == 2:
                        ints[counted] -= 1
                        for i in range(self.table._PAIR):
                            ints[cell + i] = 0
            return found or None

        return deadline
