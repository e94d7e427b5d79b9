"""float16 on the wire: half the bytes of float32."""

from __future__ import annotations

import torch

from netsim_ddp.communication.exchange import all_reduce
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Group, Local, Method, Segment


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
            Local("decompress", self._widen),
        ]

    def _compress(self) -> None:
        self._half.copy_(self.flat.data)
        self._half.div_(self.group.world_size)

    def _widen(self) -> None:
        self.flat.data.copy_(self._half)
