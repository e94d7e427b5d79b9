"""When DDP's buckets are full, and when their exchange is through: from the user's own communication hook, which is
called as before, or else from the reducer's own calls. Nothing is put in DDP's way: its exchange is the one it would
do unwatched."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from netsim_ddp.workloads.recording.exchanges import GroupHooks, Guard, note_end
from netsim_ddp.workloads.recording.steps import Watch

_names: weakref.WeakKeyDictionary[DistributedDataParallel, str] = weakref.WeakKeyDictionary()
_watched: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()


def hook_name(ddp: DistributedDataParallel) -> str | None:
    """The user's communication hook, by name; None where DDP averages by itself."""
    registered = [_name(hook) for hook, _ in ddp._comm_hooks]
    return _names.get(ddp) or (registered[0] if registered else None)


def hook_is_watched(ddp: DistributedDataParallel) -> bool:
    return ddp in _watched


def _name(hook: Any) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__qualname__))


def watch_hooks(current: Callable[[], Watch | None]) -> Callable[[], None]:
    """From now on, the communication hooks that are registered say when they are called and when they are through.
    Returns what ends that for hooks to come.

    Args:
        current: the watch of now, asked each time.
    """
    register: Any = DistributedDataParallel.register_comm_hook
    register_builtin: Any = DistributedDataParallel._register_builtin_comm_hook

    @functools.wraps(register)
    def registering(self: DistributedDataParallel, state: object, hook: Any) -> None:
        if not callable(hook):
            return register(self, state, hook)  # type: ignore[no-any-return]

        @functools.wraps(hook)
        def watched(state: object, bucket: Any) -> Any:
            watch = current()
            if watch is None or not watch.timing:
                return hook(state, bucket)
            step, number = watch.open, bucket.index()
            step.full[number] = watch.clock.mark()
            future = hook(state, bucket)
            note_end(future, watch, step, number)
            return future

        register(self, state, watched)
        self._comm_hooks[-1] = (hook, state)  # who asks for the hook asks for the user's
        _watched.add(self)

    @functools.wraps(register_builtin)
    def registering_builtin(self: DistributedDataParallel, comm_hook_type: Any) -> None:
        register_builtin(self, comm_hook_type)
        _names[self] = str(comm_hook_type)

    DistributedDataParallel.register_comm_hook = registering  # type: ignore[method-assign]
    DistributedDataParallel._register_builtin_comm_hook = registering_builtin  # type: ignore[method-assign]

    def restore() -> None:
        if DistributedDataParallel.register_comm_hook is registering:
            DistributedDataParallel.register_comm_hook = register  # type: ignore[method-assign]
        if DistributedDataParallel._register_builtin_comm_hook is registering_builtin:
            DistributedDataParallel._register_builtin_comm_hook = register_builtin  # type: ignore[method-assign]

    return restore


class Exchanges:
    """The all-reduces of a DDP without a Python hook, seen at its process group (torch 2.14 and later)."""

    def __init__(self, ddp: DistributedDataParallel, watch: Watch, sizes: list[int], guard: Guard) -> None:
        """Args:
        sizes: of each bucket its number of elements.
        guard: wraps what torch is given to call, so that a fault in it ends no training.
        """
        self._watch, self._sizes = watch, sizes
        self._next = 0
        self._going: dict[int, int] = {}
        self.close = GroupHooks([ddp.process_group], self._begins, self._has_begun, guard).close

    def rewind(self) -> None:
        """A backward pass begins: the next bucket is the first."""
        self._next = 0
        self._going.clear()

    def _begins(self, _: int, call: Any) -> None:
        if not (self._watch.timing and self._watch.in_backward and self._next < len(self._sizes)):
            return
        if call.name.name == "ALLREDUCE" and self._sizes[self._next] == sum(
            each.numel() for each in call.input_tensors
        ):
            self._going[call.op_id] = self._next
            self._next += 1

    def _has_begun(self, _: int, call: Any) -> None:
        number = self._going.pop(call.op_id, None)
        if number is not None and call.work is not None:
            note_end(call.work.get_future(), self._watch, self._watch.open, number)
