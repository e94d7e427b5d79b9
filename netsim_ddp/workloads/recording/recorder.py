"""Watches the training of this process for some steps, whatever it is written with, and leaves it as it was.

Forward is seen by hooks on the outermost modules, backward by ``torch.autograd.backward``, the optimizer by torch's
hooks for all optimizers, gradients by hooks that run when they are accumulated. A fault of the recorder ends the
recording, never the training.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing.util
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch.distributed as dist
from torch.optim import Optimizer

from netsim_ddp.errors import UsageError, describe
from netsim_ddp.results.recording import Recording
from netsim_ddp.units import counted
from netsim_ddp.workloads.recording import patches
from netsim_ddp.workloads.recording.assembly import assembled
from netsim_ddp.workloads.recording.ddp import watch_hooks
from netsim_ddp.workloads.recording.found import find
from netsim_ddp.workloads.recording.session import Session, Settings
from netsim_ddp.workloads.recording.steps import WARM_UP

_Called = TypeVar("_Called", bound=Callable[..., Any])
_LOOP = "recorded is what trains a torch.nn.Module with loss.backward() and a torch.optim optimizer"
_CALLBACKS_S = 0.02
"""What tells the end of an exchange runs in a thread that may wait for the interpreter's lock, for 5 ms by default."""


class Sink(Protocol):
    """Where a recording goes."""

    def deliver(self, recording: Recording, sets: Sequence[np.ndarray]) -> None: ...

    def tell(self, backward: int, problem: UsageError) -> None:
        """There is no recording; ``backward`` passes were seen."""


def rank_here() -> int:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0"))


class Recorder:
    """Of one process. :meth:`start` it before or after the model is made; it ends by itself."""

    def __init__(self, settings: Settings, sink: Sink) -> None:
        self._settings, self._sink = settings, sink
        self.ended = False
        self._backward = 0
        self._optimizers: dict[int, Optimizer] = {}
        self._session: Session | None = None
        self._undo: list[Callable[[], None]] = []
        # What others call, from here on guarded: see _guarded.
        self.backward_begins = self._guarded(self._backward_begins)
        self.backward_ends = self._guarded(self._backward_ends)
        self.optimizer_begins = self._guarded(self._optimizer_begins)
        self.optimizer_ends = self._guarded(self._optimizer_ends)
        self.scaler_updates = self._guarded(self._scaler_updates)
        self.finish = self._guarded(self._finish)

    def _guarded(self, method: _Called) -> _Called:
        """``method`` while the recording goes on; an error in it ends that."""

        @functools.wraps(method)
        def guarded(*args: Any) -> Any:
            if self.ended:
                return None
            try:
                found = method(*args)
                if self._session is not None and self._session.over:
                    self._finish()
                return found
            except UsageError as error:
                self._give_up(error)
            except Exception as error:  # noqa: BLE001
                self._give_up(UsageError(f"the recorder failed: {describe(error)}"))
            return None

        return cast(_Called, guarded)

    def start(self) -> None:
        hooks = watch_hooks(lambda: None if self.ended or self._session is None else self._session.watch)
        self._undo = [patches.watch(self), hooks]
        os.register_at_fork(after_in_child=self._forked)
        atexit.register(self.finish)

    def _forked(self) -> None:
        """A child of a training that has begun (a data loader's worker) trains nothing of its own."""
        self.ended |= self._session is not None

    def _backward_begins(self) -> Any:
        self._backward += 1
        return None if self._session is None else self._session.backward_begins()

    def _backward_ends(self, began: Any, failed: bool) -> None:
        if self._session is not None and self._session.watch.in_backward:
            self._session.watch.backward_ends(began, failed=failed)

    def _optimizer_begins(self) -> None:
        if self._session is not None:
            self._session.watch.optimizer_begins()

    def _optimizer_ends(self, optimizer: Optimizer) -> None:
        session = self._session
        if not self._backward:
            return
        if id(optimizer) in self._optimizers or (session is not None and session.watch.plan[0] != "warm-up"):
            if session is not None:
                session.watch.optimizer_ends()
            return
        self._optimizers[id(optimizer)] = optimizer
        groups = [group for one in self._optimizers.values() for group in one.param_groups]
        if (trained := find(each for group in groups for each in group["params"])) is None:
            return
        if session is not None:
            session.close()
        self._session = Session(trained, self._settings, rank_here(), self._guarded)
        if multiprocessing.parent_process() is not None:  # such a process ends without atexit
            multiprocessing.util.Finalize(None, self.finish, exitpriority=10)

    def _scaler_updates(self) -> None:
        if self._session is not None:
            self._session.watch.skipped()

    def _give_up(self, problem: UsageError) -> None:
        """End without a recording."""
        self._end()
        self._sink.tell(self._backward, problem)

    def _end(self) -> None:
        self.ended = True
        if self._session is not None:
            self._session.close()
        while self._undo:
            self._undo.pop()()

    def _finish(self) -> None:
        """Deliver what has been seen: all of it, or the program ends."""
        session = self._session
        if session is None:
            raise UsageError(self._nothing(), hint=_LOOP)
        watch = session.watch
        watch.finish()
        time.sleep(_CALLBACKS_S)
        watch.clock.settle()
        if not any(step.kind == "on" for step in watch.closed):
            raise UsageError(
                f"the program ended after {counted(watch.open.number, 'step')}, and the first {WARM_UP} "
                "are not recorded",
                hint="let it train for longer",
            )
        self._end()
        recording = assembled(session, rank=rank_here())
        names = [type(each).__name__ for each in self._optimizers.values()]
        recording.optimizer = " and ".join(dict.fromkeys(names))
        if session.missing:
            recording.notes.append(f"the program ended early; missing: {session.missing}")
        self._sink.deliver(recording, [each.values for each in session.sampling.sets])

    def _nothing(self) -> str:
        if not self._backward:
            return "no step was seen: there was no backward pass"
        if not self._optimizers:
            return "no step was seen: gradients were computed, but no torch.optim optimizer made a step"
        return "no step was seen: the optimizer's parameters are in no torch.nn.Module"
