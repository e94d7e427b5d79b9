"""A model that was found, its hooks, and what they tell: from its first step on until enough has been seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from netsim_ddp.workloads.recording.clocks import clock_for
from netsim_ddp.workloads.recording.ddp import Exchanges, hook_is_watched
from netsim_ddp.workloads.recording.exchanges import Guard
from netsim_ddp.workloads.recording.found import Trained, buckets_of, device_of, sizes_of
from netsim_ddp.workloads.recording.fsdp2 import Reduced, ReduceScatters
from netsim_ddp.workloads.recording.gradients import kept_of
from netsim_ddp.workloads.recording.sets import Sampling
from netsim_ddp.workloads.recording.steps import SETS, WARM_UP, Kind, Open, Watch, schedule

Keep = Literal["sampled", "full", "none"]
_Told = Callable[..., Any]


@dataclass(frozen=True)
class Settings:
    """``steps`` are watched; ``keep`` says which gradients."""

    steps: int = 10
    keep: Keep = "sampled"


class _Called:
    """Tells when ``module``, which ``module.compile()`` has compiled, is called: a hook would be compiled with it."""

    def __init__(self, module: Any, told: _Told) -> None:
        self._module, self._before = module, module._compiled_call_impl

        def call(*args: Any, **kwargs: Any) -> Any:
            told(module, args)
            return self._before(*args, **kwargs)

        self._own = module._compiled_call_impl = call

    def remove(self) -> None:
        if self._module._compiled_call_impl is self._own:
            self._module._compiled_call_impl = self._before


class Session:
    """One model's steps. Whoever calls asks :attr:`over` after each forward and each backward that begins."""

    def __init__(self, trained: Trained, settings: Settings, rank: int, guard: Guard) -> None:
        """Args: guard: wraps what torch is given to call, so that a fault in it ends no training."""
        self.trained, self._guard = trained, guard
        self.parameters = list(trained.parameters.values())
        # Ranks take the same steps: one that keeps no gradients has as many steps that are not timed.
        # Of a sharded gradient, no rank's hook sees its own whole.
        keep = "none" if trained.sharding else settings.keep
        plan = schedule(settings.steps, 0 if keep == "none" else SETS)[1:]
        self._plan = tuple(plan)
        self.watch = Watch(clock_for(device_of(trained)), plan, self._judge)
        self.sharded = ReduceScatters(trained.sharding, self.watch, guard) if trained.sharding else None
        sizes = [each.numel() for each in self.parameters]
        kept = sizes if keep == "full" else kept_of(sizes, SETS)
        self.sampling = Sampling(self.parameters, [] if rank or keep == "none" else kept)
        self.buckets: list[list[int]] = []
        """Of each its parameters, by number and in the model's order; none where only sizes are known."""
        self.sizes: list[tuple[int, torch.dtype]] = []
        self.batch: int | None = None
        self._handles: list[Any] = []
        self._exchanges: Exchanges | ReduceScatters | None = self.sharded
        self._last: frozenset[int] | None = None  # None: every parameter's moment is noted
        self._in_training_mode = False
        self._hook_forward(trained.roots)
        self._hook_gradients()

    @property
    def over(self) -> bool:
        return self.watch.over

    @property
    def missing(self) -> str:
        """``2 of 10 watched steps, 1 of 3 sets of gradients``: what the program was too short for."""
        asked, left = self._plan, self.watch.plan
        named: dict[Kind, str] = {
            "on": "watched steps",
            "off": "unwatched ones (for what watching costs)",
            "gradients": "sets of gradients",
        }
        parts = [(left.count(kind), asked.count(kind), name) for kind, name in named.items()]
        return ", ".join(f"{gone} of {count} {name}" for gone, count, name in parts if gone)

    @property
    def order(self) -> list[int]:
        """The parameters as a recording has them: each bucket's side by side, the last bucket first."""
        return [each for bucket in reversed(self.buckets) for each in bucket]

    def close(self) -> None:
        """Take every hook away."""
        while self._handles:
            self._handles.pop().remove()
        self.sampling.close()
        if self._exchanges is not None:
            self._exchanges.close()
            self._exchanges = None

    def backward_begins(self) -> Any:
        began = self.watch.backward_begins()
        if self._exchanges is not None:
            self._exchanges.rewind()
        self._step_may_have_begun()
        return began

    def _hook_forward(self, modules: Sequence[nn.Module]) -> None:
        told = self._guard(self._forward)

        def hook(module: nn.Module, args: Any) -> None:
            if not torch.compiler.is_compiling():  # nothing of this stands in a graph
                told(module, args)

        for module in modules:
            if module._compiled_call_impl is None:
                # Before others: FSDP2 gathers parameters in one.
                self._handles.append(module.register_forward_pre_hook(hook, prepend=True))
            else:
                self._handles.append(_Called(module, told))

    def _forward(self, module: nn.Module, args: Any) -> None:
        if self.watch.in_backward:  # a checkpoint's forward, again
            return
        if not torch.is_grad_enabled() or (self._in_training_mode and not module.training):
            self.watch.evaluation()
        else:
            self._in_training_mode |= module.training
            self.watch.forward()
            if self.batch is None:
                sized = [each.shape[0] for each in args if isinstance(each, Tensor) and each.ndim]
                self.batch = next(iter(sized), None) or None
        self._step_may_have_begun()

    def _step_may_have_begun(self) -> None:
        self.sampling.take(self.watch.open.kind == "gradients" and not self.over)

    def _hook_gradients(self) -> None:
        # DDP copies a gradient into its bucket after torch's own hook has run, and the bucket is full after that.
        ddp = self.trained.ddp
        after_ddp = ddp is not None and (not ddp._comm_hooks or hook_is_watched(ddp))
        note = self._guard(self._gradient if self.sharded is None else self.sharded.gradient)
        parameter: Any
        for number, parameter in enumerate(self.parameters):
            if after_ddp:
                with torch.enable_grad():
                    node: Any = parameter.view_as(parameter).grad_fn
                handle = node.next_functions[0][0].register_hook(lambda *_, number=number: note(number))
            else:
                handle = parameter.register_post_accumulate_grad_hook(lambda _, number=number: note(number))
            self._handles.append(handle)

    def _gradient(self, number: int) -> None:
        if self.watch.timing and (self._last is None or number in self._last):
            moments = self.watch.open.gradients
            moments.pop(number, None)  # so that the last one stands last
            moments[number] = self.watch.clock.mark()

    def _judge(self, step: Open) -> bool:
        if step.kind == "gradients":
            return self.sampling.add(step.number, self.order)
        if step.kind == "warm-up":
            unseen = all(forward is began for forward, began, _ in step.passes)
            if self.watch.plan.count("warm-up") < WARM_UP - 1:
                self._find_buckets(list(step.gradients))
            elif unseen:  # the script calls parts of the model itself
                inner = [each for root in self.trained.roots for each in root.modules()]
                self._hook_forward([each for each in inner if each not in self.trained.roots])
        return True

    def _find_buckets(self, came: list[int]) -> None:
        if self.sharded is not None:
            self._find_reduced(self.sharded.settle())
            return
        self.buckets = buckets_of(self.trained, came)
        self.sizes = sizes_of(self.trained, self.buckets)
        if not self.watch.clock.each:
            place = {number: at for at, number in enumerate(came)}
            self._last = frozenset(
                max(bucket, key=lambda each: place.get(each, -1)) for bucket in self.buckets
            )
        ddp = self.trained.ddp
        if ddp is not None and not ddp._comm_hooks:
            self._exchanges = Exchanges(ddp, self.watch, [numel for numel, _ in self.sizes], self._guard)

    def _find_reduced(self, reduced: Sequence[Reduced]) -> None:
        """The buckets of FSDP2, with their parameters where each of these came with one of them."""
        named = [sorted(each.parameters) for each in reduced]
        flat = [number for bucket in named for number in bucket]
        if all(named) and len(set(flat)) == len(flat):
            self.buckets = named
            numels = [numel for numel, _ in sizes_of(self.trained, named)]
        else:
            self.buckets, numels = [[] for _ in reduced], [each.numel for each in reduced]
        self.sizes = [(numel, each.dtype) for numel, each in zip(numels, reduced, strict=True)]
