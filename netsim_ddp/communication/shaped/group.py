"""The process group ``netsim``: Gloo moves the data, the token bucket says when it is there.

Every operation is really carried out by a wrapped ``ProcessGroupGloo``. Its Work and its future are held
back until the emulated links would have delivered, and never complete earlier. Where Gloo itself was later,
the host is the limit: that time is counted (``host_late_s``), since then the link was not what was measured.

::

    table = OperationTable(workers)                  # before the fork
    register(LinkSpec(workers, 10**9), table)      # in each worker
    dist.init_process_group("netsim", init_method=..., rank=rank, world_size=workers)
    ...
    shaped_group().charged()
"""

from __future__ import annotations

import operator
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NoReturn, cast

import torch
import torch.distributed as dist
from torch import Tensor

from netsim_ddp.communication.shaped.futures import COARSE_S, Lateness, ShapedWork, WaitedWork, timer
from netsim_ddp.communication.shaped.torch_api import DistributedBackendOptions, ProcessGroupBase
from netsim_ddp.errors import UsageError
from netsim_ddp.link.bucket.clock import LinkClock
from netsim_ddp.link.bucket.operations import Deadline, GroupMember, OperationTable
from netsim_ddp.link.bucket.schedule import Operation
from netsim_ddp.link.spec import LinkSpec

NAME = "netsim"
_OLD_NAMES = {
    "all_gather_single": "_allgather_base",
    "all_gather_single_coalesced": "allgather_into_tensor_coalesced",
    "reduce_scatter_single": "_reduce_scatter_base",
    "reduce_scatter_single_coalesced": "reduce_scatter_tensor_coalesced",
    "all_to_all_single": "alltoall_base",
}
"""What torch before 2.9 calls these operations."""


def _nbytes(tensors: Sequence[Tensor] | Tensor) -> int:
    """Payload bytes of dense CPU tensors.

    Raises:
        NotImplementedError: a sparse tensor, one on another device, or ProcessGroup's single-tensor form.
    """
    if isinstance(tensors, Tensor):
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


_Rows = Sequence[Sequence[Tensor]]
_in_first: Callable[[Sequence[object]], _Rows] = operator.itemgetter(slice(0, 1))
_in_second: Callable[[Sequence[object]], _Rows] = operator.itemgetter(slice(1, 2))
_in_rows: Callable[[Sequence[object]], _Rows] = operator.itemgetter(1)


def _is_second(arguments: Sequence[object]) -> _Rows:
    return [cast(Sequence[Tensor], arguments[1:2])]


def _operation(
    kind: str, name: str, counted: Callable[[Sequence[object]], _Rows]
) -> Callable[..., dist.Work]:
    """Gloo's operation ``name``, whose schedule is that of ``kind``.

    Args:
        counted: finds the payload in its arguments: the list of tensors that is its first or second one, the rows of
            lists that are its second one, or that one itself. The options follow, and may be left out.
    """

    def run(self: ShapedProcessGroup, *arguments: object) -> dist.Work:
        rows, root = counted(arguments), getattr(arguments[-1], "rootRank", 0)
        nbytes = sum(map(_nbytes, rows))
        itemsize = rows[0][0].element_size() if "reduce" in kind else 1
        return self._run(Operation(kind, nbytes, root, itemsize), name, *arguments)

    return run


class ShapedProcessGroup(ProcessGroupBase):  # type: ignore[misc]
    """Gloo under an emulated link; see the module. Made by ``init_process_group("netsim")``.

    The operations have the arguments of the ``ProcessGroup`` methods of the same name, in the form that
    ``torch.distributed`` and DDP use (lists of tensors, one options object), which pass through to Gloo.
    What is not emulated raises ``NotImplementedError`` and names the operation.
    """

    def __init__(self, gloo: dist.ProcessGroup, member: GroupMember, timeout: timedelta) -> None:
        super().__init__(member.rank, len(member.members))
        self._gloo, self._member, self._timeout = gloo, member, timeout
        self._late = Lateness()

    def begin(self) -> None:
        """The time of a link that changes begins now, for all ranks; one of them says so while none sends."""
        self._member.begin()

    def expected_s(self, sizes: Sequence[int], sender: int, receiver: int) -> list[float]:
        """How long from now messages of ``sizes`` bytes would take, one behind the other, if nobody else sent."""
        return self._member.expected_s(sizes, sender, receiver)

    def charged(self) -> tuple[int, int]:
        """(sent, received) wire bytes of this rank so far: charged, not measured."""
        return self._member.tx_bytes, self._member.rx_bytes

    @property
    def host_late_s(self) -> float:
        """Seconds by which this rank's data moved later than its deadlines, summed."""
        return self._late.host_late_s

    @property
    def host_late_count(self) -> int:
        """Operations whose data moved later than their deadline."""
        return self._late.host_late_count

    def _run(self, op: Operation, gloo_name: str, *args: object, sends: Sequence[int] = ()) -> dist.Work:
        """Note the call, start Gloo's ``gloo_name`` on ``args``, complete it when the emulated link would have.

        A last argument of None is Gloo's own default and is left away.
        """
        start = getattr(self._gloo, gloo_name, None) or getattr(self._gloo, _OLD_NAMES[gloo_name])
        if args and args[-1] is None:
            args = args[:-1]
        collect = self._member.call(op, sends, self._timeout.total_seconds())
        real = start(*args)
        try:
            moving = real.get_future()
        except (RuntimeError, NotImplementedError):
            return WaitedWork(real, collect, self._late, args[0] if args else None)
        return ShapedWork(self._held_back(moving, collect))

    def _held_back(
        self, moving: torch.futures.Future[object], collect: Deadline
    ) -> torch.futures.Future[object]:
        """A future with the value of ``moving`` that completes at the deadline, or fails when Gloo does."""
        future: torch.futures.Future[object] = torch.futures.Future()
        clock, late = timer(), self._late

        def landed(done: torch.futures.Future[object]) -> None:
            moved = time.monotonic()
            try:
                value = done.value()
            except Exception as error:  # noqa: BLE001 - the waiter raises it
                future.set_exception(error)
                return

            def finish() -> None:
                deadline = collect()
                if deadline is None:
                    clock.at(time.monotonic() + COARSE_S, finish)
                elif deadline <= time.monotonic():
                    late.note(moved, deadline)
                    future.set_result(value)
                else:
                    clock.at(deadline, lambda: future.set_result(value))

            finish()

        moving.add_done_callback(landed)
        return future

    allreduce = _operation("allreduce", "allreduce", _in_first)
    allreduce_coalesced = _operation("allreduce", "allreduce_coalesced", _in_first)
    reduce = _operation("reduce", "reduce", _in_first)
    broadcast = _operation("broadcast", "broadcast", _in_first)
    allgather = _operation("allgather", "allgather", _in_second)
    allgather_coalesced = _operation("allgather", "allgather_coalesced", _in_second)
    all_gather_single = _operation("allgather", "all_gather_single", _is_second)
    all_gather_single_coalesced = _operation("allgather", "all_gather_single_coalesced", _in_second)
    gather = _operation("gather", "gather", _in_second)
    scatter = _operation("scatter", "scatter", _in_first)
    reduce_scatter = _operation("reduce_scatter", "reduce_scatter", _in_rows)
    reduce_scatter_single = _operation("reduce_scatter", "reduce_scatter_single", _is_second)
    reduce_scatter_single_coalesced = _operation(
        "reduce_scatter", "reduce_scatter_single_coalesced", _in_second
    )

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: object = None) -> dist.Work:
        return self._run(
            Operation("alltoall"),
            "alltoall",
            outputs,
            inputs,
            opts,
            sends=[_nbytes([tensor]) for tensor in inputs],
        )

    def all_to_all_single(
        self,
        output: Tensor,
        source: Tensor,
        output_splits: list[int],
        input_splits: list[int],
        opts: object = None,
    ) -> dist.Work:
        nbytes, size = _nbytes([source]), len(self._member.members)
        rows = list(input_splits) or [1] * size
        sends = [nbytes * row // max(1, sum(rows)) for row in rows]
        args = (output, source, output_splits, input_splits, opts)
        return self._run(Operation("alltoall"), "all_to_all_single", *args, sends=sends)

    def barrier(self, opts: object = None) -> dist.Work:
        return self._run(Operation("barrier"), "barrier", opts)

    def send(self, tensors: list[Tensor], dst: int, tag: int) -> dist.Work:
        collect = self._member.post(dst, tag, _nbytes(tensors), sending=True)
        return WaitedWork(self._gloo.send(tensors, dst, tag), collect, self._late, tensors)

    def recv(self, tensors: list[Tensor], src: int, tag: int) -> dist.Work:
        collect = self._member.post(src, tag, _nbytes(tensors), sending=False)
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

    def _get_backend(self, device: torch.device) -> dist.ProcessGroup:
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


def register(spec: LinkSpec, table: OperationTable) -> None:
    """Make ``init_process_group("netsim")`` mean: Gloo under the links of ``spec``. Once per process.

    Args:
        spec: every rank's link, the same in all processes.
        table: made before the processes were forked.
    """
    if spec.workers != table.workers:
        raise ValueError(f"links for {spec.workers} workers, a table for {table.workers}")
    clock = LinkClock(spec, table.clock)
    made: Counter[str] = Counter()

    def create(options: DistributedBackendOptions, _backend_options: object) -> ShapedProcessGroup:
        members = list(options.global_ranks_in_group) or list(range(options.group_size))
        if max(members) >= spec.workers:
            raise UsageError(
                f"rank {max(members)} has no link: the bucket was made for {spec.workers} workers"
            )
        # A group made again after destroy_process_group has its old name: it must not find its old slots.
        made[options.group_id] += 1
        index = table.group_index(f"{options.group_id}#{made[options.group_id]}")
        gloo = dist.ProcessGroupGloo(options.store, options.group_rank, options.group_size, options.timeout)
        member = GroupMember(table, clock, index, members, options.group_rank)
        return ShapedProcessGroup(cast(dist.ProcessGroup, gloo), member, options.timeout)

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
