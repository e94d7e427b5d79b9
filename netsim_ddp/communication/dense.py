"""Dense all-reduce: every gradient crosses the wire, as float32, in its own type, or rounded to float16."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import (
    Collective,
    Group,
    Local,
    Method,
    Segment,
    Wire,
    ring_all_reduce_messages,
)
from netsim_ddp.link.bucket.schedule import Sent


class DenseAllReduce(Method):
    """One float32 all-reduce of the whole buffer, then the division by P: the baseline of a float32 model."""

    name = "dense"
    stateless = True

    def segments(self) -> list[Segment]:
        data, ranks = self.flat.data, self.group.world_size
        return [*summed(data, self.group), Local("decompress", lambda: _divide(data, ranks))]


class OwnTypeAllReduce(Method):
    """The baseline of a model that is not all float32: DistributedDataParallel sums every gradient in its parameter's
    own type, one type after the other, each divided by P before the sum."""

    name = "dense"
    stateless = True

    def __init__(self, flat: FlatGradients, group: Group) -> None:
        super().__init__(flat, group)
        device = group.wire_device(flat.data.device)
        stretches: dict[torch.dtype, list[torch.Tensor]] = {}
        for view, kind in zip(flat.views, flat.kinds, strict=True):
            stretches.setdefault(kind, []).append(view.reshape(-1))
        self._sent = [
            (views, torch.empty(sum(view.numel() for view in views), dtype=kind, device=device))
            for kind, views in stretches.items()
        ]

    def segments(self) -> list[Segment]:
        return [
            Local("compress", self._fill),
            *(all_reduce(buffer, self.group) for _, buffer in self._sent),
            Local("decompress", self._take),
        ]

    def _fill(self) -> None:
        for views, buffer in self._sent:
            for view, part in zip(views, _cut(buffer, views), strict=True):
                part.copy_(view)
            buffer.div_(self.group.world_size)

    def _take(self) -> None:
        for views, buffer in self._sent:
            for view, part in zip(views, _cut(buffer, views), strict=True):
                view.copy_(part)


def baseline(flat: FlatGradients, group: Group) -> Method:
    """Dense as DistributedDataParallel sends it: what ``run`` and ``train`` compare with."""
    plain = all(kind == torch.float32 for kind in flat.kinds)
    return DenseAllReduce(flat, group) if plain else OwnTypeAllReduce(flat, group)


class Float16AllReduce(Method):
    """All-reduce in float16: half the bytes. Rounded, then divided by P before the sum, as torch's
    ``fp16_compress_hook`` does, with the same bits: the sum of P gradients overflows no sooner than one of them. A
    gradient beyond 65504 becomes inf, on every rank, as under that hook."""

    name = "fp16"
    stateless = True

    def __init__(self, flat: FlatGradients, group: Group) -> None:
        super().__init__(flat, group)
        self._half = torch.empty_like(
            flat.data, dtype=torch.float16, device=group.wire_device(flat.data.device)
        )

    def segments(self) -> list[Segment]:
        return [
            Local("compress", self._compress),
            all_reduce(self._half, self.group),
            Local("decompress", lambda: _copy(self.flat.data, self._half)),
        ]

    def _compress(self) -> None:
        self._half.copy_(self.flat.data)
        self._half.div_(self.group.world_size)


def all_reduce(tensor: torch.Tensor, group: Group) -> Wire:
    """The sum of ``tensor`` over ranks, in place."""
    size = tensor.numel() * tensor.element_size()

    def begin() -> dist.Work | None:
        return dist.all_reduce(tensor, group=group.process_group, async_op=True)

    messages = ring_all_reduce_messages(size, group.world_size)
    return Collective("all_reduce", begin, size, messages, Sent("allreduce", (size,), tensor.element_size()))


def all_gather(tensor: torch.Tensor, gathered: torch.Tensor, group: Group) -> Wire:
    """``tensor`` of every rank, in rank order, in ``gathered`` [P, *shape]; its shape and type are the same on all.

    Both must lie where they can cross the wire, see :meth:`Group.wire_device`.

    Raises:
        ValueError: ``gathered`` has another shape or type.
    """
    wanted = (group.world_size, *tensor.shape)
    if tuple(gathered.shape) != wanted or gathered.dtype != tensor.dtype:
        raise ValueError(
            f"gathered must be {list(wanted)}, {tensor.dtype}; it is {list(gathered.shape)}, {gathered.dtype}"
        )
    size = tensor.numel() * tensor.element_size()

    def begin() -> dist.Work | None:
        return dist.all_gather(list(gathered.unbind(0)), tensor, group=group.process_group, async_op=True)

    return Collective("all_gather", begin, size, (size,) * (group.world_size - 1))


def summed(tensor: torch.Tensor, group: Group) -> list[Segment]:
    """:func:`all_reduce` of a tensor that may lie where it cannot cross the wire: then by way of the host."""
    device = group.wire_device(tensor.device)
    if device == tensor.device:
        return [all_reduce(tensor, group)]
    host = torch.empty_like(tensor, device=device, pin_memory=True)
    return [
        Local("compress", lambda: _copy(host, tensor)),
        all_reduce(host, group),
        Local("decompress", lambda: _copy(tensor, host)),
    ]


def _cut(buffer: torch.Tensor, like: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    return torch.split(buffer, [each.numel() for each in like])


def _divide(tensor: torch.Tensor, divisor: int) -> None:
    tensor.div_(divisor)


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source)
