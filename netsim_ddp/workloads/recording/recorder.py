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
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from netsim_ddp.errors import NetsimError, describe
from netsim_ddp.results.recording import Recording
from netsim_ddp.workloads.recording.assembly import Sampled, assembled
from netsim_ddp.workloads.recording.clocks import clock_for
from netsim_ddp.workloads.recording.ddp import Exchanges, hook_is_watched, watch_hooks
from netsim_ddp.workloads.recording.found import Trained, buckets_of, device_of, find
from netsim_ddp.workloads.recording.gradients import indices_of, kept_of, packed, sample
from netsim_ddp.workloads.recording.steps import SETS, WARM_UP, Open, Watch, schedule

Keep = Literal["sampled", "full", "none"]


_CALLBACKS_S = 0.02
"""What tells the end of an exchange runs in a thread that may wait for the interpreter's lock, for 5 ms by default."""


class Sink(Protocol):
    """Where a recording goes."""

    def deliver(self, recording: Recording, sets: Sequence[np.ndarray]) -> None: ...

    def tell(self, backward: int, reason: str) -> None:
        """There is no recording; ``backward`` passes were seen."""


@dataclass(frozen=True)
class Settings:
    """``steps`` are watched; ``keep`` says which gradients."""

    steps: int = 10
    keep: Keep = "sampled"


def rank_here() -> int:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0"))


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded(recorder: Recorder, *args: Any) -> Any:
        if recorder.ended:
            return None
        try:
            return method(recorder, *args)
        except NetsimError as error:
            recorder.give_up(str(error))
        except Exception as error:  # noqa: BLE001
            recorder.give_up(f"the recorder failed: {describe(error)}")
        return None

    return guarded


class Recorder:
    """Of one process. :meth:`start` it before or after the model is made; it ends by itself."""

    def __init__(self, settings: Settings, sink: Sink) -> None:
        self._settings, self._sink = settings, sink
        self.ended = False
        self._backward = 0
        self._watch: Watch | None = None
        self._trained: Trained | None = None
        self._optimizers: dict[int, Optimizer] = {}
        self._undo: list[Callable[[], None]] = []
        self._handles: list[Any] = []
        self._sampling: list[Any] = []
        self._samples: dict[int, Tensor] = {}
        self._kept: list[int] = []
        self._sets: list[Sampled] = []
        self._buckets: list[list[int]] = []
        self._last: frozenset[int] | None = None  # None: every parameter's moment is noted
        self._exchanges: Exchanges | None = None
        self._in_training_mode = False
        self._batch: int | None = None

    def start(self) -> None:
        backward, update = torch.autograd.backward, GradScaler.update

        @functools.wraps(backward)
        def watched_backward(*args: Any, **kwargs: Any) -> None:
            began = self._backward_begins()
            try:
                backward(*args, **kwargs)
            except BaseException:
                self._backward_ends(began, True)
                raise
            self._backward_ends(began, False)

        @functools.wraps(update)
        def watched_update(scaler: GradScaler, *args: Any, **kwargs: Any) -> None:
            update(scaler, *args, **kwargs)
            if not self.ended and self._watch is not None:
                self._watch.skipped()

        def restore() -> None:
            if torch.autograd.backward is watched_backward:
                torch.autograd.backward = backward
            if GradScaler.update is watched_update:
                GradScaler.update = update  # type: ignore[method-assign]

        torch.autograd.backward = watched_backward
        GradScaler.update = watched_update  # type: ignore[method-assign, assignment]
        before = register_optimizer_step_pre_hook(lambda *_: self._optimizer_begins())
        after = register_optimizer_step_post_hook(lambda optimizer, *_: self._optimizer_ends(optimizer))
        hooks = watch_hooks(lambda: None if self.ended else self._watch)
        self._undo = [restore, before.remove, after.remove, hooks]
        os.register_at_fork(after_in_child=self._forked)
        atexit.register(self.finish)

    def _forked(self) -> None:
        """A child of a training that has begun (a data loader's worker) trains nothing of its own."""
        self.ended |= self._watch is not None

    # What the program does, as it comes.

    @_guarded
    def _backward_begins(self) -> Any:
        self._backward += 1
        if self._watch is None:
            return None
        began = self._watch.backward_begins()
        self._after_boundary()
        if self._exchanges is not None:
            self._exchanges.rewind()
        return began

    @_guarded
    def _backward_ends(self, began: Any, failed: bool) -> None:
        if self._watch is not None and self._watch.in_backward:
            self._watch.backward_ends(began, failed=failed)

    @_guarded
    def _optimizer_begins(self) -> None:
        if self._watch is not None:
            self._watch.optimizer_begins()

    @_guarded
    def _optimizer_ends(self, optimizer: Optimizer) -> None:
        if not self._backward:
            return
        if id(optimizer) not in self._optimizers and (
            self._watch is None or self._watch.plan[0] == "warm-up"
        ):
            self._optimizers[id(optimizer)] = optimizer
            self._begin()
        elif self._watch is not None:
            self._watch.optimizer_ends()

    @_guarded
    def _forward(self, module: nn.Module, args: Any) -> None:
        watch = self._watch
        if watch is None or watch.in_backward:  # a checkpoint's forward, again
            return
        if not torch.is_grad_enabled() or (self._in_training_mode and not module.training):
            watch.evaluation()
        else:
            self._in_training_mode |= module.training
            watch.forward()
            if self._batch is None:
                sized = [each.shape[0] for each in args if isinstance(each, Tensor) and each.ndim]
                self._batch = next(iter(sized), None)
        self._after_boundary()

    @_guarded
    def _gradient(self, number: int) -> None:
        watch = self._watch
        if watch is not None and watch.timing and (self._last is None or number in self._last):
            watch.open.gradients.pop(number, None)  # the last one stands last
            watch.open.gradients[number] = watch.clock.mark()

    @_guarded
    def _sample(self, number: int, parameter: Tensor) -> None:
        if parameter.grad is not None:
            places = indices_of(parameter.numel(), self._kept[number])
            whole = len(places) == parameter.numel()
            at = None if whole else torch.from_numpy(places).to(parameter.device)
            self._samples[number] = sample(parameter.grad, at)

    # What follows from it.

    def _begin(self) -> None:
        """An optimizer has been through its first step: what it trains is watched from here on."""
        self._unhook()
        optimized = [
            each
            for one in self._optimizers.values()
            for group in one.param_groups
            for each in group["params"]
        ]
        self._trained = trained = find(optimized)
        if trained is None:
            return
        if multiprocessing.parent_process() is not None:  # which ends without atexit
            multiprocessing.util.Finalize(None, self.finish, exitpriority=10)
        sets = SETS if self._settings.keep != "none" and rank_here() == 0 else 0
        # Ranks take the same steps: one that keeps no gradients has as many steps that are not timed.
        plan = schedule(self._settings.steps, 0 if self._settings.keep == "none" else SETS)[1:]
        self._watch = Watch(clock_for(device_of(trained)), plan, self._judge)
        sizes = [each.numel() for each in trained.parameters.values()]
        if sets:
            self._kept = sizes if self._settings.keep == "full" else kept_of(sizes, sets)
        self._hook_forward(trained.roots)
        # DDP copies a gradient into its bucket after torch's own hook has run, and the bucket is full after that.
        late = trained.ddp is not None and (not trained.ddp._comm_hooks or hook_is_watched(trained.ddp))
        parameter: Any
        for number, parameter in enumerate(trained.parameters.values()):
            if late:
                node: Any = parameter.view_as(parameter).grad_fn
                handle = node.next_functions[0][0].register_hook(
                    lambda *_, number=number: self._gradient(number)
                )
            else:
                handle = parameter.register_post_accumulate_grad_hook(
                    lambda _, number=number: self._gradient(number)
                )
            self._handles.append(handle)

    def _hook_forward(self, modules: Sequence[nn.Module]) -> None:
        def hook(module: nn.Module, args: Any) -> None:
            if not torch.compiler.is_compiling():
                self._forward(module, args)

        self._handles += [module.register_forward_pre_hook(hook) for module in modules]

    def _judge(self, step: Open) -> bool:
        watch, trained = self._watch, self._trained
        assert watch is not None
        assert trained is not None
        if step.kind == "warm-up":
            if watch.plan.count("warm-up") == WARM_UP - 1:
                if all(
                    forward is began for forward, began, _ in step.passes
                ):  # the outermost is not called itself
                    self._hook_forward([each for root in trained.roots for each in root.modules()][1:])
            else:
                self._find_buckets(list(step.gradients))
        elif step.kind == "gradients" and self._kept:
            parameters = list(trained.parameters.values())
            found = [
                self._samples.get(number, torch.zeros(self._kept[number], dtype=parameter.dtype))
                for number, parameter in enumerate(parameters)
            ]
            self._samples = {}
            if (one := packed([found[each] for each in self._order()])) is None:
                return False
            self._sets.append(Sampled(step.number, *one))
        return True

    def _order(self) -> list[int]:
        return [each for bucket in reversed(self._buckets) for each in bucket]

    def _find_buckets(self, came: list[int]) -> None:
        watch, trained = self._watch, self._trained
        assert watch is not None
        assert trained is not None
        self._buckets = buckets_of(trained, came)
        if not watch.clock.each:
            place = {number: at for at, number in enumerate(came)}
            self._last = frozenset(
                max(bucket, key=lambda each: place.get(each, -1)) for bucket in self._buckets
            )
        if trained.ddp is not None and not trained.ddp._comm_hooks:
            parameters = list(trained.parameters.values())
            sizes = [sum(parameters[each].numel() for each in bucket) for bucket in self._buckets]
            self._exchanges = Exchanges(trained.ddp, watch, sizes)

    def _after_boundary(self) -> None:
        """Where a step may just have begun."""
        watch, trained = self._watch, self._trained
        assert watch is not None
        assert trained is not None
        if watch.over:
            self.finish()
        elif watch.open.kind == "gradients" and self._kept and not self._sampling:
            parameter: Any
            for number, parameter in enumerate(trained.parameters.values()):
                handle = parameter.register_post_accumulate_grad_hook(
                    lambda parameter, number=number: self._sample(number, parameter)
                )
                self._sampling.append(handle)
        elif watch.open.kind != "gradients" and self._sampling:
            while self._sampling:
                self._sampling.pop().remove()

    def _unhook(self) -> None:
        for handle in (*self._handles, *self._sampling):
            handle.remove()
        self._handles, self._sampling = [], []
        if self._exchanges is not None:
            self._exchanges.close()
            self._exchanges = None

    def give_up(self, reason: str) -> None:
        """End without a recording."""
        self._end()
        self._sink.tell(self._backward, reason)

    def _end(self) -> None:
        self.ended = True
        self._unhook()
        for undo in self._undo:
            undo()
        self._undo = []

    @_guarded
    def finish(self) -> None:
        """Deliver what has been seen: all of it, or the program ends."""
        watch, trained = self._watch, self._trained
        if watch is None or trained is None:
            return self.give_up(self._nothing())
        early = not watch.over
        watch.finish()
        time.sleep(_CALLBACKS_S)
        watch.clock.settle()
        if not any(step.kind == "on" for step in watch.closed):
            seen = watch.open.number
            return self.give_up(
                f"the program ended after {seen} steps, and the first {WARM_UP} are not recorded: train for longer"
            )
        self._end()
        recording = assembled(
            trained,
            watch,
            self._buckets,
            self._sets,
            self._order_of_kept(),
            rank=rank_here(),
            batch=self._batch,
        )
        recording.optimizer = " and ".join(
            dict.fromkeys(type(each).__name__ for each in self._optimizers.values())
        )
        if early:
            recording.notes.append(f"the program ended before {self._settings.steps} steps were recorded")
        self._sink.deliver(recording, [each.values for each in self._sets])
        return None

    def _order_of_kept(self) -> list[int]:
        return [self._kept[each] for each in self._order()] if self._kept else []

    def _nothing(self) -> str:
        if not self._backward:
            return "no step was seen: there was no backward pass"
        if not self._optimizers:
            return "no step was seen: gradients were computed, but no torch.optim optimizer made a step"
        return "no step was seen: the optimizer's parameters are in no torch.nn.Module"
