"""Sparse methods: Top-K with error feedback, over a sparse all-gather or, to show why not, a dense all-reduce.

Both select per parameter, k_i = max(1, ceil(ratio n_i)), from gradient + residual, and take the residual from the
rank's *own* sparse approximation as the others receive it (Karimireddy et al. 2019, Algorithm 1; Stich et al. 2018,
Algorithm 1). The starting document took it from the average over ranks; disagreement between ranks
then never clears. Split-reduce, which they share their selection with, is in
:mod:`netsim_ddp.communication.split`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from netsim_ddp.communication.dense import DenseAllReduce
from netsim_ddp.communication.exchange import peer_exchange
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.messages import Mailbox
from netsim_ddp.communication.segments import Group, Local, Method, Segment
from netsim_ddp.compression.codec import Codec
from netsim_ddp.compression.feedback import ErrorFeedbackBuffer
from netsim_ddp.compression.kernels import NonFiniteGradient, accumulate_select, select
from netsim_ddp.compression.shares import add_at, clear_at
from netsim_ddp.compression.topk import entry_count


class SelectedEntries(Method):
    """Selection, rounding and feedback, which the sparse methods share."""

    def __init__(
        self,
        flat: FlatGradients,
        group: Group,
        *,
        ratio: float,
        values: str = "fp32",
        indices: str = "packed",
        feedback: bool = True,
        error_buffer: ErrorFeedbackBuffer | None = None,
    ) -> None:
        super().__init__(flat, group)
        self.ratio = ratio
        self.codec = Codec(values, indices, seed=group.rank)
        self.buffer = (error_buffer or ErrorFeedbackBuffer()) if feedback else None
        device = flat.data.device
        self.residual = self.buffer.flat(flat.shapes, device, torch.float32) if self.buffer else None
        counts = [entry_count(int(size), ratio) for size in np.diff(flat.offsets)]
        self._offsets, self._counts = torch.from_numpy(flat.offsets), torch.tensor(counts, dtype=torch.int64)
        self.k = int(self._counts.sum())
        self.values = torch.empty(self.k, dtype=torch.float32, device=device)
        self.indices = torch.empty(self.k, dtype=torch.int32, device=device)
        self.received = None if self.codec.exact else torch.empty_like(self.values)
        """The values as the others decode them, where those differ."""

    def _select(self) -> None:
        """Fill ``values`` and ``indices`` [k] from the buffer; the residual keeps the rest."""
        out = (self._offsets, self._counts, self.values, self.indices)
        if self.residual is None:
            select(self.flat.data, *out)
        else:
            accumulate_select(self.flat.data, self.residual, *out)

    def _keep_rounding_error(self) -> None:
        """The residual keeps what rounding takes from the values sent."""
        if self.received is not None and self.residual is not None:
            self.residual[self.indices.long()] = self.values - self.received

    def _refuse(self, failed: int, failure: NonFiniteGradient | None) -> NoReturn:
        """Every rank raises: the failed one what it found, the others after taking their entries back."""
        if failure is not None:
            raise failure
        if self.residual is not None:
            self.residual[self.indices.long()] = self.values
        raise NonFiniteGradient(f"rank {failed} found a gradient that is not finite", -1)

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


class TopKAllGather(SelectedEntries):
    """``topk-allgather``: every rank sends its k entries to all, and sums what it receives in rank order.

    Args:
        ratio: kept fraction k/N.
        values, indices: formats of :class:`~netsim_ddp.compression.codec.Codec`; what rounding takes from the
            values stays in the residual.
        feedback: keep the residual; off only to show what happens.
        error_buffer: where the residual lives; a new buffer by default.
    """

    name = "topk-allgather"
    collective = "allgather"

    def __init__(self, flat: FlatGradients, group: Group, **options: Any) -> None:
        super().__init__(flat, group, **options)
        device = group.wire_device(flat.data.device)
        self._mailbox = Mailbox(self.codec, self.k, flat.numel, device)
        self._messages = [self._mailbox.buffer() for _ in range(group.world_size)]
        mine = [self._messages[group.rank]] * group.world_size
        expected = self._mailbox.expected_nbytes(self.k)
        self._gather = peer_exchange("gather", group, mine, self._messages, expected)
        self._average = torch.zeros_like(flat.data)
        self._written: list[Tensor] = []
        self._failure: NonFiniteGradient | None = None

    @property
    def average(self) -> Tensor:
        return self._average

    def segments(self) -> list[Segment]:
        return [Local("compress", self._compress), self._gather, Local("decompress", self._sum)]

    def _compress(self) -> None:
        self._failure = None
        mine, ranks = self._messages[self.group.rank], self.group.world_size
        try:
            self._select()
        except NonFiniteGradient as error:
            # The others wait for this rank's message: tell them instead of leaving them there.
            self._failure = error
            self._gather.sizes = [self._mailbox.refuse(mine)] * ranks
            return
        self._gather.sizes = [self._mailbox.write(self.values, self.indices, mine, self.received)] * ranks
        self._keep_rounding_error()

    def _sum(self) -> None:
        refused = [rank for rank, message in enumerate(self._messages) if self._mailbox.refused(message)]
        if refused:
            self._refuse(refused[0], self._failure)
        total = self._average
        for positions in self._written:
            clear_at(total, positions)
        self._written = []
        # In rank order, so that every rank computes the same bits.
        for message in self._messages:
            values, indices = self._mailbox.read(message)
            indices = indices.to(total.device)
            add_at(total, indices, values.to(total.device) / self.group.world_size)
            self._written.append(indices)


class TopKDense(SelectedEntries):
    """``topk-dense``: the starting document's method. The sparse approximation is written into a dense tensor and
    all-reduced, so that the wire carries exactly what it carries without compression. Kept to show that."""

    name = "topk-dense"

    def __init__(self, flat: FlatGradients, group: Group, **options: Any) -> None:
        super().__init__(flat, group, **options)
        self._failure: NonFiniteGradient | None = None

    def segments(self) -> list[Segment]:
        return [
            Local("compress", self._compress),
            *DenseAllReduce(self.flat, self.group).segments(),
            Local("decompress", self._check),
        ]

    def _compress(self) -> None:
        self._failure = None
        approximation = self.flat.data
        try:
            self._select()
        except NonFiniteGradient as error:
            # The others wait in the all-reduce: its sum tells them, and who it was.
            self._failure = error
            approximation.zero_()[self.group.rank % approximation.numel()] = torch.nan
            return
        approximation.zero_()[self.indices.long()] = self.values

    def _check(self) -> None:
        refused = self.flat.data[: self.group.world_size].isnan().nonzero().flatten().tolist()
        if refused:
            self._refuse(refused[0], self._failure)
