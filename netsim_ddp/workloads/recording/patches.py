"""Where a program's backward passes and optimizers can be seen: torch's own functions, for as long as it is watched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class Watcher(Protocol):
    """Who is told."""

    def backward_begins(self) -> Any: ...

    def backward_ends(self, began: Any, failed: bool) -> None:
        """``began`` is what :meth:`backward_begins` returned."""

    def optimizer_begins(self) -> None: ...

    def optimizer_ends(self, optimizer: Optimizer) -> None: ...

    def scaler_updates(self) -> None: ...


def watch(watcher: Watcher) -> Callable[[], None]:
    """Tell ``watcher`` of every backward pass and every optimizer's step; returns what ends that."""
    backward, update = torch.autograd.backward, GradScaler.update

    @functools.wraps(backward)
    def watched_backward(*args: Any, **kwargs: Any) -> None:
        began = watcher.backward_begins()
        try:
            backward(*args, **kwargs)
        except BaseException:
            watcher.backward_ends(began, True)
            raise
        watcher.backward_ends(began, False)

    @functools.wraps(update)
    def watched_update(scaler: GradScaler, *args: Any, **kwargs: Any) -> None:
        update(scaler, *args, **kwargs)
        watcher.scaler_updates()

    torch.autograd.backward = watched_backward
    GradScaler.update = watched_update  # type: ignore[method-assign, assignment]
    before = register_optimizer_step_pre_hook(lambda *_: watcher.optimizer_begins())
    after = register_optimizer_step_post_hook(lambda optimizer, *_: watcher.optimizer_ends(optimizer))

    def restore() -> None:
        before.remove()
        after.remove()
        if torch.autograd.backward is watched_backward:  # else somebody stands before, and calls this one
            torch.autograd.backward = backward
        if GradScaler.update is watched_update:
            GradScaler.update = update  # type: ignore[method-assign]

    return restore
