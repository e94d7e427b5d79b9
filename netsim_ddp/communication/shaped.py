"""The process group ``netsim``: Gloo moves the data, the token bucket says when it is there.

Every operation is really carried out by a wrapped ``ProcessGroupGloo``. Its Work and its future are held
back until the emulated links would have delivered, and never complete earlier. Where Gloo itself was later,
the host is the limit: that time is counted (``host_late_s``), since then the link was not what was measured.

All ranks of a host share one :class:`ArrivalTable`, made before they fork. Each rank notes there when it
called an operation; the last one to arrive runs the one clock that all ranks, groups and messages share, and
writes every member's deadline, before its own part of the real operation starts. So whoever has finished
moving data finds its deadline in the table, and no rank has to repeat another's arithmetic.

::

    table = ArrivalTable(workers)                  # before the fork
    register(BucketSpec.uniform(workers, 10**9), table)      # in each worker
    dist.init_process_group("netsim", init_method=..., rank=rank, world_size=workers)
    ...
    shaped_group().charged()
"""

from __future__ import annotations

import heapq
import itertools
import mmap
import multiprocessing
import os
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from netsim_ddp.errors import NetsimError, RankTimeout, UsageError
from netsim_ddp.link.bucket import BucketSpec, LinkClock, Operation, charges

NAME = "netsim"
_NO_TIMEOUT = timedelta(0)
_LOCK_TIMEOUT_S = 60.0
_MESSAGES_PER_PAIR = 64
_COARSE_S = 0.2e-3  # a condition variable wakes up this late at worst; the rest is slept exactly
_NOTICEABLE_S = 0.2e-3

Collect = Callable[[], float | None]
# Its stub lists overloads that nobody calls on a subclass; only the forms that are called stand here.
_ProcessGroup: Any = dist.ProcessGroup


def sleep_until(deadline: float) -> None:
    """Return at ``deadline`` (seconds of ``time.monotonic``), never before; the GIL is free meanwhile."""
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(left)


class ArrivalTable:
    """Who called which operation when: shared memory in which ranks meet, and the clock's own state.

    Groups have a ring of ``slots`` operations each, found by sequence number; a slot is used again only
    when all its members have taken their deadlines out. Messages between two ranks have a ring per ordered
    pair, matched by tag in order of posting. Everything is written under one lock.

    Args:
        workers: ranks on this host, all of them.
        slots: operations of one group that may be in flight at once.
        groups: process groups that may be made (the default group is one).
        memory: at least ``size_bytes(...)`` of zeroed shared memory; anonymous by default, so that only
            processes forked afterwards share it.
        lock: a lock shared by the same processes.
    """

    _SLOT = 4  # sequence + 1, signature, members arrived, last arrival
    _PAIR = 7  # key, bytes, posted by sender, by receiver, deadline of sender, of receiver, times taken

    def __init__(
        self,
        workers: int,
        slots: int = 128,
        groups: int = 8,
        memory: mmap.mmap | None = None,
        lock: Any = None,
    ) -> None:
        self.workers, self.slots, self.groups = workers, slots, groups
        size = self.size_bytes(workers, slots, groups)
        self.memory = mmap.mmap(-1, size) if memory is None else memory
        if len(self.memory) < size:
            raise ValueError(f"the table needs {size} bytes of shared memory, got {len(self.memory)}")
        self._lock = multiprocessing.get_context("fork").Lock() if lock is None else lock
        raw = memoryview(self.memory)[:size]
        self.ints, self.floats = raw.cast("q"), raw.cast("d")
        self.clock: Any = self.floats[: LinkClock.cells(workers)]
        self._directory = LinkClock.cells(workers)
        self._rings = self._directory + groups
        self._slot_cells = self._SLOT + workers * (4 + workers)
        self._pairs = self._rings + groups * slots * self._slot_cells

    @classmethod
    def size_bytes(cls, workers: int, slots: int = 128, groups: int = 8) -> int:
        slot = cls._SLOT + workers * (4 + workers)
        pairs = workers * workers * _MESSAGES_PER_PAIR * cls._PAIR
        return 8 * (LinkClock.cells(workers) + groups + groups * slots * slot + pairs)

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
        """The ring of the group called ``name``, the same in every rank."""
        key = zlib.crc32(name.encode()) + 1
        with self.locked():
            for i in range(self.groups):
                cell = self._directory + i
                if self.ints[cell] == 0:
                    self.ints[cell] = key
                if self.ints[cell] == key:
                    return i
        raise UsageError(
            f"the netsim process group keeps {self.groups} groups and {name!r} is one more",
            hint="make out-of-band groups with dist.new_group(backend='gloo'), or use --link tc",
        )

    def slot(self, group: int, sequence: int) -> int:
        """The first cell of the slot for operation ``sequence`` of ``group``."""
        return self._rings + (group * self.slots + sequence % self.slots) * self._slot_cells

    def columns(self, slot: int) -> tuple[int, int, int, int, int]:
        """First cells of a slot's columns, one entry per member: deadline, tx, rx, taken, splits."""
        first, w = slot + self._SLOT, self.workers
        return first, first + w, first + 2 * w, first + 3 * w, first + 4 * w

    def pair(self, src: int, dst: int) -> range:
        """First cells of the messages from ``src`` to ``dst``."""
        size = _MESSAGES_PER_PAIR * self._PAIR
        first = self._pairs + (src * self.workers + dst) * size
        return range(first, first + size, self._PAIR)


class Meeting:
    """One rank's side of the table for one group: arrive, and collect the deadline later.

    What arriving returns gives this rank's deadline (seconds) once it stands, else None. Once all data has
    moved that is nearly always; only a rank that a collective does not make wait for all others (a gather's
    sender) can be earlier than the last arrival.
    """

    def __init__(
        self, table: ArrivalTable, clock: LinkClock, group: int, members: Sequence[int], rank: int
    ) -> None:
        self.table, self.clock, self.group = table, clock, group
        self.members, self.rank = tuple(members), rank
        self._sequence = itertools.count()
        self._counting = threading.Lock()
        self.tx_bytes = self.rx_bytes = 0

    def charge(self, tx: int, rx: int) -> None:
        with self._counting:
            self.tx_bytes += tx
            self.rx_bytes += rx

    def arrive(self, op: Operation, sends: Sequence[int], timeout_s: float) -> Collect:
        """Note the call of a collective; ``sends`` are this rank's bytes to each member in an all-to-all.

        Raises:
            RankTimeout: the operation ``slots`` calls ago is still unfinished somewhere.
            NetsimError: another rank calls a different operation at this place.
        """
        now = time.monotonic()
        table, ints, floats = self.table, self.table.ints, self.table.floats
        sequence = next(self._sequence)
        slot = table.slot(self.group, sequence)
        deadlines, tx, rx, taken, _ = (first + self.rank for first in table.columns(slot))
        while not self._enter(slot, sequence, now, op, sends):
            if time.monotonic() > now + timeout_s:
                raise RankTimeout(
                    f"{op.kind}: the operation {table.slots} calls ago has not finished everywhere"
                )
            time.sleep(1e-3)

        def collect() -> float | None:
            deadline = floats[deadlines]
            if deadline:
                self.charge(ints[tx], ints[rx])
                ints[taken] = sequence + 1
            return deadline or None

        return collect

    def _enter(self, slot: int, sequence: int, now: float, op: Operation, sends: Sequence[int]) -> bool:
        """Arrive if the slot is free or already this operation's; the last to arrive runs the clock."""
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
            for m, count in enumerate(sends):
                ints[splits + self.rank * size + m] = count
            ints[slot + 2] += 1
            if ints[slot + 2] == size:
                if op.kind == "alltoall":
                    rows = (splits + a * size for a in range(size))
                    op = Operation(op.kind, splits=tuple(tuple(ints[row : row + size]) for row in rows))
                result = self.clock.complete(op, [floats[slot + 3]] * size, self.members)
                for m in range(size):
                    ints[tx + m], ints[rx + m] = result.tx_bytes[m], result.rx_bytes[m]
                    floats[deadlines + m] = result.deadlines[m]
        return True

    def post(self, peer: int, tag: int, nbytes: int, *, sending: bool) -> Collect:
        """Note one end of a message; sends and receives of one tag meet in the order of their posting.

        Raises:
            UsageError: too many messages between the two ranks that nobody waited for.
        """
        now = time.monotonic()
        ints, floats = self.table.ints, self.table.floats
        src, dst = self.members[self.rank], self.members[peer]
        if not sending:
            src, dst = dst, src
        mine, other = (2, 3) if sending else (3, 2)
        key = (self.group << 32 | tag & 0xFFFFFFFF) + 1
        with self.table.locked():
            cells = self.table.pair(src, dst)
            met = [c for c in cells if ints[c] == key and not floats[c + mine]]
            free = next((c for c in cells if ints[c] == 0), None)
            if met:
                cell = min(met, key=lambda c: floats[c + other])
            elif free is not None:
                cell = free
                for i in range(1, 7):
                    ints[cell + i] = 0
                ints[cell] = key
            else:
                raise UsageError(
                    f"more than {len(cells)} messages in flight from rank {src} to rank {dst}",
                    hint="wait for the Work of every isend and irecv",
                )
            floats[cell + mine] = now
            if sending:
                ints[cell + 1] = nbytes
            if floats[cell + other]:
                arrivals = (floats[cell + 2], floats[cell + 3])
                result = self.clock.complete(Operation("send", ints[cell + 1]), arrivals, (src, dst))
                floats[cell + 4], floats[cell + 5] = result.deadlines

        def collect() -> float | None:
            with self.table.locked():
                deadline = floats[cell + mine + 2]
                if deadline:
                    tx, rx = charges(Operation("send", ints[cell + 1]), 2)
                    self.charge(tx[mine - 2], rx[mine - 2])
                    ints[cell + 6] += 1
                    if ints[cell + 6] == 2:
                        ints[cell] = 0
            return deadline or None

        return collect


class DeadlineTimer:
    """Runs callbacks at absolute times, never early. One thread waits, and completes what is due itself.

    Before it runs a callback it hands the waiting to another thread: a callback may be a user's ``then``
    that itself waits for a later deadline.
    """

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        lock = threading.Lock()
        self._changed, self._seat = threading.Condition(lock), threading.Condition(lock)
        self._led = False
        self._spare = 0

    def at(self, deadline: float, callback: Callable[[], None]) -> None:
        """Run ``callback`` at ``deadline`` (seconds of ``time.monotonic``), at once if that has passed."""
        with self._changed:
            heapq.heappush(self._due, (deadline, next(self._order), callback))
            if self._due[0][0] == deadline:
                self._changed.notify()
            if not self._led and not self._spare:
                self._start()

    def _start(self) -> None:
        self._spare += 1
        threading.Thread(target=self._serve, name="netsim-deadlines", daemon=True).start()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while self._led:
                    self._seat.wait()
                self._led = True
                self._spare -= 1
                while not self._due or (left := self._due[0][0] - time.monotonic()) > _COARSE_S:
                    self._changed.wait(left - _COARSE_S if self._due else None)
                deadline, _, callback = heapq.heappop(self._due)
                self._led = False
                if self._spare:
                    self._seat.notify()
                else:
                    self._start()
            sleep_until(deadline)
            callback()
            with self._changed:
                self._spare += 1


_timers: dict[int, DeadlineTimer] = {}


def _timer() -> DeadlineTimer:
    """This process's timer; threads do not survive a fork, so a child makes its own."""
    return _timers.setdefault(os.getpid(), DeadlineTimer())


class Lateness:
    """What the host added: operations whose data moved later than the emulated link would have had it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self.host_late_s, self.host_late_count = 0.0, 0

    def note(self, moved: float, deadline: float) -> None:
        if moved > deadline:
            with self._lock:
                self.host_late_s += moved - deadline
                self.host_late_count += 1


class ShapedWork(dist.Work):
    """A collective whose future completes at its deadline."""

    def __init__(self, future: torch.futures.Future[Any]) -> None:
        super().__init__()
        self._future = future

    def wait(self, timeout: timedelta = _NO_TIMEOUT) -> bool:
        if timeout > _NO_TIMEOUT:
            give_up = time.monotonic() + timeout.total_seconds()
            while not self._future.done():
                if time.monotonic() > give_up:
                    raise RuntimeError(f"the operation did not finish within {timeout.total_seconds():g} s")
                time.sleep(_COARSE_S)
        self._future.wait()
        return True

    def synchronize(self) -> None:
        self.wait()

    def get_future(self) -> torch.futures.Future[Any]:
        return self._future

    def is_completed(self) -> bool:
        return self._future.done()

    def is_success(self) -> bool:
        return self._future.done() and self.exception() is None

    def exception(self) -> BaseException | None:
        try:
            self._future.value()
        except RuntimeError as error:
            return error
        return None

    def result(self) -> Any:
        return self._future.value()


class WaitedWork(dist.Work):
    """An operation that Gloo completes only when it is waited for (messages, reduce-scatter).

    The waiting thread itself sleeps until the deadline. ``get_future`` starts a thread that waits.
    """

    def __init__(self, real: dist.Work, collect: Collect, late: Lateness, result: Any) -> None:
        super().__init__()
        self._real, self._collect, self._late, self._result = real, collect, late, result
        self._lock = threading.Lock()
        self._finished = False
        self._error: BaseException | None = None
        self._future: torch.futures.Future[Any] | None = None

    def wait(self, timeout: timedelta = _NO_TIMEOUT) -> bool:
        with self._lock:
            if self._finished:
                return True
            asked = time.monotonic()
            try:
                self._real.wait(timeout)
            except RuntimeError as error:
                self._error = error
                raise
            moved = time.monotonic()
            while (deadline := self._collect()) is None:
                time.sleep(_COARSE_S)
            # Whoever asks late cannot know when the data came; it was late only if it kept the asker waiting.
            if moved - max(asked, deadline) > _NOTICEABLE_S:
                self._late.note(moved, max(asked, deadline))
            sleep_until(deadline)
            self._finished = True
        return True

    def synchronize(self) -> None:
        self.wait()

    def get_future(self) -> torch.futures.Future[Any]:
        if self._future is None:
            future = self._future = torch.futures.Future()

            def complete() -> None:
                try:
                    self.wait()
                except RuntimeError as error:
                    future.set_exception(error)
                else:
                    future.set_result(self._result)

            threading.Thread(target=complete, name="netsim-wait", daemon=True).start()
        return self._future

    def is_completed(self) -> bool:
        return self._finished or self._error is not None

    def is_success(self) -> bool:
        return self._finished

    def exception(self) -> BaseException | None:
        return self._error

    def result(self) -> Any:
        return self._result

    def source_rank(self) -> int:
        return int(self._real._source_rank())


def _nbytes(tensors: Any) -> int:
    """Payload bytes of dense CPU tensors.

    Raises:
        NotImplementedError: a sparse tensor, one on another device, or ProcessGroup's single-tensor form.
    """
    if isinstance(tensors, torch.Tensor):
        _refuse("an operation on a bare tensor instead of a list")
    for tensor in tensors:
        if tensor.layout != torch.strided:
            _refuse(f"operations on {tensor.layout} tensors")
        if tensor.device.type != "cpu":
            _refuse(f"operations on {tensor.device.type} tensors")
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _refuse(what: str) -> NoReturn:
    raise NotImplementedError(f"the netsim process group does not emulate {what}; use --link tc")


def _refused(name: str) -> Callable[..., NoReturn]:
    def method(self: object, *args: object, **kwargs: object) -> NoReturn:  # noqa: ARG001 - any call is refused
        _refuse(name)

    method.__name__ = name
    return method


class ShapedProcessGroup(_ProcessGroup):  # type: ignore[misc]
    """Gloo under an emulated link; see the module. Made by ``init_process_group("netsim")``.

    The operations have the arguments of the ``ProcessGroup`` methods of the same name, in the form that
    ``torch.distributed`` and DDP use (lists of tensors, one options object), which pass through to Gloo.
    What is not emulated raises ``NotImplementedError`` and names the operation.
    """

    def __init__(self, gloo: Any, meeting: Meeting, timeout: timedelta) -> None:
        super().__init__(meeting.rank, len(meeting.members))
        self._gloo, self._meeting, self._timeout = gloo, meeting, timeout
        self._late = Lateness()

    def charged(self) -> tuple[int, int]:
        """(sent, received) wire bytes of this rank since the last reset: charged, not measured."""
        return self._meeting.tx_bytes, self._meeting.rx_bytes

    @property
    def host_late_s(self) -> float:
        """Seconds by which this rank's data moved later than its deadlines, summed since the last reset."""
        return self._late.host_late_s

    @property
    def host_late_count(self) -> int:
        """Operations whose data moved later than their deadline since the last reset."""
        return self._late.host_late_count

    def reset_counters(self) -> None:
        self._meeting.charge(-self._meeting.tx_bytes, -self._meeting.rx_bytes)
        self._late.reset()

    def _run(self, op: Operation, gloo_name: str, *args: Any, sends: Sequence[int] = ()) -> dist.Work:
        """Arrive, start Gloo's ``gloo_name`` on ``args``, complete it when the emulated link would have.

        A last argument of None is Gloo's own default and is left away.
        """
        start = getattr(self._gloo, gloo_name, None) or getattr(self._gloo, _OLD_NAMES[gloo_name])
        if args and args[-1] is None:
            args = args[:-1]
        collect = self._meeting.arrive(op, sends, self._timeout.total_seconds())
        real = start(*args)
        try:
            moving = real.get_future()
        except (RuntimeError, NotImplementedError):
            return WaitedWork(real, collect, self._late, args[0] if args else None)
        return ShapedWork(self._held_back(moving, collect))

    def _held_back(self, moving: Any, collect: Collect) -> torch.futures.Future[Any]:
        """A future with the value of ``moving`` that completes at the deadline, or fails when Gloo does."""
        future: torch.futures.Future[Any] = torch.futures.Future()
        timer, late = _timer(), self._late

        def landed(done: Any) -> None:
            moved = time.monotonic()
            try:
                value = done.value()
            except Exception as error:  # noqa: BLE001 - the waiter raises it
                future.set_exception(error)
                return

            def finish() -> None:
                deadline = collect()
                if deadline is None:
                    timer.at(time.monotonic() + _COARSE_S, finish)
                elif deadline <= time.monotonic():
                    late.note(moved, deadline)
                    future.set_result(value)
                else:
                    timer.at(deadline, lambda: future.set_result(value))

            finish()

        moving.add_done_callback(landed)
        return future

    def allreduce(self, tensors: Any, opts: Any = None) -> dist.Work:
        op = Operation("allreduce", _nbytes(tensors), itemsize=tensors[0].element_size())
        return self._run(op, "allreduce", tensors, opts)

    def allreduce_coalesced(self, tensors: Any, opts: Any = None) -> dist.Work:
        op = Operation("allreduce", _nbytes(tensors), itemsize=tensors[0].element_size())
        return self._run(op, "allreduce_coalesced", tensors, opts)

    def reduce(self, tensors: Any, opts: Any = None) -> dist.Work:
        root = 0 if opts is None else opts.rootRank
        op = Operation("reduce", _nbytes(tensors), root, tensors[0].element_size())
        return self._run(op, "reduce", tensors, opts)

    def broadcast(self, tensors: Any, opts: Any = None) -> dist.Work:
        root = 0 if opts is None else opts.rootRank
        return self._run(Operation("broadcast", _nbytes(tensors), root), "broadcast", tensors, opts)

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        return self._run(Operation("allgather", _nbytes(inputs)), "allgather", outputs, inputs, opts)

    def allgather_coalesced(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        return self._run(
            Operation("allgather", _nbytes(inputs)), "allgather_coalesced", outputs, inputs, opts
        )

    def all_gather_single(self, output: Any, source: Any, opts: Any = None) -> dist.Work:
        return self._run(Operation("allgather", _nbytes([source])), "all_gather_single", output, source, opts)

    def all_gather_single_coalesced(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        op = Operation("allgather", _nbytes(inputs))
        return self._run(op, "all_gather_single_coalesced", outputs, inputs, opts)

    def gather(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        root = 0 if opts is None else opts.rootRank
        return self._run(Operation("gather", _nbytes(inputs), root), "gather", outputs, inputs, opts)

    def scatter(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        root = 0 if opts is None else opts.rootRank
        return self._run(Operation("scatter", _nbytes(outputs), root), "scatter", outputs, inputs, opts)

    def reduce_scatter(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        nbytes = sum(_nbytes(tensors) for tensors in inputs)
        op = Operation("reduce_scatter", nbytes, itemsize=outputs[0].element_size())
        return self._run(op, "reduce_scatter", outputs, inputs, opts)

    def reduce_scatter_single(self, output: Any, source: Any, opts: Any = None) -> dist.Work:
        op = Operation("reduce_scatter", _nbytes([source]), itemsize=source.element_size())
        return self._run(op, "reduce_scatter_single", output, source, opts)

    def reduce_scatter_single_coalesced(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        op = Operation("reduce_scatter", _nbytes(inputs), itemsize=inputs[0].element_size())
        return self._run(op, "reduce_scatter_single_coalesced", outputs, inputs, opts)

    def alltoall(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        sends = [_nbytes([tensor]) for tensor in inputs]
        return self._run(Operation("alltoall"), "alltoall", outputs, inputs, opts, sends=sends)

    def all_to_all_single(
        self, output: Any, source: Any, output_splits: Any, input_splits: Any, opts: Any = None
    ) -> dist.Work:
        nbytes, size = _nbytes([source]), len(self._meeting.members)
        rows = list(input_splits) or [1] * size
        sends = [nbytes * row // max(1, sum(rows)) for row in rows]
        args = (output, source, output_splits, input_splits, opts)
        return self._run(Operation("alltoall"), "all_to_all_single", *args, sends=sends)

    def barrier(self, opts: Any = None) -> dist.Work:
        return self._run(Operation("barrier"), "barrier", opts)

    def send(self, tensors: Any, dst: int, tag: int) -> dist.Work:
        collect = self._meeting.post(dst, tag, _nbytes(tensors), sending=True)
        return WaitedWork(self._gloo.send(tensors, dst, tag), collect, self._late, tensors)

    def recv(self, tensors: Any, src: int, tag: int) -> dist.Work:
        collect = self._meeting.post(src, tag, _nbytes(tensors), sending=False)
        return WaitedWork(self._gloo.recv(tensors, src, tag), collect, self._late, tensors)

    # The names that torch before 2.9 calls; the newer one is the method, the older its alias.
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single

    recv_anysource = recvAnysource = _refused("a receive from any source")
    gather_single = gather_into_tensor = _refused("gather_single")
    monitored_barrier = _refused("monitored_barrier")
    new_window = _refused("one-sided windows")
    reconfigure = _refused("reconfigure")
    split_group = splitGroup = _refused("split_group")
    merge_remote_group = mergeRemoteGroup = _refused("merge_remote_group")
    start_coalescing = _start_coalescing = _refused("coalescing")
    end_coalescing = _end_coalescing = _refused("coalescing")

    def _get_backend(self, device: torch.device) -> Any:
        """Gloo's backend object: ``torch.distributed`` asks it what it supports, never to move data."""
        if torch.device(device).type != "cpu":
            _refuse(f"operations on {torch.device(device).type} tensors")
        return self._gloo

    def getBackendName(self) -> str:
        return NAME

    def name(self) -> str:
        return NAME

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout = timeout
        self._gloo.set_timeout(timeout)

    def shutdown(self) -> None:
        self._gloo.shutdown()

    def abort(self) -> None:
        self._gloo.abort()


_OLD_NAMES = {
    "all_gather_single": "_allgather_base",
    "all_gather_single_coalesced": "allgather_into_tensor_coalesced",
    "reduce_scatter_single": "_reduce_scatter_base",
    "reduce_scatter_single_coalesced": "reduce_scatter_tensor_coalesced",
    "all_to_all_single": "alltoall_base",
}


def register(spec: BucketSpec, table: ArrivalTable) -> None:
    """Make ``init_process_group("netsim")`` mean: Gloo under the links of ``spec``. Once per process.

    Args:
        spec: every rank's link, the same in all processes.
        table: made before the processes were forked.
    """
    if spec.workers != table.workers:
        raise ValueError(f"links for {spec.workers} workers, a table for {table.workers}")
    clock = LinkClock(spec, table.clock)
    made: Counter[str] = Counter()

    def create(options: Any, _backend_options: Any) -> ShapedProcessGroup:
        members = list(options.global_ranks_in_group) or list(range(options.group_size))
        if max(members) >= spec.workers:
            raise UsageError(
                f"rank {max(members)} has no link: the bucket was made for {spec.workers} workers"
            )
        # A group made again after destroy_process_group has its old name: it must not find its old slots.
        made[options.group_id] += 1
        index = table.group_index(f"{options.group_id}#{made[options.group_id]}")
        gloo = dist.ProcessGroupGloo(options.store, options.group_rank, options.group_size, options.timeout)
        meeting = Meeting(table, clock, index, members, options.group_rank)
        return ShapedProcessGroup(gloo, meeting, options.timeout)

    dist.Backend.register_backend(NAME, create, extended_api=True, devices=["cpu"])


def shaped_group(group: dist.ProcessGroup | None = None) -> ShapedProcessGroup:
    """``group`` (the default group if None) as the netsim group that it is.

    Raises:
        UsageError: it is another backend's.
    """
    found = dist.group.WORLD if group is None else group
    if not isinstance(found, ShapedProcessGroup):
        raise UsageError(
            "this process group is not netsim's", hint='init_process_group("netsim", ...) makes one'
        )
    return found
