"""The fused CPU kernel: add gradient and residual and pick the exact top k of every segment in one pass.

Everything compares the keys of :mod:`~netsim_ddp.compression.native.keys`. How a large segment is done:

1. a stratified sample of ``residual`` + gradient brackets the k-th key between ``low`` and ``high``;
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

from netsim_ddp.compression.native import vector
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
def _add(total: F32, residual: F32, gradient: int, start: int, stop: int) -> None:
    gradient += 4 * start
    part, rest = total[start:stop], residual[start:stop]
    for i in range(part.shape[0]):
        part[i] = rest[i] + vector.float_at(gradient, i)


@jit
def select_directly(
    total: F32, add: bool, start: int, stop: int, k: int, values: F32, indices: AnyInt
) -> None:
    """Select from ``total[start:stop]`` without candidates."""
    bits = total.view(np.int32)[start:stop]
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
    total: F32,
    residual: F32,
    gradients: I64,
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
    """Per segment: move the k largest of ``residual`` + gradient to ``values`` and ``indices``, and the rest to
    ``total``; or without ``add`` copy the k largest of ``total``.

    Args:
        total: float32 [N]; with ``add`` the selected positions become 0.
        residual: float32 [N], read only with ``add``; may be ``total`` itself.
        gradients: int64 [L], read only with ``add``: addresses of floats, the gradient of a segment from flat position
            ``start`` on lies 4 ``start`` bytes behind its own.
        offsets: int64 [L + 1] bounds within ``total``, not necessarily all of it. ks: int64 [L].
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
        gradient = gradients[s] if add else 0
        out = values[first : first + k]
        positions = indices[first : first + k]
        first += k
        done = False
        if is_direct(stop - start, k):
            if add:
                _add(total, residual, gradient, start, stop)
        else:
            low, high, _ = bracket(total, residual, gradient, add, start, stop, k)
            counts[0], sure[0], overflowed = collect(
                total, residual, gradient, add, start, stop, k, low, high, where, found, list_limit(k)
            )
            count = counts[0]
            kth, last, done = decide(
                total, add, k, high, overflowed, bases, counts, sure, where, found, spare_where, spare_found
            )
            if done:
                emit(found[:count], where[:count], kth, last, out, positions)
        if not done:
            select_directly(total, add, start, stop, k, out, positions)
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
