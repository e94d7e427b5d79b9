"""The candidates of a large segment: guess where its k-th magnitude is, collect what is near it, decide among that.

See :mod:`~netsim_ddp.compression.native.numba_kernels` for how the parts work together.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from netsim_ddp.compression.native import vector
from netsim_ddp.compression.native.jit import F32, I32, I64, AnyInt, jit
from netsim_ddp.compression.native.keys import KEY_MASK, LARGEST_KEY, kth_key, kth_of_ties

_BLOCK = 8192  # floats scanned between two looks at how full the list of candidates is
# A draw costs two cache misses, a candidate too many only a few ns: a larger sample would save less than it costs.
_SAMPLE = 16384
_LEAST_SAMPLE = 1024
_SPARSE = 256  # entries for each draw, where the sample is smaller
_STREAMED = 1 << 22  # floats: a larger sum leaves the caches before anybody reads it
SLACK = _BLOCK + vector.STRIDE  # room behind the last candidate
_COMPRESS = (
    vector.HAS_COMPRESS
)  # a name of this module, so that numba leaves out the branch that cannot be taken


@jit
def list_limit(k: int) -> int:
    """Candidates to hold before the list is reduced to the k best; a list has ``SLACK`` more places."""
    return 2 * k + 4096


@jit
def bracket(
    total: F32, residual: F32, gradient: int, add: bool, start: int, stop: int, k: int
) -> tuple[int, int, int]:
    """Two keys: k and a few more entries of ``total[start:stop]`` (with ``add``, of what :func:`collect` will write
    there) should reach the first, and a few less than k the second. The third number says how many may reach the first:
    with ties far more."""
    part = (residual if add else total)[start:stop]
    gradient += 4 * start
    n = part.shape[0]
    size = min(_SAMPLE, max(_LEAST_SAMPLE, n // _SPARSE))
    sample = np.empty(size, np.float32)
    stride = n // size
    state = np.uint32(2463534242)
    for j in range(size):
        # one draw per stratum: a fixed step would resonate with the rows of a weight matrix
        state = np.uint32(state ^ np.uint32(state << np.uint32(13)))
        state = np.uint32(state ^ np.uint32(state >> np.uint32(17)))
        state = np.uint32(state ^ np.uint32(state << np.uint32(5)))
        i = np.uint64(j * stride) + ((np.uint64(state) * np.uint64(stride)) >> np.uint64(32))
        sample[j] = part[i] + vector.float_at(gradient, i) if add else part[i]
    expected = size * k / n
    doubt = 3.0 * math.sqrt(expected) + 2.0
    bits = sample.view(np.int32)
    low = 0
    if expected + doubt < size:
        low, _ = kth_key(bits, int(expected + doubt), False)
    high = int(LARGEST_KEY)
    if expected - doubt >= 1.0:
        digits, _ = kth_key(bits, int(expected - doubt), False)
        high = digits + 1024
    reach = 0
    for j in range(size):
        reach += int(np.int32(bits[j] & KEY_MASK) >= low)
    return low, high, reach * n // size


@jit
def _scan(
    total: F32,
    residual: F32,
    gradient: int,
    add: bool,
    start: int,
    stop: int,
    low: int,
    high: int,
    where: I32,
    found: I32,
    both: int,
) -> int:
    """Write the sums (if ``add``) and append position and bits of every key >= ``low``.

    ``both`` counts the candidates in its low half and those >= ``high``, which become 0, in its high half.
    """
    least, sure = np.int32(low), np.int32(high)
    bits = total.view(np.int32)
    if _COMPRESS:
        whole = start + (stop - start) // vector.STRIDE * vector.STRIDE
        if add and total.shape[0] >= _STREAMED and total.ctypes.data != residual.ctypes.data:
            for i in range(start, whole, vector.STRIDE):
                both = vector.scan_stream(total, residual, gradient, i, least, sure, where, found, both)
        elif add:
            for i in range(start, whole, vector.STRIDE):
                both = vector.scan_add(total, residual, gradient, i, least, sure, where, found, both)
        else:
            for i in range(start, whole, vector.STRIDE):
                both = vector.scan_only(total, residual, gradient, i, least, sure, where, found, both)
    else:
        whole = start + (stop - start) // vector.MASK_STRIDE * vector.MASK_STRIDE
        for i in range(start, whole, vector.MASK_STRIDE):
            if add:
                hits = vector.mask_add(total, residual, gradient, i, least)
            else:
                hits = vector.mask_only(total, residual, gradient, i, least)
            while hits != np.uint32(0):
                j = np.uint64(i + vector.trailing_zeros(hits))
                hits = np.uint32(hits & np.uint32(hits - np.uint32(1)))
                both = _append(bits, add, j, sure, where, found, both)
    for i in range(whole, stop):
        j = np.uint64(i)
        if add:
            total[j] = residual[j] + vector.float_at(gradient, i)
        if np.int32(bits[j] & KEY_MASK) >= least:
            both = _append(bits, add, j, sure, where, found, both)
    return both


@jit
def _append(bits: I32, add: bool, j: Any, sure: Any, where: I32, found: I32, both: int) -> int:
    count = np.uint64(both & 0xFFFFFFFF)
    where[count] = j
    found[count] = bits[j]
    if np.int32(bits[j] & KEY_MASK) >= sure:
        if add:
            bits[j] = 0
        both += 1 << 32
    return both + 1


@jit
def collect(
    total: F32,
    residual: F32,
    gradient: int,
    add: bool,
    start: int,
    stop: int,
    k: int,
    low: int,
    high: int,
    where: I32,
    found: I32,
    limit: int,
) -> tuple[int, int, bool]:
    """The candidates of ``total[start:stop]``: at least its k largest, if as many reach ``low``. With ``add`` that is
    first written: ``residual`` + what lies at ``gradient``, the address of float 0.

    ``where`` and ``found`` have room for ``limit + SLACK``, and k < limit.

    Returns:
        their number, how many of them reach ``high`` (and are 0 in ``total`` already, with ``add``), and
        whether the list was full once: then any of them may be 0 in ``total`` and none is counted so.
    """
    bits = total.view(np.int32)
    both = 0
    overflowed = zeroed = False
    # The first block ends where a line of the cache begins.
    block = min(stop, start + (-(total.ctypes.data // 4 + start)) % vector.LINE)
    both = _scan(total, residual, gradient, add, start, block, low, high, where, found, both)
    while block < stop:
        end = min(block + _BLOCK, stop)
        both = _scan(total, residual, gradient, add, block, end, low, high, where, found, both)
        if both & 0xFFFFFFFF > limit:
            zeroed = zeroed or (add and both >> 32 > 0)
            kth = _keep_best(bits, zeroed, where, found, both & 0xFFFFFFFF, k)
            low = min(kth + 1, int(LARGEST_KEY))
            high = int(LARGEST_KEY)
            overflowed = True
            both = k
        block = end
    vector.drain()
    return both & 0xFFFFFFFF, both >> 32, overflowed


@jit
def _position_of_tie(found: I32, where: I32, kth: int, number: int) -> int:
    """Where the ``number``-th candidate with the key ``kth`` is; -1 for number 0."""
    i = -1
    while number > 0:
        i += 1
        number -= np.int32(found[np.uint64(i)] & KEY_MASK) == kth
    return int(where[np.uint64(i)]) if i >= 0 else -1


@jit
def _keep_best(bits: I32, zeroed: bool, where: I32, found: I32, count: int, k: int) -> int:
    """Reduce ``count`` candidates to the k best and return the k-th key.

    With ``zeroed`` some are 0 in ``bits`` already: those dropped are put back there.
    """
    kth, larger = kth_of_ties(found[:count], k)
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


@jit
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


@jit
def decide(
    total: F32,
    add: bool,
    k: int,
    high: int,
    overflowed: bool,
    bases: I64,
    counts: I64,
    sure: I64,
    where: I32,
    found: I32,
    spare_where: I32,
    spare_found: I32,
) -> tuple[int, int, bool]:
    """Decide which candidates of a segment are sent, and make exactly those 0 in ``total`` (with ``add``).

    The candidates lie in one or several lists, one behind the other by position: list p starts at
    ``bases[p]`` of ``where`` and ``found``, has ``counts[p]`` entries, ``sure[p]`` of them at or above
    ``high``; ``counts`` becomes how many of each are sent.

    Returns:
        the k-th key, the position of the last tie that is sent (-1: none), and False where fewer than k
        candidates exist: then ``total`` is restored and nothing is decided.
    """
    bits = total.view(np.int32)
    lists = counts.shape[0]
    if counts.sum() < k:
        if add:
            for p in range(lists):
                for i in range(bases[p], bases[p] + counts[p]):
                    bits[np.uint64(where[i])] = found[i]
        return 0, -1, False
    if overflowed or sure.sum() > k:
        sure[:] = 0
        overflowed = True
    bound = int(LARGEST_KEY) if overflowed else high - 1
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
        if overflowed:
            kth, larger = kth_of_ties(spare_found[:undecided], need)
        else:
            kth, larger = kth_key(spare_found[:undecided], need, True)
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
            elif add and overflowed:
                bits[j] = spare_found[i]
        counts[p] = sure[p] + sent
    return kth, last, True


@jit
def emit(found: I32, where: I32, kth: int, last: int, values: F32, indices: AnyInt) -> None:
    """Write the entries that :func:`decide` chose from one list, in the order of positions."""
    _between(found, where, kth, int(LARGEST_KEY), last, values.view(np.int32), indices)
