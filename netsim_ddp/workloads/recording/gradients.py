"""Which values of a gradient a recording keeps: evenly spaced blocks of each parameter, so that what lies side by side
(a row, a filter, an embedding's entry) is seen, and so is every part of a large parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 64
"""Values side by side that are kept or left as one."""
BUDGET_BYTES = 49_500_000
"""Of all sets of sampled gradients together, so that the file stays below 50 MB."""
_WHOLE = 4096  # biases and norms: few, and unlike what lies around them
_BYTES = 2  # of a float16


def kept_of(sizes: Sequence[int], sets: int, budget: int = BUDGET_BYTES) -> list[int]:
    """How many values of each parameter are kept, so that ``sets`` sets of them fit in ``budget`` bytes.

    Args:
        sizes: the parameters' numbers of elements.

    Returns: per parameter its size where it is kept whole, else a multiple of ``BLOCK``: small parameters are whole,
    the others give the same share of their blocks, at least one.
    """
    room = budget // (_BYTES * max(sets, 1))
    if sum(sizes) <= room:
        return list(sizes)
    whole = sum(size for size in sizes if size <= _WHOLE)
    share = max(room - whole, 0) / (sum(sizes) - whole or 1)
    return [
        size if size <= _WHOLE else min(size, BLOCK * max(1, math.floor(share * size / BLOCK)))
        for size in sizes
    ]


def starts_of(numel: int, kept: int, block: int = BLOCK) -> np.ndarray:
    """Where the kept blocks of a parameter begin, int64 [blocks], ascending; they do not overlap. Where all of it is
    kept the last one is shorter, elsewhere all have ``block`` values.

    Raises:
        ValueError: ``kept`` is neither the whole nor whole blocks of it.
    """
    if kept == numel:
        return np.arange(0, numel, block, dtype=np.int64)
    count, rest = divmod(kept, block)
    if rest or not 0 <= kept < numel:
        raise ValueError(f"{kept} of {numel} values are no blocks of {block}")
    return np.arange(count, dtype=np.int64) * (numel - block) // max(count - 1, 1)


def indices_of(numel: int, kept: int, block: int = BLOCK) -> np.ndarray:
    """The kept values' places in the flat parameter, int64 [kept], ascending."""
    if kept == numel:
        return np.arange(numel, dtype=np.int64)
    return (starts_of(numel, kept, block)[:, None] + np.arange(block, dtype=np.int64)).ravel()


def sample(gradient: Tensor, places: Tensor | None) -> Tensor:
    """A copy of what a recording keeps of ``gradient``, flat, on its device and in its type.

    Args:
        places: int64 [kept] on the gradient's device; None keeps the whole.
    """
    flat = (gradient.to_dense() if gradient.is_sparse else gradient).detach().reshape(-1)
    return flat.clone() if places is None else flat[places]


def packed(samples: Sequence[Tensor]) -> tuple[np.ndarray, list[float]] | None:
    """One set of gradients as a recording holds it: float16 [sum of kept], and what each parameter was divided by, its
    largest absolute value; None where one is not finite (a loss that was scaled too far)."""
    parts, scales = [], []
    for each in samples:
        values = each.to("cpu", torch.float64 if each.dtype == torch.float64 else torch.float32)
        largest = float(values.abs().max()) if values.numel() else 0.0
        if not largest <= 1e38:  # a NaN is not
            return None
        scales.append(largest or 1.0)
        parts.append((values / scales[-1]).to(torch.float16).numpy())
    return np.concatenate(parts) if parts else np.empty(0, np.float16), scales
