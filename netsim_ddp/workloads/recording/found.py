"""What a program trains: found by its optimizers' parameters, whatever it is wrapped in."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import _DEFAULT_FIRST_BUCKET_BYTES, _compute_bucket_assignment_by_size
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp.errors import UsageError
from netsim_ddp.results.recording import BYTES_OF
from netsim_ddp.units import counted
from netsim_ddp.workloads.recording.fsdp2 import groups_of, is_fsdp1, is_fsdp2, is_sharded

BUCKET_BYTES = 25 << 20
"""Of DDP's buckets after the first, unless it is told otherwise."""


@dataclass
class Trained:
    """``roots``: the outermost modules, of which a forward pass is seen; ``parameters`` by name, in the model's order.
    ``ddp`` is None in a script without it. ``sharding``: the process groups of FSDP2, none without it."""

    roots: list[nn.Module]
    module: nn.Module
    ddp: DistributedDataParallel | None
    parameters: dict[str, nn.Parameter]
    notes: list[str]
    sharding: list[ProcessGroup] = field(default_factory=list)


def type_name(of: torch.dtype) -> Any:
    """As torch has it, without ``torch.``: of a model that was found, one that a recording knows."""
    return str(of).removeprefix("torch.")


def find(optimized: Iterable[Tensor]) -> Trained | None:
    """Whose parameters these are; None where no module holds any.

    Raises:
        UsageError: a model that is sharded by something else than FSDP2, or has parameters of a type that is not
            recorded.
    """
    wanted = {id(each) for each in optimized}
    # By the type: some objects do things when they are asked for their class.
    modules = [each for each in gc.get_objects() if issubclass(type(each), nn.Module)]
    holding = [each for each in modules if any(id(parameter) in wanted for parameter in _parameters(each))]
    inner = {id(child) for each in holding for child in each.__dict__.get("_modules", {}).values()}
    roots = [each for each in holding if id(each) not in inner]
    if not roots:
        return None
    notes = []
    wrapped = [each for each in holding if isinstance(each, DistributedDataParallel)]
    wrapped.sort(key=lambda each: -sum(parameter.numel() for parameter in _parameters(each)))
    if len(wrapped) > 1:
        notes.append(f"{len(wrapped)} models under DDP: the largest is recorded")
    ddp = wrapped[0] if wrapped else None
    if ddp is not None:
        module, named = ddp.module, _named([ddp.module], {id(each) for each in ddp._module_parameters})
    else:
        module, named = roots[0], _named(roots, wanted)
    if any(is_fsdp1(each) for each in holding):
        raise UsageError(
            "the model is sharded by FullyShardedDataParallel (FSDP1), which is not recorded",
            hint="shard it with torch.distributed.fsdp.fully_shard (FSDP2), or record it under DDP",
        )
    sharding = groups_of(each for root in roots for each in root.modules())
    if sharding:
        plain = [name for name, parameter in named.items() if not is_sharded(parameter)]
        if plain:
            notes.append(f"{counted(len(plain), 'parameter')} outside FSDP2: not recorded")
        named = {name: parameter for name, parameter in named.items() if is_sharded(parameter)}
    for name, parameter in named.items():
        if is_sharded(parameter) and not sharding:
            raise UsageError(
                f"{name} is sharded (a DTensor), and not by FSDP2, which is not recorded",
                hint="record the training under DDP or FSDP2, or unwrapped on one device",
            )
        if type_name(parameter.dtype) not in BYTES_OF:
            raise UsageError(
                f"{name} is {type_name(parameter.dtype)}: recorded are {', '.join(BYTES_OF)}",
                hint="exclude it from training, or record a model without it",
            )
    return Trained(roots, module, ddp, named, notes, sharding) if named else None


def _parameters(of: nn.Module) -> Iterable[nn.Parameter]:
    return of.parameters() if "_parameters" in of.__dict__ else ()  # else it is not made yet


def _named(roots: Sequence[nn.Module], wanted: set[int]) -> dict[str, nn.Parameter]:
    """Names as the model has them, without what wrappers put before them; several models' by their place."""
    seen: set[int] = set()
    found: list[dict[str, nn.Parameter]] = []
    for root in roots:
        own = {
            name.replace("_orig_mod.", ""): parameter
            for name, parameter in root.named_parameters()
            if id(parameter) in wanted - seen and parameter.requires_grad and parameter.numel()
        }
        seen |= {id(each) for each in own.values()}
        found += [own] if own else []
    if len(found) == 1:
        return found[0]
    return {f"{place}.{name}": each for place, own in enumerate(found) for name, each in own.items()}


def class_of(trained: Trained) -> str:
    """The model's class, in a wrapper or not."""
    module: Any = trained.module
    while isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
        module = inner
    kind = type(module)
    if is_fsdp2(
        module
    ):  # fully_shard gives a module a class of its own, made from this mark and the module's
        kind = kind.__bases__[-1]
    return kind.__name__


def buckets_of(trained: Trained, came: Sequence[int]) -> list[list[int]]:
    """The parameters of each bucket, by number and in the model's order: DDP's own, or what DDP's rule makes of
    the order in which gradients ``came``."""
    parameters = list(trained.parameters.values())
    if trained.ddp is None:
        order = [*came, *(each for each in reversed(range(len(parameters))) if each not in set(came))]
        limits = [_DEFAULT_FIRST_BUCKET_BYTES, BUCKET_BYTES]
        ordered: list[Tensor] = [parameters[each] for each in order]
        found, _ = _compute_bucket_assignment_by_size(ordered, limits, [False] * len(order), order)
        return [sorted(bucket) for bucket in found]
    number = {id(parameter): place for place, parameter in enumerate(parameters)}
    ddp: Any = trained.ddp
    if listed := ddp._get_ddp_logging_data().get("rebuilt_per_bucket_param_indices"):
        buckets = [
            [ddp._module_parameters[int(each)] for each in bucket.split()] for bucket in listed.split(",")
        ]
    else:  # they are the first ones: of these DDP tells only by making buckets of zeros
        buckets = [bucket.parameters() for bucket in ddp.reducer._get_zeros_like_grad_buckets()]
    places = [sorted(number[id(each)] for each in bucket if id(each) in number) for bucket in buckets]
    return [bucket for bucket in places if bucket]


def sizes_of(trained: Trained, buckets: Sequence[Sequence[int]]) -> list[tuple[int, torch.dtype]]:
    """Of each bucket, how many elements it has and their type."""
    parameters = list(trained.parameters.values())
    return [
        (sum(parameters[each].numel() for each in bucket), parameters[bucket[0]].dtype) for bucket in buckets
    ]


def device_of(trained: Trained) -> torch.device:
    return next(iter(trained.parameters.values())).device
