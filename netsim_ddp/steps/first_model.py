"""One model for all ranks from the first step on: rank 0's, as DistributedDataParallel sends it when it is built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from netsim_ddp.communication.segments import Group
from netsim_ddp.errors import UsageError
from netsim_ddp.ranks.channel import RankChannel

CHUNK_BYTES = 1 << 20
"""Sent between two signs of life: the slowest link's deadline must not end a large model's way."""


def share_first_model(
    channel: RankChannel, group: Group, model: nn.Module, name: str, say: Callable[[str], None]
) -> bool:
    """Give every rank rank 0's parameters and buffers, where they differ. What is compared does not cross the link.

    Returns:
        Whether the ranks had built models of different values.

    Raises:
        UsageError: they have built models of different parameters, in number, order, name, shape or type.
    """
    if group.world_size == 1:
        return False
    say("comparing the ranks' models")
    layout = _layout(model)
    answers = channel.gather(
        "model", [hashlib.sha256(json.dumps(layout).encode()).hexdigest(), _digest(model)]
    )
    if any(answer[0] != answers[0][0] for answer in answers):
        _refuse(channel.gather("layout", layout), name)
    if all(answer[1] == answers[0][1] for answer in answers):
        return False
    with torch.no_grad():
        for _, tensor in _tensors(model):
            _receive(tensor, group, say)
    return True


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _layout(model: nn.Module) -> list[list[Any]]:
    return [
        [key, list(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.requires_grad]
        for key, tensor in _tensors(model)
    ]


def _digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for _, tensor in _tensors(model):
        found.update(_bytes(tensor).cpu().numpy().data)
    return found.hexdigest()


def _bytes(tensor: Tensor) -> Tensor:
    """The values of ``tensor`` as uint8 [bytes], a copy where they are not contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _receive(tensor: Tensor, group: Group, say: Callable[[str], None]) -> None:
    data = _bytes(tensor).to(group.wire_device(tensor.device), copy=True)
    for begin in range(0, data.numel(), CHUNK_BYTES):
        say("taking rank 0's parameters")
        dist.broadcast(data[begin : begin + CHUNK_BYTES], 0, group=group.process_group)
    tensor.copy_(data.to(tensor.device).view(tensor.dtype).view(tensor.shape))


def _refuse(layouts: list[list[list[Any]]], name: str) -> None:
    """Name the first difference, and the first rank that has it."""
    first = layouts[0]
    rank = next(rank for rank, layout in enumerate(layouts) if layout != first)
    other = layouts[rank]
    place = next((i for i, (a, b) in enumerate(zip(first, other, strict=False)) if a != b), None)
    if place is None:
        more = first if len(first) > len(other) else other
        who = 0 if more is first else rank
        what = f"{more[min(len(first), len(other))][0]} is on rank {who} alone"
    else:
        what = f"{_told(first[place])} on rank 0 is {_told(other[place])} on rank {rank}"
    raise UsageError(
        f"model {name!r}: the ranks have built different models: {what}",
        hint="build the same layers in the same order on every rank, whatever its number",
    )


def _told(entry: list[Any]) -> str:
    key, shape, kind, trained = entry
    return f"{key} {shape} {kind}{'' if trained else ', without a gradient'}"
