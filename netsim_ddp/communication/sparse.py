"""Sparse methods: Top-K with error feedback, over a sparse all-gather or, to show why not, a dense all-reduce.

Both select from gradient + residual, by default the k_i = max(1, ceil(ratio n_i)) largest of each parameter, and take
the residual from the rank's *own* sparse approximation as the others receive it (Karimireddy et al. 2019, Algorithm 1;
Stich et al. 2018, Algorithm 1). The starting document took it from the average over ranks; disagreement between ranks
then never clears. Split-reduce, which they share their selection with, is in
:mod:`netsim_ddp.communication.split`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from netsim_ddp.communication.dense import DenseAllReduce
from netsim_ddp.communication.exchange import PeerExchange
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.messages import Mailbox
from netsim_ddp.communication.segments import Group, Local, Method, Segment
from netsim_ddp.compression.budget import SelectionOptions
from netsim_ddp.compression.codec import Codec
from netsim_ddp.compression.feedback import ErrorFeedbackBuffer
from netsim_ddp.compression.kernels import NonFiniteGradient
from netsim_ddp.compression.selection import Selection
from netsim_ddp.compression.shares import add_at, clear_at
from netsim_ddp.errors import UsageError


class SelectedEntries(Method):
    """Selection, rounding and feedback, which the sparse methods share.

    Args:
        values: ``fp32``, or ``fp16`` for half the value bytes; its rounding error stays in the residual.
        feedback: keep the residual; off only to show what happens.
        error_buffer: where the residual lives; a new buffer by default.
        selection: what is sent, as :class:`~netsim_ddp.compression.budget.SelectionOptions` takes it.
    """

    def __init__(
        self,
        flat: FlatGradients,
        group: Group,
        *,
        values: str = "fp32",
        feedback: bool = True,
        error_buffer: ErrorFeedbackBuffer | None = None,
        **selection: Any,
    ) -> None:
        super().__init__(flat, group)
        options = SelectionOptions(**selection)
        if options.scope == "model" and flat.is_part:
            raise UsageError(
                "scope=model needs the whole gradient, this method is built for one bucket of it",
                hint="write scope=bucket, or overlap=off",
            )
        self.codec = Codec(values=values, indices="int32")
        self._exact = values == "fp32"
        self.buffer = (error_buffer or ErrorFeedbackBuffer()) if feedback else None
        device = flat.data.device
        self.residual = self.buffer.flat(flat.shapes, device, torch.float32) if self.buffer else None
        self.selection = Selection(list(flat.shapes.values()), options, device)
        self.values = torch.empty(0, device=device)
        """What this rank selected last, float32 [k], before rounding."""
        self.indices = torch.empty(0, dtype=torch.int32, device=device)
        """Its positions, int32 [k]."""

    def _select(self) -> None:
        """Choose ``values`` and ``indices`` from the buffer; the residual keeps the rest."""
        self.values, self.indices = self.selection.run(self.flat.data, self.residual)

    def _keep_rounding_error(self) -> None:
        """The residual keeps what rounding takes from the values sent."""
        if not self._exact and self.residual is not None:
            self.residual[self.indices.long()] = self.values - self.codec.round_trip(self.values)

    def _refuse(self, failed: int, failure: NonFiniteGradient | None) -> NoReturn:
        """Every rank raises: the failed one what it found, the others after taking their entries back."""
        if failure is not None:
            raise failure
        self.selection.take_back()
        if self.residual is not None:
            self.residual[self.indices.long()] = self.values
        raise NonFiniteGradient(f"rank {failed} found a gradient that is not finite", -1)

    @property
    def residual_bytes(self) -> int:
        return 0 if self.residual is None else self.residual.numel() * self.residual.element_size()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"selection": self.selection.state_dict()}
        if self.buffer is not None:
            state["error_buffer"] = self.buffer.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.buffer is not None:
            self.buffer.load_state_dict(state["error_buffer"])
            self.residual = self.buffer.flat(self.flat.shapes, self.flat.data.device, torch.float32)
        self.selection.load_state_dict(state["selection"])


class TopKAllGather(SelectedEntries):
    """``topk-allgather``: every rank sends its k entries to all, and sums what it receives in rank order.

    Args:
        options: as :class:`SelectedEntries` takes them.
    """

    name = "topk-allgather"
    collective = "allgather"

    def __init__(self, flat: FlatGradients, group: Group, **options: Any) -> None:
        super().__init__(flat, group, **options)
        device = group.wire_device(flat.data.device)
        self._mailbox = Mailbox(self.codec, self.selection.capacity, flat.numel, device)
        self._messages = [self._mailbox.buffer() for _ in range(group.world_size)]
        mine = [self._messages[group.rank]] * group.world_size
        expected = self._mailbox.expected_nbytes(self.selection.budget.final)
        self._gather = PeerExchange("gather", group, mine, self._messages, expected)
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
        self._gather.sizes = [self._mailbox.write(self.values, self.indices, mine)] * ranks
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

    def segments(self) -> list[Segment]:
        return [Local("compress", self._compress), *DenseAllReduce(self.flat, self.group).segments()]

    def _compress(self) -> None:
        self._select()
        approximation = self.flat.data.zero_()
        approximation[self.indices.long()] = self.values
