"""Who averages these gradients already: DistributedDataParallel, whose average an exchange would average again, or an
exchange of netsim's, whose momentum an optimizer must fit.

DDP leaves no mark on a gradient. So every DDP of this process is known: those that are there when it is first asked,
and each one made later, by torch's hook for modules that get a part.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from netsim_ddp.communication.loss_scale import instances
from netsim_ddp.communication.segments import Group
from netsim_ddp.errors import UsageError
from netsim_ddp.names import is_reference

_known: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()

_exchanges: weakref.WeakKeyDictionary[object, tuple[frozenset[int], float]] = weakref.WeakKeyDictionary()
"""Hook states and backends: the ids of the parameters that each one holds, and its momentum."""


@functools.cache
def watch() -> None:
    """From now on, know every DDP that is made."""

    def note(module: nn.Module, name: str, _: nn.Module | None) -> None:
        if name == "module" and isinstance(module, DistributedDataParallel):
            _known.add(module)

    register_module_module_registration_hook(note)


@functools.cache
def _find_older() -> None:
    """The ones that were made before."""
    watch()
    _known.update(instances(DistributedDataParallel))


def note_exchange(
    exchange: object, parameters: Iterable[Tensor], method: str, params: Mapping[str, Any]
) -> None:
    """``exchange`` averages gradients of ``parameters``, which it keeps alive, by ``method``."""
    if is_reference(method):
        _exchanges.pop(exchange, None)  # a method of the user's own may do anything
        return
    momentum = float(params.get("momentum") or 0.0)
    _exchanges[exchange] = frozenset(map(id, parameters)), momentum
    if momentum:
        _warn_of_second_momentum()


def _momenta_of(parameters: Iterable[Tensor]) -> set[float]:
    """Of the exchanges that hold one of these parameters."""
    ours = {id(parameter) for parameter in parameters}
    return {momentum for ids, momentum in list(_exchanges.values()) if not ours.isdisjoint(ids)}


@functools.cache
def _warn_of_second_momentum() -> None:
    """From now on, look at every optimizer's first steps for a momentum that the gradient carries already."""
    seen: weakref.WeakSet[Optimizer] = weakref.WeakSet()

    def look(optimizer: Optimizer, *_: Any) -> None:
        if optimizer in seen or getattr(optimizer, "takes_corrected", False):
            return
        for group in optimizer.param_groups:
            if group.get("momentum") and any(_momenta_of(group["params"])):
                seen.add(optimizer)
                warnings.warn(
                    f"{type(optimizer).__name__} has momentum={group['momentum']:g} for gradients that carry a "
                    "momentum already, which is then applied twice: use netsim_ddp.CorrectedSGD, or momentum=0 in "
                    "one of them",
                    UserWarning,
                    stacklevel=4,
                )
                return

    register_optimizer_step_pre_hook(look)


def wrapper_of(parameters: Iterable[Tensor]) -> DistributedDataParallel | None:
    """The DDP around a model with one of these parameters that exchanged gradients in the last backward pass."""
    _find_older()
    if not _known:
        return None
    ours = {id(parameter) for parameter in parameters}
    # require_forward_param_sync is False once a forward pass has gone by within no_sync().
    averaging = (ddp for ddp in _known if ddp.require_forward_param_sync)
    return next((ddp for ddp in averaging if any(id(p) in ours for p in ddp.module.parameters())), None)


def check_not_averaged(parameters: Iterable[Tensor], group: Group, what: str) -> None:
    """Refuse gradients that DDP has averaged over the same ranks.

    Args:
        what: the class that would average them again.

    Raises:
        UsageError: it has.
    """
    ddp, ranks_of = wrapper_of(parameters), dist.get_process_group_ranks
    if ddp is None or ranks_of(ddp.process_group) != ranks_of(group.process_group):
        return
    hooks = [hook for hook, _ in getattr(ddp, "_comm_hooks", [])]
    if hooks and all(hook is noop_hook for hook in hooks):
        return
    raise UsageError(
        f"DistributedDataParallel has averaged these gradients already, and {what} would do so again",
        hint=f"use the model without DDP; or run forward and backward within ddp.no_sync(); or drop {what} and write "
        "ddp.register_comm_hook(netsim_ddp.HookState(model), netsim_ddp.method_hook)",
    )


def check_corrected(parameters: Iterable[Tensor], momentum: float) -> None:
    """Refuse gradients of a DDP, or of a backend, that do not carry this momentum.

    Raises:
        UsageError: DDP has averaged plain gradients, or its hook or the backend accumulates another momentum.
    """
    parameters = list(parameters)
    ddp = wrapper_of(parameters)
    if ddp is None:
        if (momenta := _momenta_of(parameters)) and momentum not in momenta:
            found = f"a momentum of {max(momenta):g}" if any(momenta) else "no momentum"
            raise UsageError(
                f"CorrectedSGD has momentum={momentum:g} for gradients that carry it already, and the backend's here "
                f"carry {found}",
                hint=f"write momentum={momentum:g} in the backend's params, which topk takes, or use torch.optim.SGD",
            )
        return
    hooks = getattr(ddp, "_comm_hooks", [])
    accumulated = [state.params.get("momentum", 0.0) for _, state in hooks if hasattr(state, "params")]
    if hooks and (not accumulated or accumulated == [momentum]):
        return  # a hook of the user's own may do anything
    found = f"have a momentum of {accumulated[0]:g}" if accumulated else "carry no momentum"
    raise UsageError(
        f"CorrectedSGD has momentum={momentum:g} for gradients that carry it already, and DDP's here {found}",
        hint="write ddp.register_comm_hook(netsim_ddp.HookState(model, momentum="
        f"{momentum:g}), netsim_ddp.method_hook), or use torch.optim.SGD",
    )
