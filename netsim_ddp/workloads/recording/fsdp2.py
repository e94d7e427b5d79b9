"""When FSDP2's gradients are reduced, and how many of them at once: its process groups tell that from torch 2.14 on.
Nothing is put in its way.

A parameter is sharded, and so is its gradient once it was reduced: a bucket is what one reduce-scatter of the backward
pass gets, of every parameter the whole gradient. It comes to its parameters right after that call, which says whose
they were.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from netsim_ddp.errors import UsageError
from netsim_ddp.units import format_bytes
from netsim_ddp.workloads.recording.exchanges import GroupHooks, Guard, has_hooks, note_end
from netsim_ddp.workloads.recording.steps import Watch

_ONE_RANK = "run it on two ranks or more: torchrun --nproc-per-node 2"


def is_sharded(parameter: Tensor) -> bool:
    """Whether it is a DTensor."""
    return hasattr(parameter, "placements")


def is_fsdp2(module: nn.Module) -> bool:
    """Whether ``fully_shard`` was called with it."""
    return _is(module, "FSDPModule")


def is_fsdp1(module: nn.Module) -> bool:
    """Whether it is FullyShardedDataParallel's own."""
    return _is(module, "FullyShardedDataParallel")


def _is(module: nn.Module, name: str) -> bool:
    """By the type: some objects do things when they are asked for their class. Who has such a module has imported the
    package, which takes a second."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), name, None)
    return kind is not None and issubclass(type(module), kind)


def groups_of(modules: Iterable[nn.Module]) -> list[ProcessGroup]:
    """The process groups that reduce and scatter the gradients of ``modules`` and gather their parameters, each once;
    none where nothing of them is FSDP2's.

    Raises:
        UsageError: this torch does not tell when its process groups are used.
    """
    found: dict[int, ProcessGroup] = {}
    for state in _states(modules):
        if not has_hooks():
            raise UsageError(
                f"FSDP2 is recorded from torch 2.14 on, and this is {torch.__version__}",
                hint="update torch, or record the training under DDP",
            )
        for sharded in state._fsdp_param_groups:
            gathers = getattr(sharded.mesh_info, "shard_process_group", None)
            for group in filter(None, (sharded._reduce_scatter_process_group, gathers)):
                found[id(group)] = group
    return list(found.values())


def _states(modules: Iterable[nn.Module]) -> Iterator[Any]:
    for module in modules:
        if is_fsdp2(module):
            sharded: Any = module
            yield sharded._get_fsdp_state()


@dataclass
class Reduced:
    """One reduce-scatter of a backward pass: ``numel`` with what it is padded by, and the parameters by number."""

    numel: int
    dtype: torch.dtype
    parameters: list[int] = field(default_factory=list)


class ReduceScatters:
    """Those of each backward pass, in their order."""

    def __init__(self, groups: list[ProcessGroup], watch: Watch, guard: Guard) -> None:
        """Args: guard: wraps what torch is given to call, so that a fault in it ends no training."""
        self._watch = watch
        self._blocking: int | None = None
        self._came: list[Reduced] = []
        self._known: list[Reduced] | None = None
        self._going: dict[tuple[int, int], int] = {}
        self._gathered: dict[int, int] = {}
        self.close = GroupHooks(groups, self._begins, self._has_begun, guard).close

    @property
    def gathered_bytes(self) -> int:
        """Of parameters that a watched step gathers on each rank, the median."""
        return round(median(self._gathered.values())) if self._gathered else 0

    def rewind(self) -> None:
        """A backward pass begins: the next bucket is the first."""
        self._came, self._blocking = [], None
        self._going.clear()

    def gradient(self, number: int) -> None:
        """The parameter ``number`` has its gradient: of the last reduce-scatter that began."""
        if not self._came:
            return
        self._came[-1].parameters.append(number)
        if self._blocking == len(self._came) - 1:
            self._watch.open.done[self._blocking] = self._watch.clock.mark()
            self._blocking = None

    def settle(self) -> list[Reduced]:
        """The buckets of the last backward pass, which every later one must have.

        Raises:
            UsageError: there are none.
        """
        if not self._came:
            raise UsageError(
                "FSDP2 reduced no gradients in the backward pass: there is nothing of its exchange to record",
                hint=_ONE_RANK,
            )
        self._known = list(self._came)
        return self._known

    def _begins(self, place: int, call: Any) -> None:
        watch = self._watch
        if call.name.name.startswith("ALLGATHER") and watch.open.kind == "on":
            number = watch.open.number
            self._gathered[number] = self._gathered.get(number, 0) + sum(
                each.nbytes for each in call.output_tensors
            )
        if not (call.name.name.startswith("REDUCE_SCATTER") and watch.in_backward):
            return
        one = Reduced(sum(each.numel() for each in call.input_tensors), call.input_tensors[0].dtype)
        number = len(self._came)
        self._came.append(one)
        if self._known is not None and not (
            number < len(self._known) and self._known[number].numel == one.numel
        ):
            watch.open.spoilt = True
        elif watch.timing:
            watch.open.full[number] = watch.clock.mark()
            self._going[place, call.op_id] = number

    def _has_begun(self, place: int, call: Any) -> None:
        number = self._going.pop((place, call.op_id), None)
        if number is None or call.work is None:
            return
        try:
            future = call.work.get_future()
        except RuntimeError:
            # Gloo's have none: FSDP2 then waits, and its first gradient comes when that is over.
            self._blocking = number
        else:
            note_end(future, self._watch, self._watch.open, number)


def notes(gathered_bytes: int) -> list[str]:
    """What a reader must know of a recording of FSDP2."""
    return [
        f"FSDP2: what is played is the exchange of gradients; gathering parameters ({format_bytes(gathered_bytes)} a "
        "step and rank) is not, and its time on the recorded network stands in forward and backward"
    ]
