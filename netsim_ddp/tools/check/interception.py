"""Sees what a segment does: operations of torch.distributed, talk on sockets and stores, waiting, and arithmetic.

The operations are seen where all of them pass, in the methods of the process group's class, by any caller and in
whichever thread.
"""

from __future__ import annotations

import functools
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from netsim_ddp.communication.shaped.group import ShapedProcessGroup

_INPUT = {
    "allreduce": 0,
    "allreduce_coalesced": 0,
    "reduce": 0,
    "broadcast": 0,
    "send": 0,
    **dict.fromkeys(
        ("allgather", "allgather_coalesced", "gather", "scatter", "reduce_scatter", "alltoall"), 1
    ),
    **dict.fromkeys(("all_gather_single", "_allgather_base", "all_gather_single_coalesced"), 1),
    **dict.fromkeys(("allgather_into_tensor_coalesced", "reduce_scatter_tensor_coalesced"), 1),
    **dict.fromkeys(("reduce_scatter_single", "_reduce_scatter_base", "reduce_scatter_single_coalesced"), 1),
    **dict.fromkeys(("all_to_all_single", "alltoall_base"), 1),
}
"""Operations, and which of their arguments is handed over."""
_RECEIVES = ("recv", "recv_anysource", "barrier", "monitored_barrier")
_STORE = (
    *("set", "get", "add", "append", "check", "compare_set", "delete_key", "multi_get", "multi_set"),
    *("queue_pop", "queue_push", "wait"),
)
_SOCKET = (
    *("connect", "connect_ex", "accept", "send", "sendall", "sendto", "sendmsg", "sendfile"),
    *("recv", "recv_into", "recvfrom", "recvmsg"),
)
_DISTRIBUTED = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "symm_mem")
PROGRESS_THREAD = "netsim-progress"
_OURS = ("netsim-lifeline", PROGRESS_THREAD)
"""The threads that talk with the command."""


@dataclass
class Call:
    """One operation: ``where`` it was called, how many bytes it was handed, and what replays it.

    Attributes:
        least, most: what may be meant by the bytes that it hands over: its input, or what that makes it send.
    """

    where: str
    name: str
    least: float
    most: float
    again: Callable[[], Any] | None = None
    work: Any = None

    def __str__(self) -> str:
        return f"{self.name} of {self.least:,.0f} bytes" if self.least else self.name


@dataclass
class Recorder:
    """While :meth:`installed`, notes every call with ``where`` it was made."""

    rank: int
    ranks: int
    where: str = "outside"
    calls: list[Call] = field(default_factory=list)
    connections: list[tuple[str, str]] = field(default_factory=list)
    """(where, what) of sockets and stores."""
    waits: list[tuple[str, str]] = field(default_factory=list)
    """(where, what) of waiting for something that was not over."""

    _waited: dict[int, Any] = field(default_factory=dict)
    _inside: threading.local = field(default_factory=threading.local)

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """What happens inside, in any thread, happens at ``where``."""
        before, self.where = self.where, where
        try:
            yield
        finally:
            self.where = before

    @contextmanager
    def installed(self) -> Iterator[None]:
        operations, waits = (*_INPUT, *_RECEIVES), ("wait", "synchronize")
        targets: list[tuple[str, Any, tuple[str, ...], Callable[[str, Any], Any]]] = [
            ("", dist.ProcessGroup, operations, self._operation),
            ("", ShapedProcessGroup, operations, self._operation),
            ("Store.", Store, _STORE, self._connection),
            ("socket.", socket.socket, _SOCKET, self._connection),
            *(("Work.", kind, waits, self._waiting) for kind in {dist.Work, *_subclasses(dist.Work)}),
            ("Future.", torch._C.Future, ("wait", "value"), self._waiting),
        ]
        with ExitStack() as stack:
            for label, owner, names, wrapped in targets:
                for name in names:
                    # What a class inherits is replaced in the class that has it; a socket's base is not ours to change.
                    if name in vars(owner) or (owner is socket.socket and hasattr(owner, name)):
                        stack.enter_context(
                            mock.patch.object(owner, name, wrapped(label + name, getattr(owner, name)))
                        )
            yield

    @property
    def inside(self) -> bool:
        """Whether this thread is in an operation that has been noted."""
        return bool(getattr(self._inside, "depth", 0))

    def _operation(self, name: str, original: Any) -> Any:
        @functools.wraps(original)
        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return original(group, *args, **kwargs)
            noted = Call(self.where, name, *self._bytes(name, args))
            self.calls.append(noted)
            self._inside.depth = 1
            try:
                if name in _INPUT or name == "recv":
                    copies = tree_map_only(Tensor, torch.clone, args)
                    noted.again = functools.partial(original, group, *copies, **kwargs)
                noted.work = original(group, *args, **kwargs)
            finally:
                self._inside.depth = 0
            return noted.work

        return call

    def _bytes(self, name: str, args: tuple[Any, ...]) -> tuple[float, float]:
        if name not in _INPUT or len(args) <= _INPUT[name]:
            return 0.0, 0.0
        nbytes = float(sum(each.numel() * each.element_size() for each in _tensors(args[_INPUT[name]])))
        others = self.ranks - 1
        if name.startswith("allreduce"):
            return nbytes, max(nbytes, 2 * others / self.ranks * nbytes)
        if name == "send":
            return nbytes, nbytes
        if "to_all" in name or "toall" in name or "reduce_scatter" in name:
            return nbytes * self._not_own(name, args, nbytes), nbytes
        rooted = name in ("reduce", "broadcast", "gather", "scatter")
        return 0.0 if rooted else nbytes, others * nbytes

    def _not_own(self, name: str, args: tuple[Any, ...], nbytes: float) -> float:
        """The share of an input that goes to others."""
        if name == "alltoall":
            mine: Tensor = args[1][self.rank]
            return 1 - mine.numel() * mine.element_size() / max(1.0, nbytes)
        splits: list[int] | None = (
            args[3] if name in ("all_to_all_single", "alltoall_base") and len(args) > 3 else None
        )
        return 1 - (splits[self.rank] / max(1, sum(splits)) if splits else 1 / self.ranks)

    def _connection(self, what: str, original: Any) -> Any:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.inside and threading.current_thread().name not in _OURS:
                self.connections.append((self.where, what))
            return original(*args, **kwargs)

        return call

    def _waiting(self, what: str, original: Any) -> Any:
        @functools.wraps(original)
        def call(awaited: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.inside and not self.over(awaited):
                self.waits.append((self.where, what))
            self._inside.depth = getattr(self._inside, "depth", 0) + 1
            try:
                answer = original(awaited, *args, **kwargs)
            finally:
                self._inside.depth -= 1
            self._waited[id(awaited)] = awaited  # kept, so that nothing else gets its id
            return answer

        return call

    def over(self, awaited: Any) -> bool:
        """Whether somebody has waited for a Work or Future, or need not any more."""
        return id(awaited) in self._waited or bool(
            awaited.done() if isinstance(awaited, torch._C.Future) else awaited.is_completed()
        )

    def forget(self) -> None:
        self.calls.clear()
        self.connections.clear()
        self.waits.clear()
        self._waited.clear()


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    each: type[Any]
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)


def _tensors(value: Any) -> list[Tensor]:
    leaves: list[Any] = tree_leaves(value)
    return [each for each in leaves if isinstance(each, Tensor)]


def _torch_alone() -> bool:
    """Whether no Python but torch's, and this module's, has led here."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename != __file__ and not frame.f_code.co_filename.startswith(_TORCH):
            return False
        frame = frame.f_back
    return True


_TORCH = str(Path(torch.__file__).parent)


class OperationCounter(TorchDispatchMode):
    """Counts the elements that this thread's torch operations write or read, other than views and empty memory, and
    notes operations of torch.distributed that pass no method of a process group's class."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder, self._home = recorder, threading.get_ident()
        self.elements = 0
        self.largest = ("", 0)
        self.distributed: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        answer = func(*args, **(kwargs or {}))
        if threading.get_ident() != self._home and _torch_alone():
            return answer  # Gloo's own thread moves data, with this thread's mode
        if func.namespace in _DISTRIBUTED:
            if not self._recorder.inside:
                self.distributed.append(str(func))
        elif not (func.is_view or func.overloadpacket.__name__ in _FREE or self._recorder.inside):
            size = max((each.numel() for each in _tensors((args, answer))), default=0)
            self.elements += size
            if size > self.largest[1]:
                self.largest = (func.overloadpacket.__name__, size)
        return answer


_FREE = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "detach",
    "alias",
    "lift_fresh",
    "_unsafe_view",
    "_reshape_alias",
    "set_",
    "resize_",
}
