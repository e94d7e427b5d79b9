"""Orthonormal bases of small dimension, in batches: the one piece of linear algebra that PowerSGD needs."""

from __future__ import annotations

import torch
from torch import Tensor

_DEPENDENT = 1e-5
"""A row of which projecting leaves less than this fraction depends on those before it, up to float32's rounding."""


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
