"""The fused CPU kernel: accumulate into the residual and pick the exact top k of every segment in one pass.

Everything compares the keys of :mod:`~netsim_ddp.compression.native.keys`. How a large segment is done:

1. a stratified sample of ``residual + grad`` brackets the k-th key between ``low`` and ``high``;
2. one pass adds, appends every entry with a key >= ``low`` to a list of candidates and, where the key is
   >= ``high``, zeroes it at once, while it is in a register: it is almost surely among those sent;
3. a radix selection among the few candidates between the two finds the k-th key, and a pass over the
   candidates writes the entries in ascending index order, so that of equal magnitudes the lower index wins.

None of the guesses decides the result. When the list is full, its own k-th key becomes the new ``low``: what
was dropped could no longer win, of ties neither, since all that follows has a higher index. So ties, zeros and
one repeated value cost one pass too. When more than k reach ``high``, the surplus is written back. Only when
fewer than k reach ``low`` does the radix selection run over the whole segment: three more passes, never
quadratic.

Imports numba, so import it only through :mod:`netsim_ddp.compression.kernels`.
"""

from __future__ import annotations

import numpy as np

from netsim_ddp.compression.native.candidates import SLACK, bracket, collect, decide, emit, list_limit
from netsim_ddp.compression.native.jit import F32, I32, I64, AnyInt, jit
from netsim_ddp.compression.native.keys import INF_KEY, KEY_MASK, kth_key, max_key

_DIRECT = 4096  # smaller segments are selected directly: a sample would cost as much
_DENSE = 4  # so are segments that keep at least one entry in this many


@jit
def is_direct(n: int, k: int) -> bool:
    """Whether a segment is selected without candidates."""
    return n <= _DIRECT or k * _DENSE >= n


@jit
def _add(flat: F32, grad: F32) -> None:
    for i in range(flat.shape[0]):
        flat[i] += grad[i]


@jit
def select_directly(
    flat: F32, add: bool, start: int, stop: int, k: int, values: F32, indices: AnyInt
) -> None:
    """Select from ``flat[start:stop]`` without candidates."""
    bits = flat.view(np.int32)[start:stop]
    out = values.view(np.int32)
    kth, ties = -1, 0
    if k < stop - start:
        kth, larger = kth_key(bits, k, True)
        ties = k - larger
    written = 0
    for i in range(bits.shape[0]):
        key = np.int32(bits[i] & KEY_MASK)
        if key > kth or (key == kth and ties > 0):
            ties -= key == kth
            out[written] = bits[i]
            indices[written] = start + i
            written += 1
            if add:
                bits[i] = 0


@jit
def select_segments(
    flat: F32,
    grad: F32,
    add: bool,
    offsets: I64,
    ks: I64,
    values: F32,
    indices: AnyInt,
    where: I32,
    found: I32,
    spare_where: I32,
    spare_found: I32,
) -> int:
    """Per segment: optionally ``flat += grad``, then move or copy the k largest to ``values`` and ``indices``.

    Args:
        flat: float32 [N]. With ``add`` it is the residual, and the selected positions become 0.
        grad: float32 [N], read only with ``add``.
        offsets: int64 [L + 1] bounds within ``flat``, not necessarily all of it. ks: int64 [L].
        values, indices: [sum(ks)].
        where, found, spare_where, spare_found: scratch, each as long as the largest ``list_limit(k)`` of a
            segment that is not direct, and ``SLACK``.

    Returns:
        the first segment where a selected value is not finite (-1: none).
    """
    bases, counts, sure = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64)
    bad = -1
    first = 0
    for s in range(ks.shape[0]):
        start, stop, k = offsets[s], offsets[s + 1], ks[s]
        if k == 0:
            continue
        out = values[first : first + k]
        positions = indices[first : first + k]
        first += k
        done = False
        if is_direct(stop - start, k):
            if add:
                _add(flat[start:stop], grad[start:stop])
        else:
            low, high, _ = bracket(flat, grad, add, start, stop, k)
            counts[0], sure[0], overflowed = collect(
                flat, grad, add, start, stop, k, low, high, where, found, list_limit(k)
            )
            count = counts[0]
            kth, last, done = decide(
                flat, add, k, high, overflowed, bases, counts, sure, where, found, spare_where, spare_found
            )
            if done:
                emit(found[:count], where[:count], kth, last, out, positions)
        if not done:
            select_directly(flat, add, start, stop, k, out, positions)
        if bad < 0 and max_key(out.view(np.int32)) >= INF_KEY:
            bad = s
    return bad


@jit
def scratch_length(offsets: I64, ks: I64) -> int:
    """How long the scratch lists of :func:`select_segments` must be."""
    longest = 0
    for s in range(ks.shape[0]):
        if not is_direct(offsets[s + 1] - offsets[s], ks[s]):
            longest = max(longest, list_limit(ks[s]) + SLACK)
    return longest
