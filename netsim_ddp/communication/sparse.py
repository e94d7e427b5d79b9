"""Sparse methods: Top-K with error feedback, over a sparse all-gather or, to show why not, a dense all-reduce.

Both select from gradient + residual, by default the k_i = max(1, ceil(ratio n_i)) largest of each parameter, and take
the residual from the rank's *own* sparse approximation as the others receive it (Karimireddy et al. 2019, Algorithm 1;
Stich et al. 2018, Algorithm 1). The starting document took it from the average over ranks; disagreement between ranks
then never clears. Split-reduce, which they share their selection with, is in
:mod:`netsim_ddp.communication.split`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from netsim_ddp.communication.agreement import Agreement
from netsim_ddp.communication.dense import DenseAllReduce
from netsim_ddp.communication.exchange import peer_exchange
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.messages import Mailbox
from netsim_ddp.communication.segments import CodecWork, Group, Local, Method, Segment
from netsim_ddp.compression.budget import SelectionOptions
from netsim_ddp.compression.codec import Codec
from netsim_ddp.compression.feedback import ErrorFeedbackBuffer
from netsim_ddp.compression.kernels import NonFiniteGradient
from netsim_ddp.compression.momentum import MomentumCorrection
from netsim_ddp.compression.selection import Selection
from netsim_ddp.compression.shares import add_at, clear_at
from netsim_ddp.compression.statistics import Statistics, measure
from netsim_ddp.errors import UsageError
from netsim_ddp.methods import check_together


class SelectedEntries(Method):
    """Selection, rounding and feedback, which the sparse methods share.

    Args:
        values, indices: formats of :class:`~netsim_ddp.compression.codec.Codec`; what rounding takes from the
            values stays in the residual.
        feedback: keep the residual; off only to show what happens.
        error_buffer: where the residual lives; a new buffer by default.
        momentum: of :class:`~netsim_ddp.compression.momentum.MomentumCorrection`; the optimizer must then have none.
        clip: likewise, a limit on the gradient's norm.
        masking: likewise, where velocity is dropped.
        nonfinite: what a NaN or inf in one rank's gradient does: ``raise`` on every rank, or ``skip``: no rank changes
            anything, the average is 0 and ``skipped`` says so. Skipping takes one more round of one byte per peer.
        selection: what is sent, as :class:`~netsim_ddp.compression.budget.SelectionOptions` takes it.
    """

    def __init__(
        self,
        flat: FlatGradients,
        group: Group,
        *,
        values: str = "fp32",
        indices: str = "packed",
        feedback: bool = True,
        error_buffer: ErrorFeedbackBuffer | None = None,
        momentum: float = 0.0,
        clip: float | None = None,
        masking: str = "auto",
        nonfinite: str = "raise",
        **selection: Any,
    ) -> None:
        super().__init__(flat, group)
        check_together({**selection, "feedback": feedback, "momentum": momentum, "clip": clip})
        options = SelectionOptions(**selection)
        if options.scope == "model" and flat.is_part:
            raise UsageError(
                "scope=model needs the whole gradient, this method is built for one bucket of it",
                hint="write scope=bucket, or overlap=off",
            )
        self.codec = Codec(values, indices, seed=group.rank)
        self.buffer = (error_buffer or ErrorFeedbackBuffer()) if feedback else None
        device = flat.data.device
        self.residual = self.buffer.flat(flat.shapes, device, torch.float32) if self.buffer else None
        self.selection = Selection(list(flat.shapes.values()), options, device)
        self.momentum = (
            MomentumCorrection(flat.shapes, device, momentum, clip, group.world_size, masking)
            if momentum or clip is not None
            else None
        )
        self._agreement = Agreement(group, device) if nonfinite == "skip" else None
        self.values = torch.empty(0, device=device)
        """What this rank selected last, float32 [k], before rounding."""
        self.indices = torch.empty(0, dtype=torch.int32, device=device)
        """Its positions, int32 [k]."""
        self.received: Tensor | None = None
        """The values as the others decode them, where those differ."""
        self._room = None if self.codec.exact else torch.empty(self.selection.capacity, device=device)

    def segments(self) -> list[Segment]:
        if self._agreement is None:
            first = [] if self.momentum is None else [Local("compress", self._correct)]
            return [*first, *self._exchange()]
        return [
            Local("compress", self._examine),
            self._agreement.exchange,
            Local("compress", self._agree),
            *self._exchange(),
        ]

    @abstractmethod
    def _exchange(self) -> list[Segment]:
        """Select and send, unless ``skipped``; the momentum is in the gradient by then."""

    def _correct(self) -> None:
        if self.momentum is not None:
            self.momentum.correct(self.flat.data)

    def _examine(self) -> None:
        """Tell the others whether this rank's gradient can be used; nothing is accumulated before they answer."""
        assert self._agreement is not None
        self._correct()
        try:
            self.selection.check(self.flat.data, self.residual)
        except NonFiniteGradient:
            self._agreement.object(True)
        else:
            self._agreement.object(False)

    def _agree(self) -> None:
        assert self._agreement is not None
        self.skipped = bool(self._agreement.objectors)
        if self.skipped:
            self.values, self.indices = self.values[:0], self.indices[:0]

    def _select(self) -> None:
        """Choose ``values`` and ``indices`` from the buffer; the residual keeps the rest."""
        self.values, self.indices = self.selection.run(self.flat.data, self.residual)
        if self._room is not None:
            self.received = self._room[: self.values.numel()]
        if self.momentum is not None:
            masked = self.selection.waited(self.indices, self.momentum.masked_wait)
            self.momentum.keep(self.flat.data, masked)

    def _keep_rounding_error(self) -> None:
        """The residual keeps what rounding takes from the values sent."""
        if self.received is not None and self.residual is not None:
            self.residual[self.indices.long()] = self.values - self.received

    def _refuse(self, failed: int, failure: NonFiniteGradient | None) -> NoReturn:
        """Every rank raises: the failed one what it found, the others after taking their entries back, so that they
        keep this step's gradient for later."""
        if failure is not None:
            raise failure
        self.selection.take_back()
        if self.residual is not None:
            self.residual[self.indices.long()] = self.values
        if self.momentum is not None:
            self.momentum.keep(self.flat.data, self.indices[:0])
        raise NonFiniteGradient(f"rank {failed} found a gradient that is not finite", -1)

    def keep_back(self, begin: int, rest: Tensor) -> None:
        if self.residual is not None:
            self.residual[begin : begin + rest.numel()] += rest

    def statistics(self, *, layers: bool = False) -> Statistics:
        return measure(self.values, self.indices, self.residual, self.flat.shapes, layers=layers)

    @property
    def residual_bytes(self) -> int:
        velocity = 0 if self.momentum is None else self.momentum.nbytes
        return velocity + (0 if self.buffer is None else self.buffer.nbytes)

    def state_dict(self) -> dict[str, Any]:
        """What belongs to this rank of this many: residual, velocity, budget, where its random numbers stand."""
        place = {"rank": self.group.rank, "world_size": self.group.world_size}
        state: dict[str, Any] = {**place, "selection": self.selection.state_dict()}
        if self.buffer is not None:
            state["error_buffer"] = self.buffer.state_dict()
        if self.momentum is not None:
            state["velocity"] = self.momentum.state_dict()
        if self.codec.counter is not None:
            state["rounding"] = self.codec.counter
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` saved.

        With another number of ranks, residuals have no place to go: drop the state and what was not sent is lost, or
        first take a step with ``ratio=1``, which sends it all.

        Raises:
            ValueError: it is another rank's, or of another number of ranks or parameters.
        """
        for key, here in (("rank", self.group.rank), ("world_size", self.group.world_size)):
            if state[key] != here:
                raise ValueError(f"the state was saved with {key} {state[key]}, this is {here}")
        if self.buffer is not None:
            self.buffer.load_state_dict(state["error_buffer"])
            self.residual = self.buffer.flat(self.flat.shapes, self.flat.data.device, torch.float32)
        if self.momentum is not None:
            self.momentum.load_state_dict(state["velocity"])
        if self.codec.counter is not None and "rounding" in state:
            self.codec.counter = state["rounding"]
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
        self._gather = peer_exchange("gather", group, mine, self._messages, expected)
        self._average = torch.zeros_like(flat.data)
        self._written: list[Tensor] = []
        self._failure: NonFiniteGradient | None = None

    @property
    def average(self) -> Tensor:
        return self._average

    def _exchange(self) -> list[Segment]:
        k = self.selection.budget.final
        return [
            Local("compress", self._compress, CodecWork((self.flat.numel, k), encoded=(k,))),
            self._gather,
            Local("decompress", self._sum, CodecWork(decoded=(k,) * self.group.world_size)),
        ]

    def _compress(self) -> None:
        self._failure = None
        mine, ranks = self._messages[self.group.rank], self.group.world_size
        if self.skipped:
            self._gather.sizes = [self._mailbox.refuse(mine)] * ranks
            return
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
        total = self._average
        for positions in self._written:
            clear_at(total, positions)
        self._written = []
        if self.skipped:
            return
        refused = [rank for rank, message in enumerate(self._messages) if self._mailbox.refused(message)]
        if refused:
            self._refuse(refused[0], self._failure)
        # In rank order, so that every rank computes the same bits.
        for sender, message in enumerate(self._messages):
            values, indices = self._mailbox.read(message, sender)
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

    def _exchange(self) -> list[Segment]:
        return [
            Local("compress", self._compress),
            *DenseAllReduce(self.flat, self.group).segments(),
            Local("decompress", self._check),
        ]

    def _compress(self) -> None:
        self._failure = None
        approximation = self.flat.data
        if self.skipped:
            approximation.zero_()
            return
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
