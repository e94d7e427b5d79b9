"""PowerSGD: every matrix of the gradient as a product of two thin ones (Vogels, Karimireddy and Jaggi 2019).

One step of power iteration per training step, started from the last one's result (Algorithm 1): with the ranks'
compensated gradients M_w [n, m] and the shared Q [m, r], all-reduce P = sum of M_w Q, make its columns orthonormal,
all-reduce Q = mean of M_w^T P, and apply P Q^T. Error feedback is theirs (Algorithm 2): a rank keeps M_w - P Q_w^T,
with its *own* Q_w. torch's hook subtracts the average P Q^T instead; that gives the same updates, since everything
that is sent is linear in M_w, but lets the residuals of ranks that disagree grow for ever.

Two details are ours. A column of P that depends on the others is dropped instead of normalised, and a direction of
Q that came out as zero keeps its old one, so that a layer whose gradient was zero for a step is not lost for good.

What ranks compute from the same sums (the columns made orthonormal, the products) has the same bits only where they
have equal processors, thread counts and libraries. So the ranks compare digests of the first step's result, and of
every hundredth's after it, within the next step's first all-reduce; a difference ends the training with its name.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from netsim_ddp.communication.exchange import summed
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import LARGEST, Group, Local, Method, Segment
from netsim_ddp.compression.feedback import ErrorFeedbackBuffer
from netsim_ddp.compression.kernels import NonFiniteGradient, all_finite, largest
from netsim_ddp.errors import UsageError

COMPARED_EVERY = 100
"""Steps between two comparisons of the ranks' results; the first step's is compared too."""

_DEPENDENT = 1e-5
"""A row of which projecting leaves less than this fraction depends on those before it, up to float32's rounding."""


@dataclass(frozen=True)
class _Matrix:
    """One parameter's gradient as a matrix [rows, columns], and where it is in the step's buffers."""

    name: str
    gradient: Tensor
    residual: Tensor | None
    rank: int

    @property
    def rows(self) -> int:
        return self.gradient.shape[0]

    @property
    def columns(self) -> int:
        return self.gradient.shape[1]


class PowerSGD(Method):
    """``powersgd``: two all-reduces of r (n + m) values per matrix; what is no matrix, or not worth it, goes with the
    first one as it is.

    Args:
        rank: r, of the approximation; a matrix that is smaller has its own as its rank.
        min_compression: a matrix is approximated if that takes less than 1 / ``min_compression`` of its values.
        feedback: keep the residual; off only to show what happens.
        seed: of the first Q, with the parameter's name, so that it is the same however buckets are cut.
        error_buffer: where the residual lives; a new buffer by default.

    Raises:
        ValueError: ``rank`` below 1, or ``min_compression`` not above 0.
    """

    name = "powersgd"

    def __init__(
        self,
        flat: FlatGradients,
        group: Group,
        *,
        rank: int = 1,
        min_compression: float = 2.0,
        feedback: bool = True,
        seed: int = 0,
        error_buffer: ErrorFeedbackBuffer | None = None,
    ) -> None:
        super().__init__(flat, group)
        if rank < 1:
            raise ValueError(f"rank {rank} is not at least 1")
        if not min_compression > 0:
            raise ValueError(f"min_compression {min_compression} is not above 0")
        self.rank, self.min_compression = rank, min_compression
        self.buffer = (error_buffer or ErrorFeedbackBuffer()) if feedback else None
        self._find_matrices()
        narrow = {matrix.name for matrix in self._matrices}
        self._rest = {
            name: view for name, view in zip(flat.names, flat.views, strict=True) if name not in narrow
        }
        self._make_buffers(seed)

    def _find_matrices(self) -> None:
        """Look the matrices and their residuals up; again whenever the residual's memory has changed."""
        flat = self.flat
        self.residual = (
            self.buffer.flat(flat.shapes, flat.data.device, torch.float32) if self.buffer else None
        )
        self._matrices = []
        for name, view, begin in zip(flat.names, flat.views, flat.offsets.tolist(), strict=False):
            if view.ndim < 2 or view.numel() == 0:
                continue
            rows, columns = view.shape[0], view[0].numel()
            rank = min(rows, columns, self.rank)
            if rank * (rows + columns) * self.min_compression >= rows * columns:
                continue
            residual = self.residual
            kept = None if residual is None else residual[begin : begin + view.numel()].view(rows, columns)
            self._matrices.append(_Matrix(name, view.view(rows, columns), kept, rank))

    def _make_buffers(self, seed: int) -> None:
        device, matrices = self.flat.data.device, self._matrices
        high = sum(matrix.rank * matrix.rows for matrix in matrices)
        wide = sum(matrix.rank * matrix.columns for matrix in matrices)
        rest = sum(view.numel() for view in self._rest.values())
        ranks = self.group.world_size
        self._first = torch.zeros(high + rest + 3 * ranks, dtype=torch.float32, device=device)
        """What the first all-reduce sums: every P, what is not approximated, who met a NaN or inf, and now and then
        every rank's digest of an earlier result."""
        products, others, self._refusals, digests = torch.split(self._first, [high, rest, ranks, 2 * ranks])
        self._digests = digests.view(ranks, 2)
        self._step = 0
        self._digest: Tensor | None = None
        self._others = _views(others, [view.shape for view in self._rest.values()])
        self._second = torch.empty(wide, dtype=torch.float32, device=device)
        """What the second one sums: every Q, transposed."""
        self._mine = torch.empty_like(self._second)
        """This rank's own, which its residual is made of."""
        self._average: Tensor | None = None
        """Where the average goes where the gradient is needed until the step is committed."""
        self._open = False
        """Whether a step has been begun that was neither committed nor rolled back."""
        # Matrices of one height lie side by side, so that their P are made orthonormal in one go; likewise their Q.
        # Of the layouts that a product may have, these are several times faster on a CPU than their transposes.
        self._p_stacks, self._p = _stacked(products, matrices, lambda m: m.rows, tall=True)
        self._basis_stacks, self._basis = _stacked(torch.empty_like(products), matrices, lambda m: m.rows)
        self._q_stacks, self._q = _stacked(self._second, matrices, lambda m: m.columns)
        _, self._own = _stacked(self._mine, matrices, lambda m: m.columns)
        self._start_stacks, self._start = _stacked(
            torch.empty_like(self._second), matrices, lambda m: m.columns
        )
        for matrix in matrices:
            generator = torch.Generator("cpu").manual_seed(seed * 2**32 + zlib.crc32(matrix.name.encode()))
            start = self._start[matrix.name]
            start.copy_(torch.randn(start.shape, generator=generator, dtype=torch.float32, device="cpu"))
        for stack in self._start_stacks:
            orthonormalise(stack)

    @property
    def average(self) -> Tensor:
        """In ``flat.data``, unless that is needed until the step is committed."""
        if not self.provisional:
            return self.flat.data
        if self._average is None:
            self._average = torch.empty_like(self.flat.data)
        return self._average

    def segments(self) -> list[Segment]:
        return [
            Local("compress", self._project),
            *summed(self._first, self.group),
            Local("compress", self._factor),
            *(summed(self._second, self.group) if self._matrices else []),
            Local("decompress", self._multiply),
        ]

    def _project(self) -> None:
        """P_w = M_w Q; residual and Q are left alone until every rank is known to be fine."""
        self._open = False
        if self.residual is not None:
            self.flat.data.add_(self.residual)
        for matrix in self._matrices:
            torch.mm(matrix.gradient, self._start[matrix.name].t(), out=self._p[matrix.name])
        for view, place in zip(self._rest.values(), self._others, strict=True):
            place.copy_(view)
        self._refusals.zero_()
        self._digests.zero_()
        if self._digest is not None:
            self._digests[self.group.rank] = self._digest
        self._refusals[self.group.rank] = float(not all_finite(self._first))

    def _factor(self) -> None:
        """Q_w = M_w^T P."""
        if not all_finite(self._first):
            refused = self._refusals.nonzero().flatten().tolist()
            who = f"rank {refused[0]} found a gradient" if refused else "the ranks' gradients have a sum"
            raise NonFiniteGradient(f"{who} that is not finite", -1)
        self._compare()
        for stack, basis in zip(self._p_stacks, self._basis_stacks, strict=True):
            basis.copy_(stack.transpose(1, 2))
            orthonormalise(basis)
        for matrix in self._matrices:
            torch.mm(self._basis[matrix.name], matrix.gradient, out=self._own[matrix.name])
        if self._product(self._mine) <= LARGEST / 4:
            self._second.copy_(self._mine)
        else:  # what P Q_w^T leaves of M_w might not be finite; the sum tells the others
            self._second.fill_(torch.nan)

    def _compare(self) -> None:
        """Hold the ranks' digests against each other; every rank has them all."""
        self._digest = None
        told = self._digests.tolist()
        differ = [rank for rank, each in enumerate(told) if any(each) and any(told[0]) and each != told[0]]
        if differ:
            raise UsageError(
                f"powersgd: rank {differ[0]} has computed other bits than rank 0 from the same sums, so that their "
                "parameters have parted",
                hint="give the ranks equal processors (or GPUs), thread counts and libraries; topk needs none of that",
            )

    def _product(self, q: Tensor) -> float:
        """No entry of P Q^T is larger: the rows of P are no longer than 1. NaN where Q holds one."""
        return math.sqrt(self.rank) * largest(q)

    def _multiply(self) -> None:
        """The average: P Q^T, and the mean of what was not approximated."""
        ranks = self.group.world_size
        self._second.div_(ranks)
        rest = max((largest(place) / ranks for place in self._others), default=0.0)
        if not (self._product(self._second) <= self.limit and rest <= self.limit):
            raise NonFiniteGradient("the ranks' gradients have a product or sum that is not finite", -1)
        self._open = True
        if not self.provisional:
            self.commit()
        views = dict(zip(self.flat.names, self.flat.views_of(self.average), strict=True))
        for name, place in zip(self._rest, self._others, strict=True):
            torch.div(place, ranks, out=views[name])
        for matrix in self._matrices:
            target = views[matrix.name].view(matrix.rows, matrix.columns)
            torch.mm(self._basis[matrix.name].t(), self._q[matrix.name], out=target)
        if self._step % COMPARED_EVERY == 0 and self._matrices:
            self._digest = _digest(self.average, *self._start_stacks)
        self._step += 1

    def commit(self) -> None:
        """The residual is what P Q_w^T leaves of M_w; Q is where the next step starts."""
        if not self._open:
            return
        self._open = False
        for matrix in self._matrices:
            if matrix.residual is not None:
                basis, q = self._basis[matrix.name], self._own[matrix.name]
                torch.addmm(matrix.gradient, basis.t(), q, alpha=-1, out=matrix.residual)
        for start, q in zip(self._start_stacks, self._q_stacks, strict=True):
            basis = q.clone()
            orthonormalise(basis)
            start.copy_(torch.where(basis.any(dim=2, keepdim=True), basis, start))

    def roll_back(self) -> None:
        self._open = False

    def keep_back(self, begin: int, rest: Tensor) -> None:
        # What is not approximated never exceeds its gradients, and its residual is not read.
        for matrix in self._matrices:
            if matrix.name == self.flat.segment_of(begin) and matrix.residual is not None:
                matrix.residual.view(-1).add_(rest)

    @property
    def residual_bytes(self) -> int:
        return 0 if self.residual is None else self.residual.numel() * self.residual.element_size()

    def state_dict(self) -> dict[str, Any]:
        """This rank's residual, and the Q that all ranks start the next step from."""
        buffer = self.buffer
        return {
            "q": {name: start.clone() for name, start in self._start.items()},
            **({} if buffer is None else {"error_buffer": buffer.state_dict(self.flat.shapes)}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` saved.

        Raises:
            ValueError: it is of other parameters, another rank r, or with feedback where this is without.
        """
        saved = state["q"]
        here, there = ({name: tuple(q.shape) for name, q in each.items()} for each in (self._start, saved))
        if here != there:
            differ = sorted({name for name, _ in here.items() ^ there.items()})
            raise ValueError(f"the saved Q of {', '.join(differ)} does not fit")
        if ("error_buffer" in state) != (self.buffer is not None):
            raise ValueError("the state was saved with feedback and this is without, or the other way round")
        if self.buffer is not None:
            self.buffer.load_state_dict(state["error_buffer"], self.flat.shapes)
            self._find_matrices()
        for name, start in self._start.items():
            start.copy_(saved[name])


def _digest(*tensors: Tensor) -> Tensor:
    """48 bits of the float32 ``tensors``' own, as two whole numbers that a float32 can hold: [2]. Sums of bits as
    integers, which come out the same in any order."""
    total = sum(int(tensor.view(torch.int32).sum(dtype=torch.int64)) for tensor in tensors)
    return torch.tensor([total % 2**24 or 1, (total >> 24) % 2**24], dtype=torch.float32, device="cpu")


def _views(buffer: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """``buffer`` cut into tensors of ``shapes``."""
    sizes = [shape.numel() for shape in shapes]
    return [part.view(shape) for part, shape in zip(torch.split(buffer, sizes), shapes, strict=True)]


def _stacked(
    buffer: Tensor, matrices: Sequence[_Matrix], side: Callable[[_Matrix], int], *, tall: bool = False
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """``buffer`` cut into one [rank, side] matrix per parameter ([side, rank] if ``tall``), those of one shape side by
    side: as stacks [count, rank, side], and one by one by name."""

    def size(matrix: _Matrix) -> tuple[int, int]:
        return side(matrix), matrix.rank

    def shape(group: list[_Matrix]) -> torch.Size:
        length, rank = size(group[0])
        return torch.Size((len(group), length, rank) if tall else (len(group), rank, length))

    groups = [list(group) for _, group in itertools.groupby(sorted(matrices, key=size), key=size)]
    stacks = _views(buffer, [shape(group) for group in groups])
    return stacks, {
        m.name: stack[i] for group, stack in zip(groups, stacks, strict=True) for i, m in enumerate(group)
    }


def orthonormalise(rows: Tensor) -> None:
    """Make the rows of every matrix orthonormal, in place, by Gram-Schmidt.

    A row that is zero or depends on those before it becomes zero: what rounding left of it has no direction, and
    normalised it would break the others' orthogonality. Each row is projected twice, which is enough for rounding
    (Giraud, Langou and Rozloznik 2005, section 3).

    Args:
        rows: float32 [batch, rank, length], finite, with rank at most length.
    """
    if rows.numel():  # by powers of two, so that no square over- or underflows and no bit changes
        exponent = torch.frexp(rows.abs().amax(dim=2, keepdim=True)).exponent.clamp(-126, 126)
        rows.copy_(torch.ldexp(rows, -exponent))
    for i in range(rows.shape[1]):
        row, done = rows[:, i : i + 1], rows[:, :i]
        before = torch.linalg.vector_norm(row, dim=2, keepdim=True)
        for _ in range(2 if i else 0):
            row.baddbmm_(row @ done.transpose(1, 2), done, alpha=-1)
        after = torch.linalg.vector_norm(row, dim=2, keepdim=True)
        row.mul_(torch.where(after > _DEPENDENT * before, 1 / after, 0.0))
