"""Dense all-reduce: every gradient crosses the wire, as float32 or in its own type."""

from __future__ import annotations

import torch

from netsim_ddp.communication.exchange import all_reduce, summed
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Group, Local, Method, Segment


class DenseAllReduce(Method):
    """One float32 all-reduce of the whole buffer, then the division by P: the baseline of a float32 model."""

    name = "dense"
    stateless = True

    def segments(self) -> list[Segment]:
        return [*summed(self.flat.data, self.group), Local("decompress", self._divide)]

    def _divide(self) -> None:
        self.flat.data.div_(self.group.world_size)


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
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Every gradient, and where it lies in what is sent."""
        self._sent: list[torch.Tensor] = []
        for kind, views in stretches.items():
            sizes = [view.numel() for view in views]
            self._sent.append(torch.empty(sum(sizes), dtype=kind, device=device))
            self._pairs += zip(views, torch.split(self._sent[-1], sizes), strict=True)

    def segments(self) -> list[Segment]:
        return [
            Local("compress", self._fill),
            *(all_reduce(buffer, self.group) for buffer in self._sent),
            Local("decompress", self._take),
        ]

    def _fill(self) -> None:
        for view, part in self._pairs:
            part.copy_(view)
        for buffer in self._sent:
            buffer.div_(self.group.world_size)

    def _take(self) -> None:
        for view, part in self._pairs:
            view.copy_(part)


def baseline(flat: FlatGradients, group: Group) -> Method:
    """Dense as DistributedDataParallel sends it: what ``run`` and ``train`` compare with."""
    plain = all(kind == torch.float32 for kind in flat.kinds)
    return DenseAllReduce(flat, group) if plain else OwnTypeAllReduce(flat, group)
