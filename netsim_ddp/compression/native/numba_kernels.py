"""The fused CPU kernel: accumulate into the residual and pick the exact top k of every segment in one pass.

Everything compares *keys*: the bits of a float32 with the sign cleared, as int32. They order exactly as the
magnitudes do (denormals and both zeros included), and a NaN or inf is a key of at least ``INF_KEY``, so no
comparison here can be confused by a NaN.

How a large segment is done:

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

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from netsim_ddp.compression.native import vector

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
AnyInt = NDArray[np.int32] | NDArray[np.int64]
_F = TypeVar("_F", bound=Callable[..., Any])

KEY_MASK = np.int32(0x7FFFFFFF)
LARGEST_KEY = np.int32(0x7FFFFFFF)
INF_KEY = np.int32(0x7F800000)
# 2**103. The largest float32 is 2**128 - 2**104, and a sum rounds to inf from 2**128 - 2**103 on: adding
# anything smaller than 2**103 to a finite residual cannot overflow: only larger gradients need a second look.
CAN_OVERFLOW_KEY = np.int32((103 + 127) << 23)

_BLOCK = 8192  # floats scanned between two looks at how full the list of candidates is
_CHECK = 1 << 18  # floats checked between two looks at the result
_DIRECT = 4096  # smaller segments are selected directly: a sample would cost as much
_DENSE = 4  # so are segments that keep at least one entry in this many
# A draw costs two cache misses, a candidate too many only a few ns: a larger sample would save less than it costs.
_SAMPLE = 16384
_LEAST_SAMPLE = 1024
_SPARSE = 256  # entries for each draw, where the sample is smaller
BUCKETS = 2048
SLACK = _BLOCK + vector.STRIDE  # room behind the last candidate
_COMPRESS = vector.HAS_COMPRESS


def _jit(function: _F) -> _F:
    """``njit``, cached on disk where that is possible.

    Numba looks for a writable cache beside the source, then below the home directory, and raises when it
    finds neither (installed by root, used by an account without a home): then each process compiles.
    """
    options: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
    try:
        compiled: _F = njit(cache=True, **options)(function)
    except RuntimeError:
        compiled = njit(**options)(function)
    return compiled


# Two habits below are worth a factor of eight: loops run from 0 over a slice, because an index that might be
# negative keeps LLVM from using vectors, and a key is cast back to int32, because numba widens it to int64.


@_jit
def max_key(bits: I32) -> int:
    """Largest key of ``bits``; 0 when empty."""
    largest = np.int32(0)
    for i in range(bits.shape[0]):
        largest = max(largest, np.int32(bits[i] & KEY_MASK))
    return int(largest)


@_jit
def _add(flat: F32, grad: F32) -> None:
    for i in range(flat.shape[0]):
        flat[i] += grad[i]


@_jit
def _find_bucket(histogram: I32, buckets: int, k: int) -> tuple[int, int]:
    """The bucket that holds the k-th largest, and how many lie in the buckets above it."""
    above = 0
    bucket = buckets - 1
    while above + histogram[bucket] < k:
        above += histogram[bucket]
        bucket -= 1
    return bucket, above


@_jit
def _kth_key(bits: I32, k: int, histogram: I32, exact: bool) -> tuple[int, int]:
    """The k-th largest key of ``bits`` and how many keys are larger; 1 <= k <= len(bits).

    Radix selection over 11 + 10 + 10 bits. With ``exact`` false the last digit is left out and the key
    is a lower bound that is at most 2**-13 too small, relatively.
    """
    n = bits.shape[0]
    histogram[:] = 0
    for i in range(n):
        histogram[np.int32(bits[i] & KEY_MASK) >> 20] += 1
    top, larger = _find_bucket(histogram, 2048, k)
    histogram[:1024] = 0
    for i in range(n):
        key = np.int32(bits[i] & KEY_MASK)
        if key >> 20 == top:
            histogram[(key >> 10) & 1023] += 1
    middle, above = _find_bucket(histogram, 1024, k - larger)
    prefix = (top << 10) | middle
    larger += above
    if not exact:
        return prefix << 10, larger
    histogram[:1024] = 0
    for i in range(n):
        key = np.int32(bits[i] & KEY_MASK)
        if key >> 10 == prefix:
            histogram[key & 1023] += 1
    low, above = _find_bucket(histogram, 1024, k - larger)
    return (prefix << 10) | low, larger + above


@_jit
def _bracket(flat: F32, grad: F32, add: bool, k: int, sample: F32, histogram: I32) -> tuple[int, int, int]:
    """Two keys: k and a few more entries of ``flat`` (``flat + grad`` with ``add``) should reach the first, and
    a few less than k the second. The third number says how many may reach the first: with ties far more."""
    n = flat.shape[0]
    size = min(_SAMPLE, max(_LEAST_SAMPLE, n // _SPARSE))
    stride = n // size
    state = np.uint32(2463534242)
    for j in range(size):
        # one draw per stratum: a fixed step would resonate with the rows of a weight matrix
        state = np.uint32(state ^ np.uint32(state << np.uint32(13)))
        state = np.uint32(state ^ np.uint32(state >> np.uint32(17)))
        state = np.uint32(state ^ np.uint32(state << np.uint32(5)))
        i = np.uint64(j * stride) + ((np.uint64(state) * np.uint64(stride)) >> np.uint64(32))
        sample[j] = flat[i] + grad[i] if add else flat[i]
    expected = size * k / n
    doubt = 3.0 * math.sqrt(expected) + 2.0
    bits = sample[:size].view(np.int32)
    low = 0
    if expected + doubt < size:
        low, _ = _kth_key(bits, int(expected + doubt), histogram, False)
    high = int(LARGEST_KEY)
    if expected - doubt >= 1.0:
        digits, _ = _kth_key(bits, int(expected - doubt), histogram, False)
        high = digits + 1024
    reach = 0
    for j in range(size):
        reach += int(np.int32(bits[j] & KEY_MASK) >= low)
    return low, high, reach * n // size


@_jit
def _scan(
    flat: F32,
    bits: I32,
    grad: F32,
    add: bool,
    start: int,
    stop: int,
    low: int,
    high: int,
    where: I32,
    found: I32,
    both: int,
) -> int:
    """Add the gradient (if ``add``) and append position and bits of every key >= ``low``.

    ``both`` counts the candidates in its low half and those >= ``high``, which become 0, in its high half.
    """
    least, sure = np.int32(low), np.int32(high)
    i = start
    if _COMPRESS:
        whole = start + (stop - start) // vector.STRIDE * vector.STRIDE
        if add:
            for i in range(start, whole, vector.STRIDE):
                both = vector.scan_add(flat, grad, i, least, sure, where, found, both)
        else:
            for i in range(start, whole, vector.STRIDE):
                both = vector.scan_only(flat, grad, i, least, sure, where, found, both)
    else:
        whole = start + (stop - start) // vector.MASK_STRIDE * vector.MASK_STRIDE
        for i in range(start, whole, vector.MASK_STRIDE):
            hits = vector.mask_add(flat, grad, i, least) if add else vector.mask_only(flat, grad, i, least)
            while hits != np.uint32(0):
                j = np.uint64(i + vector.trailing_zeros(hits))
                hits = np.uint32(hits & np.uint32(hits - np.uint32(1)))
                both = _append(bits, add, j, sure, where, found, both)
    for i in range(whole, stop):
        j = np.uint64(i)
        if add:
            flat[j] += grad[j]
        if np.int32(bits[j] & KEY_MASK) >= least:
            both = _append(bits, add, j, sure, where, found, both)
    return both


@_jit
def _append(bits: I32, add: bool, j: Any, sure: Any, where: I32, found: I32, both: int) -> int:
    count = np.uint64(both & 0xFFFFFFFF)
    where[count] = j
    found[count] = bits[j]
    if np.int32(bits[j] & KEY_MASK) >= sure:
        if add:
            bits[j] = 0
        both += 1 << 32
    return both + 1


@_jit
def collect(
    flat: F32,
    grad: F32,
    add: bool,
    start: int,
    stop: int,
    k: int,
    low: int,
    high: int,
    where: I32,
    found: I32,
    limit: int,
    histogram: I32,
) -> tuple[int, int, bool]:
    """The candidates of ``flat[start:stop]``: at least its k largest, if as many reach ``low``.

    ``where`` and ``found`` have room for ``limit + SLACK``, and k < limit.

    Returns:
        their number, how many of them reach ``high`` (and are 0 in ``flat`` already, with ``add``), and
        whether the list was full once: then any of them may be 0 in ``flat`` and none is counted so.
    """
    bits = flat.view(np.int32)
    both = 0
    overflowed = zeroed = False
    for block in range(start, stop, _BLOCK):
        both = _scan(flat, bits, grad, add, block, min(block + _BLOCK, stop), low, high, where, found, both)
        if both & 0xFFFFFFFF > limit:
            zeroed = zeroed or (add and both >> 32 > 0)
            kth = _keep_best(bits, zeroed, where, found, both & 0xFFFFFFFF, k, histogram)
            low = min(kth + 1, int(LARGEST_KEY))
            high = int(LARGEST_KEY)
            overflowed = True
            both = k
    return both & 0xFFFFFFFF, both >> 32, overflowed


@_jit
def _kth_of_ties(bits: I32, k: int, histogram: I32) -> tuple[int, int]:
    """:func:`_kth_key`, in two fast passes where the smallest key of all is so frequent that it is the k-th."""
    smallest = LARGEST_KEY
    for i in range(bits.shape[0]):
        smallest = min(smallest, np.int32(bits[i] & KEY_MASK))
    larger = 0
    for i in range(bits.shape[0]):
        larger += int(np.int32(bits[i] & KEY_MASK) > smallest)
    if larger < k:
        return int(smallest), larger
    return _kth_key(bits, k, histogram, True)


@_jit
def _position_of_tie(found: I32, where: I32, kth: int, number: int) -> int:
    """Where the ``number``-th candidate with the key ``kth`` is; -1 for number 0."""
    i = -1
    while number > 0:
        i += 1
        number -= np.int32(found[np.uint64(i)] & KEY_MASK) == kth
    return int(where[np.uint64(i)]) if i >= 0 else -1


@_jit
def _keep_best(bits: I32, zeroed: bool, where: I32, found: I32, count: int, k: int, histogram: I32) -> int:
    """Reduce ``count`` candidates to the k best and answer the k-th key.

    With ``zeroed`` some are 0 in ``bits`` already: those dropped are put back there.
    """
    kth, larger = _kth_of_ties(found[:count], k, histogram)
    ties = k - larger
    if not zeroed:
        last = _position_of_tie(found[:count], where[:count], kth, ties)
        _between(found[:count], where[:count], kth, int(LARGEST_KEY), last, found[:count], where[:count])
        return kth
    kept = 0
    for i in range(count):
        key = np.int32(found[i] & KEY_MASK)
        if key > kth or (key == kth and ties > 0):
            ties -= key == kth
            where[kept] = where[i]
            found[kept] = found[i]
            kept += 1
        else:
            bits[np.uint64(where[i])] = found[i]
    return kth


@_jit
def _between(
    found: I32, where: I32, low: int, high: int, last: int, out_found: I32, out_where: AnyInt
) -> int:
    """Copy the candidates with ``low`` < key <= ``high``, and those with key = ``low`` up to position ``last``.

    No more than ``len(out_found)`` may qualify; nothing is written behind it.
    """
    n, room = found.shape[0], out_found.shape[0]
    least, most, final = np.int32(low), np.int32(high), np.int32(last)
    at = 0
    i = 0
    if _COMPRESS:
        while i + 16 <= n and at + 16 <= room:
            at = vector.keep_between(found, where, i, least, most, final, out_found, out_where, at)
            i += 16
    for j in range(i, n):
        key = np.int32(found[j] & KEY_MASK)
        if (key > least and key <= most) or (key == least and where[j] <= final):
            out_found[at] = found[j]
            out_where[at] = where[j]
            at += 1
    return at


@_jit
def settle(
    flat: F32,
    add: bool,
    k: int,
    high: int,
    messy: bool,
    bases: I64,
    counts: I64,
    sure: I64,
    where: I32,
    found: I32,
    spare_where: I32,
    spare_found: I32,
    histogram: I32,
) -> tuple[int, int, bool]:
    """Decide which candidates of a segment are sent, and make exactly those 0 in ``flat`` (with ``add``).

    The candidates lie in one or several lists, one behind the other by position: list p starts at
    ``bases[p]`` of ``where`` and ``found``, has ``counts[p]`` entries, ``sure[p]`` of them at or above
    ``high``; ``counts`` becomes how many of each are sent.

    Returns:
        the k-th key, the position of the last tie that is sent (-1: none), and False where fewer than k
        candidates exist: then ``flat`` is restored and nothing is decided.
    """
    bits = flat.view(np.int32)
    lists = counts.shape[0]
    if counts.sum() < k:
        if add:
            for p in range(lists):
                for i in range(bases[p], bases[p] + counts[p]):
                    bits[np.uint64(where[i])] = found[i]
        return 0, -1, False
    if messy or sure.sum() > k:
        sure[:] = 0
        messy = True
    bound = int(LARGEST_KEY) if messy else high - 1
    open_ends = np.empty(lists + 1, np.int64)
    open_ends[0] = 0
    for p in range(lists):
        begin, end = bases[p], bases[p] + counts[p]
        used = open_ends[p]
        room = spare_found[used : used + counts[p]]
        used += _between(
            found[begin:end], where[begin:end], -1, bound, -1, room, spare_where[used : used + counts[p]]
        )
        open_ends[p + 1] = used
    undecided = open_ends[lists]
    need = k - sure.sum()
    kth, last, ties = bound, -1, 0
    if need > 0:
        if messy:
            kth, larger = _kth_of_ties(spare_found[:undecided], need, histogram)
        else:
            kth, larger = _kth_key(spare_found[:undecided], need, histogram, True)
        ties = need - larger
    for p in range(lists):
        sent = 0
        for i in range(open_ends[p], open_ends[p + 1]):
            key = np.int32(spare_found[i] & KEY_MASK)
            j = np.uint64(spare_where[i])
            if key > kth or (key == kth and ties > 0):
                if key == kth:
                    ties -= 1
                    last = spare_where[i]
                sent += 1
                if add:
                    bits[j] = 0
            elif add and messy:
                bits[j] = spare_found[i]
        counts[p] = sure[p] + sent
    return kth, last, True


@_jit
def emit(found: I32, where: I32, kth: int, last: int, values: F32, indices: AnyInt) -> None:
    """Write the entries that :func:`settle` chose from one list, in the order of positions."""
    _between(found, where, kth, int(LARGEST_KEY), last, values.view(np.int32), indices)


@_jit
def _direct(
    flat: F32, add: bool, start: int, stop: int, k: int, values: F32, indices: AnyInt, histogram: I32
) -> None:
    """Select from ``flat[start:stop]`` without candidates."""
    bits = flat.view(np.int32)[start:stop]
    out = values.view(np.int32)
    kth, ties = -1, 0
    if k < stop - start:
        kth, larger = _kth_key(bits, k, histogram, True)
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


@_jit
def is_direct(n: int, k: int) -> bool:
    """Whether a segment is selected without candidates."""
    return n <= _DIRECT or k * _DENSE >= n


@_jit
def list_limit(k: int) -> int:
    """Candidates to hold before the list is reduced to the k best; a list has ``SLACK`` more places."""
    return 2 * k + 4096


@_jit
def bracket(flat: F32, grad: F32, add: bool, start: int, stop: int, k: int) -> tuple[int, int, int]:
    """:func:`_bracket` of ``flat[start:stop]`` with memory of its own."""
    part_grad = grad[start:stop] if add else grad
    sample, histogram = np.empty(_SAMPLE, np.float32), np.empty(BUCKETS, np.int32)
    return _bracket(flat[start:stop], part_grad, add, k, sample, histogram)


@_jit
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
) -> tuple[int, int]:
    """Per segment: optionally ``flat += grad``, then move or copy the k largest to ``values`` and ``indices``.

    Args:
        flat: float32 [N]. With ``add`` it is the residual, and the selected positions become 0.
        grad: float32 [N], read only with ``add``.
        offsets: int64 [L + 1] bounds within ``flat``, not necessarily all of it. ks: int64 [L].
        values, indices: [sum(ks)].
        where, found, spare_where, spare_found: scratch, each as long as the largest ``list_limit(k)`` of a
            segment that is not direct, and ``SLACK``.

    Returns:
        the first segment where a selected value is not finite (-1: none), and how many segments fell
        back on the selection over all their entries.
    """
    sample = np.empty(_SAMPLE if where.shape[0] else 1, np.float32)
    histogram = np.empty(BUCKETS, np.int32)
    bases, counts, sure = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64)
    bad = -1
    fallbacks = 0
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
            part_grad = grad[start:stop] if add else grad
            low, high, _ = _bracket(flat[start:stop], part_grad, add, k, sample, histogram)
            counts[0], sure[0], messy = collect(
                flat, grad, add, start, stop, k, low, high, where, found, list_limit(k), histogram
            )
            count = counts[0]
            kth, last, done = settle(
                flat,
                add,
                k,
                high,
                messy,
                bases,
                counts,
                sure,
                where,
                found,
                spare_where,
                spare_found,
                histogram,
            )
            if done:
                emit(found[:count], where[:count], kth, last, out, positions)
            fallbacks += not done
        if not done:
            _direct(flat, add, start, stop, k, out, positions, histogram)
        if bad < 0 and max_key(out.view(np.int32)) >= INF_KEY:
            bad = s
    return bad, fallbacks


@_jit
def select_whole(flat: F32, add: bool, start: int, stop: int, k: int, values: F32, indices: AnyInt) -> None:
    """The selection over all of ``flat[start:stop]``, where candidates did not suffice."""
    _direct(flat, add, start, stop, k, values, indices, np.empty(BUCKETS, np.int32))


@_jit
def scratch_length(offsets: I64, ks: I64) -> int:
    """How long the scratch lists of :func:`select_segments` must be."""
    longest = 0
    for s in range(ks.shape[0]):
        if not is_direct(offsets[s + 1] - offsets[s], ks[s]):
            longest = max(longest, list_limit(ks[s]) + SLACK)
    return longest


@_jit
def is_harmless(grad: F32) -> bool:
    """Whether every entry is finite and too small to make a finite residual overflow."""
    bits = grad.view(np.int32)
    # From the end to the start: what was read last is still in the cache when the scan begins there.
    stop = bits.shape[0]
    while stop > 0:
        start = max(0, stop - _CHECK)
        if max_key(bits[start:stop]) >= CAN_OVERFLOW_KEY:
            return False
        stop = start
    return True


@_jit
def first_bad_segment(grad: F32, residual: F32, offsets: I64) -> int:
    """The first segment whose gradient, or whose sum with the residual, is not finite; -1 when all are."""
    if is_harmless(grad):
        return -1
    for s in range(offsets.shape[0] - 1):
        for i in range(offsets[s], offsets[s + 1]):
            if not (np.isfinite(grad[i]) and np.isfinite(grad[i] + residual[i])):
                return s
    return -1
