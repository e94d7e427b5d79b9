"""The same selection in plain torch: any device, any floating dtype, no compiler.

Slower on the CPU than the fused kernel (it sorts out the k-th magnitude with ``torch.topk``) and bit for
bit equal to it, which a test holds. On an accelerator the host waits for nothing before the end of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

# The integer type whose bits order as the magnitudes do once the sign is cleared, and the bits of inf.
_KEYS = {
    torch.float16: (torch.int16, 0x7FFF, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7FFF, 0x7F80),
    torch.float32: (torch.int32, 0x7FFF_FFFF, 0x7F80_0000),
    torch.float64: (torch.int64, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
}
DTYPES = tuple(_KEYS)


def _keys(flat: Tensor) -> Tensor:
    """Magnitudes as integers: exact for denormals whatever the device's flush mode, and NaN is no trap."""
    integer, mask, _ = _KEYS[flat.dtype]
    return flat.view(integer) & mask


def first_non_finite(flat: Tensor, offsets: Sequence[int]) -> int:
    """The first segment of ``flat`` [N] that holds a NaN or inf; -1 when there is none."""
    if bool(torch.isfinite(flat).all()):
        return -1
    for segment, (start, stop) in enumerate(pairwise(offsets)):
        if not bool(torch.isfinite(flat[start:stop]).all()):
            return segment
    return -1


def top_indices(flat: Tensor, k: int) -> Tensor:
    """int64 [k], ascending: the k largest magnitudes of ``flat`` [n], of equal ones the lower index.

    ``torch.topk`` alone does not say which of equal values it takes; its k-th *value* is certain.
    """
    n = flat.numel()
    every = torch.arange(n, device=flat.device)
    if k >= n:
        return every
    keys = _keys(flat)
    if keys.dtype == torch.int16:  # not every device sorts 16-bit integers
        keys = keys.to(torch.int32)
    kth = torch.topk(keys, k, sorted=False).values.min()
    above, ties = keys > kth, keys == kth
    chosen = above | (ties & (ties.cumsum(0) <= k - above.sum()))
    # Not nonzero(), whose size the host would wait for: exactly k are chosen, and the others all go to place k.
    place = torch.where(chosen, chosen.cumsum(0) - 1, k)
    return torch.empty(k + 1, dtype=torch.int64, device=flat.device).scatter_(0, place, every)[:k]


def select_segments(
    flat: Tensor, offsets: Sequence[int], ks: Sequence[int], values: Tensor, indices: Tensor
) -> None:
    """Write the selected entries of every segment of ``flat``, which does not change."""
    first = 0
    for start, stop, k in zip(offsets[:-1], offsets[1:], ks, strict=True):
        if k:
            chosen = top_indices(flat[start:stop], k) + start
            indices[first : first + k].copy_(chosen)
            values[first : first + k].copy_(flat[chosen])
            first += k


def accumulate_select(
    total: Tensor, offsets: Sequence[int], ks: Sequence[int], values: Tensor, indices: Tensor
) -> Tensor:
    """Move the selected entries out of ``total``, where 0 remains; returns, as a tensor on the device, whether it was
    finite."""
    finite = torch.isfinite(total).all()
    select_segments(total, offsets, ks, values, indices)
    total.index_fill_(0, indices.long(), 0)
    return finite
