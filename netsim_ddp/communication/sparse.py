"""Sparse methods: Top-K with error feedback, over a sparse all-gather or, to show why not, a dense all-reduce.

Both select from gradient + residual, by default the k_i = max(1, ceil(ratio n_i)) largest of each parameter, and take
the residual from the rank's *own* sparse approximation as the others receive it (Karimireddy et al. 2019, Algorithm 1;
Stich et al. 2018, Algorithm 1). Taken from the average over ranks instead, disagreement between
ranks never clears. Split-reduce, which they share their selection with, is in
:mod:`netsim_ddp.communication.methods.topk_split`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Group, Local, Method, Segment
from netsim_ddp.compression import kernels
from netsim_ddp.compression.budget import SelectionOptions
from netsim_ddp.compression.codec import Codec
from netsim_ddp.compression.feedback import ErrorFeedbackBuffer
from netsim_ddp.compression.kernels import NonFiniteGradient
from netsim_ddp.compression.momentum import MomentumCorrection
from netsim_ddp.compression.runs import Runs
from netsim_ddp.compression.selection import Selection
from netsim_ddp.compression.selectors import ExactSelector
from netsim_ddp.compression.shards import put_at, saved_sums
from netsim_ddp.compression.statistics import Statistics, measure
from netsim_ddp.errors import UsageError
from netsim_ddp.methods.topk import check_together


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
        nonfinite: what a NaN or inf in one rank's gradient does, or a sum that is beyond ``limit``: ``raise`` on every
            rank, or ``skip``: the average is 0 and ``skipped`` says so. Either way nothing that is kept between steps
            changes, on any rank.
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
        check_together(
            {**selection, "feedback": feedback, "momentum": momentum, "clip": clip, "masking": masking}
        )
        options = SelectionOptions(**selection)
        if options.scope == "model" and flat.is_part:
            raise UsageError(
                "scope=model needs the whole gradient, this method is built for one bucket of it",
                hint="write scope=bucket, or overlap=off",
            )
        self.codec = Codec(values, indices, seed=group.rank)
        self.buffer = (error_buffer or ErrorFeedbackBuffer()) if feedback else None
        device = flat.data.device
        self.residual: Tensor | None = None
        """What earlier steps have not sent, float32 [N]."""
        self.total: Tensor | None = None
        """Residual and gradient, less what is sent: what the residual will be, float32 [N]."""
        self._find_residual()
        self.selection = Selection(list(flat.shapes.values()), options, device)
        self.momentum = (
            MomentumCorrection(flat.shapes, device, momentum, clip, group.world_size, masking)
            if momentum or clip is not None
            else None
        )
        self._velocity = None if self.momentum is None else torch.empty_like(flat.data)
        """This step's, until it is committed."""
        self._skips = nonfinite == "skip"
        self._plain = feedback and self.momentum is None and options.selector == ExactSelector.name
        self._failure: NonFiniteGradient | None = None
        """What this rank found in its own gradient in this step."""
        self._open = False
        """Whether a step has been begun that was neither committed nor rolled back."""
        self._counter = self.codec.counter
        self.values = torch.empty(0, dtype=torch.float32, device=device)
        """What this rank selected last, float32 [k], before rounding."""
        self.indices = torch.empty(0, dtype=torch.int32, device=device)
        """Its positions, int32 [k]."""
        self._average: Tensor | None = None
        self._written: Tensor | None = None
        """The positions of the average that are not 0, where they are known."""
        self.received: Tensor | None = None
        """The values as the others decode them, where those differ."""
        self._room = (
            None
            if self.codec.exact
            else torch.empty(self.selection.capacity, dtype=torch.float32, device=device)
        )

    @property
    def average(self) -> Tensor:
        """In a buffer of its own, made when it is first needed: where gradients are lent it never is."""
        if self._average is None:
            self._average = kernels.zeros(self.flat.numel, self.flat.data.device)
        return self._average

    @property
    def borrows(self) -> bool:
        """Where the fused kernel runs, whose segments must be parameters for it to find their gradients."""
        return (
            self._plain
            and kernels.fused is not None
            and len(self.flat.names) == self.selection.budget.offsets.numel() - 1
        )

    def segments(self) -> list[Segment]:
        first = [] if self.momentum is None else [Local("compress", self._correct)]
        return [*first, *self._exchange()]

    @abstractmethod
    def _exchange(self) -> list[Segment]:
        """Select and send; the momentum is in the gradient by then."""

    def _correct(self) -> None:
        assert self.momentum is not None
        assert self._velocity is not None
        self.momentum.correct(self.flat.data)
        self._velocity.copy_(self.flat.data)

    def _select(self) -> bool:
        """Choose ``values`` and ``indices``; the rest is in ``total``, which becomes the residual when the step is
        committed. False where this rank's gradient is not finite: the others wait for its message, so tell them."""
        self.roll_back()  # whatever an interrupted step left
        self.skipped, self._failure, self._counter = False, None, self.codec.counter
        gradient = self.flat.data if self.flat.lent is None else self.flat.lent
        self._find_residual()
        try:
            self.values, self.indices = self.selection.run(gradient, self.residual, self.total)
        except NonFiniteGradient as error:
            self._failure = self._by_name(error)
            return False
        self._open = True
        if self._room is not None:
            self.received = self._room[: self.values.numel()]
        return True

    def _find_residual(self) -> None:
        """The buffer may have been moved, or laid out for others too."""
        if self.buffer is not None:
            self.residual = self.buffer.flat(self.flat.shapes, self.flat.data.device, torch.float32)
            self.total = self.buffer.spare(self.residual)

    def _keep_rounded(self, received: Tensor) -> None:
        """The residual keeps what rounding took from ``values``; float32 [k], as the others decode them."""
        if self.total is not None:
            put_at(self.total, self.indices, self.values - received)

    def _by_name(self, error: NonFiniteGradient) -> NonFiniteGradient:
        """With the parameter's name, where a segment is a parameter."""
        names = self.flat.names
        if len(names) != self.selection.budget.offsets.numel() - 1 or not 0 <= error.segment < len(names):
            return error
        return NonFiniteGradient(
            f"the gradient of {names[error.segment]}, or its sum with what is pending, is not finite",
            error.segment,
        )

    def _conclude(self, peak: float, runs: Runs | None = None, *, add: bool = False) -> None:
        """All ranks know the average, and refuse it alike.

        Args:
            peak: no magnitude in it is larger.
            runs: its entries, to be written where the average is wanted; None where it has been. With ``add`` it is
                their sum.
        """
        if not peak <= self.limit:
            self._refuse("the ranks' gradients have a sum that is not finite")
            return
        if not self.provisional:
            self.commit()
        if runs is not None:
            if self.flat.lent is not None:
                runs.lay(self.flat.lent, add=add)
            else:
                self._written = runs.replace(self.average, self._written, add=add)

    def _refuse(self, why: str) -> None:
        """This step is void: every rank raises, the one that failed what it found, or skips. What was lent has not been
        written to."""
        self.roll_back()
        self.values, self.indices = self.values[:0], self.indices[:0]
        if self._average is not None:
            self._average.zero_()
            self._written = None
        if not self._skips:
            raise self._failure or NonFiniteGradient(why, -1)
        self.skipped = True

    def commit(self) -> None:
        if not self._open:
            return
        self._open = False
        if self.buffer is not None and self.residual is not None:
            self.residual = self.buffer.exchange(self.residual)
        if self.momentum is not None:
            assert self._velocity is not None
            self.momentum.keep(self._velocity, self.selection.waited(self.indices, self.momentum.masked_wait))

    def roll_back(self) -> None:
        if self._open:
            self._open = False
            self.selection.take_back()
            if self._counter is not None:
                self.codec.counter = self._counter

    def keep_back(self, begin: int, rest: Tensor) -> None:
        if self.residual is not None:
            self.residual[begin : begin + rest.numel()] += rest

    @property
    def steps(self) -> int:
        return self.selection.budget.step

    def statistics(self, *, layers: bool = False) -> Statistics:
        return measure(self.values, self.indices, self.residual, self.flat.shapes, layers=layers)

    @property
    def residual_bytes(self) -> int:
        velocity = 0 if self.momentum is None else self.momentum.nbytes
        return velocity + (0 if self.buffer is None else self.buffer.nbytes)

    def state_dict(self) -> dict[str, Any]:
        """What belongs to this rank of this many: residual, velocity, budget, where its random numbers stand."""
        buffer, momentum, counter = self.buffer, self.momentum, self.codec.counter
        return {
            "rank": self.group.rank,
            "world_size": self.group.world_size,
            "selection": self.selection.state_dict(),
            **({} if buffer is None else {"error_buffer": buffer.state_dict(self.flat.shapes)}),
            **({} if momentum is None else {"velocity": momentum.state_dict()}),
            **({} if counter is None else {"rounding": counter}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` saved.

        With another number of ranks, residuals have no place to go: drop the state and what was not sent is lost, or
        first take a step with ``ratio=1``, which sends it all.

        What this rank kept as an owner goes to its residual where it has no place (another collective, another ratio or
        scope, version 0.1.0): both count with 1/P, so that nothing changes in what is pending.

        Raises:
            ValueError: it is another rank's, or of another number of ranks or parameters, or holds an owner's sums
                and there is no residual that could take them over.
        """
        for key, here in (("rank", self.group.rank), ("world_size", self.group.world_size)):
            if state[key] != here:
                raise ValueError(f"the state was saved with {key} {state[key]}, this is {here}")
        sums = saved_sums(state, self.flat.numel) if "sums" in state else None
        if sums is not None and self.buffer is None and bool(sums.any()):
            raise ValueError(
                "the state holds sums of an owner, which feedback=off has no residual to keep in"
            )
        if self.buffer is not None:
            self.buffer.load_state_dict(state["error_buffer"], self.flat.shapes)
            self._find_residual()
            if sums is not None and self.residual is not None:
                self.residual.add_(sums.to(self.residual.device))
        if self.momentum is not None:
            self.momentum.load_state_dict(state["velocity"])
        if self.codec.counter is not None and "rounding" in state:
            self.codec.counter = state["rounding"]
        self.selection.load_state_dict(state["selection"])
