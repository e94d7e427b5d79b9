"""Sparse methods: Top-K with error feedback, over a sparse all-gather or, to show why not, a dense all-reduce.

Both select per parameter, k_i = max(1, ceil(ratio n_i)), from gradient + residual, and take the residual from the
rank's *own* sparse approximation as the others receive it (Karimireddy et al. 2019, Algorithm 1; Stich et al. 2018,
Algorithm 1). The starting document took it from the average over ranks; disagreement between ranks
then never clears.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from netsim_ddp.communication.dense import DenseAllReduce
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import (
    Collective,
    Group,
    Local,
    Method,
    Segment,
    ring_all_gather_messages,
)
from netsim_ddp.compression.codec import Codec
from netsim_ddp.compression.feedback import ErrorFeedbackBuffer
from netsim_ddp.compression.kernels import NonFiniteGradient, accumulate_select, select
from netsim_ddp.compression.topk import entry_count

STATUS_BYTES = 8  # keeps the entries behind it aligned


class _TopK(Method):
    """Selection and feedback, which the sparse methods share."""

    def __init__(
        self,
        flat: FlatGradients,
        group: Group,
        *,
        ratio: float,
        feedback: bool = True,
        error_buffer: ErrorFeedbackBuffer | None = None,
    ) -> None:
        super().__init__(flat, group)
        self.ratio = ratio
        self.buffer = (error_buffer or ErrorFeedbackBuffer()) if feedback else None
        device = flat.data.device
        self.residual = self.buffer.flat(flat.shapes, device, torch.float32) if self.buffer else None
        counts = [entry_count(int(size), ratio) for size in np.diff(flat.offsets)]
        self._offsets, self._counts = torch.from_numpy(flat.offsets), torch.tensor(counts, dtype=torch.int64)
        self.k = int(self._counts.sum())
        self.values = torch.empty(self.k, dtype=torch.float32, device=device)
        self.indices = torch.empty(self.k, dtype=torch.int32, device=device)

    def _select(self) -> None:
        """Fill ``values`` and ``indices`` [k] from the buffer; the residual keeps the rest."""
        out = (self._offsets, self._counts, self.values, self.indices)
        if self.residual is None:
            select(self.flat.data, *out)
        else:
            accumulate_select(self.flat.data, self.residual, *out)

    @property
    def residual_bytes(self) -> int:
        return 0 if self.residual is None else self.residual.numel() * self.residual.element_size()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.buffer is None else {"error_buffer": self.buffer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.buffer is None:
            super().load_state_dict(state)
        else:
            self.buffer.load_state_dict(state["error_buffer"])
            self.residual = self.buffer.flat(self.flat.shapes, self.flat.data.device, torch.float32)


class TopKAllGather(_TopK):
    """``topk``: every rank sends its k entries to all, and sums what it receives in rank order.

    Args:
        ratio: kept fraction k/N.
        values: ``fp32``, or ``fp16`` for half the value bytes; its rounding error stays in the residual.
        feedback: keep the residual; off only to show what happens.
        error_buffer: where the residual lives; a new buffer by default.
    """

    name = "topk"

    def __init__(
        self,
        flat: FlatGradients,
        group: Group,
        *,
        ratio: float = 0.01,
        values: str = "fp32",
        feedback: bool = True,
        error_buffer: ErrorFeedbackBuffer | None = None,
    ) -> None:
        super().__init__(flat, group, ratio=ratio, feedback=feedback, error_buffer=error_buffer)
        self.codec = Codec(values=values, indices="int32")
        self._exact = values == "fp32"
        size = STATUS_BYTES + self.codec.nbytes(self.k)
        device = group.wire_device(flat.data.device)
        self._message = torch.zeros(size, dtype=torch.uint8, device=device)
        self._received = torch.empty(size * group.world_size, dtype=torch.uint8, device=device)
        self._failure: NonFiniteGradient | None = None

    def segments(self) -> list[Segment]:
        size = self._message.numel()
        messages = ring_all_gather_messages(size, self.group.world_size)
        return [
            Local("compress", self._compress),
            Collective("all_gather", self._gather, size, messages),
            Local("decompress", self._decompress),
        ]

    def _compress(self) -> None:
        self._failure = None
        try:
            self._select()
        except NonFiniteGradient as error:
            # The others wait for this rank's message: tell them instead of leaving them there.
            self._failure = error
            self._message[0] = 1
            return
        self._message[0] = 0
        self.codec.encode(self.values, self.indices, out=self._message[STATUS_BYTES:])
        if not self._exact and self.residual is not None:
            lost = self.values - self.codec.round_trip(self.values)
            self.residual[self.indices.long()] = lost

    def _gather(self) -> dist.Work | None:
        return dist.all_gather_into_tensor(
            self._received, self._message, group=self.group.process_group, async_op=True
        )

    def _decompress(self) -> None:
        rows = self._received.view(self.group.world_size, -1)
        failed = [rank for rank in range(self.group.world_size) if int(rows[rank, 0])]
        if failed:
            self._refuse(failed[0])
        total = self.flat.data.zero_()
        # In rank order, so that every rank computes the same bits.
        for row in rows:
            values, indices = self.codec.decode(row[STATUS_BYTES:], self.k, self.flat.numel)
            total.index_add_(0, indices.to(total.device), values.to(total.device))
        total.div_(self.group.world_size)

    def _refuse(self, failed: int) -> None:
        """Every rank raises: the failed one what it found, the others after taking their entries back."""
        if self._failure is not None:
            raise self._failure
        if self.residual is not None:
            self.residual[self.indices.long()] = self.values
        raise NonFiniteGradient(f"rank {failed} found a gradient that is not finite", -1)


class TopKDense(_TopK):
    """``topk-dense``: the starting document's method. The sparse approximation is written into a dense tensor and
    all-reduced, so that the wire carries exactly what it carries without compression. Kept to show that."""

    name = "topk-dense"

    def __init__(
        self,
        flat: FlatGradients,
        group: Group,
        *,
        ratio: float = 0.01,
        feedback: bool = True,
        error_buffer: ErrorFeedbackBuffer | None = None,
    ) -> None:
        super().__init__(flat, group, ratio=ratio, feedback=feedback, error_buffer=error_buffer)

    def segments(self) -> list[Segment]:
        return [Local("compress", self._compress), *DenseAllReduce(self.flat, self.group).segments()]

    def _compress(self) -> None:
        self._select()
        approximation = self.flat.data.zero_()
        approximation[self.indices.long()] = self.values
