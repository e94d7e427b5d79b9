"""The fused CPU kernel: accumulate into the residual and pick the exact top k of every segment in one pass.

Everything compares *keys*: the bits of a float32 with the sign cleared, as int32. They order exactly as the
magnitudes do (denormals and both zeros included), and a NaN or inf is a key of at least ``INF_KEY``, so no
comparison here can be confused by a NaN.

How a large segment is done:

1. a stratified sample of ``residual + grad`` gives a threshold that should let a few more than k through;
2. one pass adds block by block and, while the block is in the first-level cache, collects the candidates
   at or above the threshold;
3. a radix selection among the candidates finds the k-th key, and a last pass over them writes the
   entries in ascending index order, so that of equal magnitudes the lower index wins.

Where the threshold let through too few or too many (ties, mostly zeros, an unlucky sample) the radix
selection runs over the whole segment instead: three passes at most whatever the data, never quadratic.

Imports numba, so import it only through :mod:`netsim_ddp.compression.kernels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
AnyInt = NDArray[np.int32] | NDArray[np.int64]
_F = TypeVar("_F", bound=Callable[..., Any])

KEY_MASK = np.int32(0x7FFFFFFF)
INF_KEY = np.int32(0x7F800000)
# 2**103. The largest float32 is 2**128 - 2**104, and a sum rounds to inf from 2**128 - 2**103 on: adding
# anything smaller than 2**103 to a finite residual cannot overflow: only larger gradients need a second look.
CAN_OVERFLOW_KEY = np.int32((103 + 127) << 23)

_BLOCK = 2048  # floats added before they are scanned: 8 KiB of residual and 8 of gradient stay in L1
_LANE = (
    32  # floats whose largest key is taken at once, and the bits of a hit mask; most lanes hold no candidate
)
_DIRECT = 4096  # smaller segments are selected directly: a sample would cost as much
_DENSE = 4  # so are segments that keep at least one entry in this many
_HITS = 256  # entries above the threshold that the sample should contain: about 6% standard error
_SAMPLE = 65536
_BUCKETS = 2048

# The position of the only set bit of x is _BIT_NUMBER[(x * _DE_BRUIJN mod 2**32) >> 27]: numba has no public
# count of trailing zeros.
_DE_BRUIJN = np.uint32(0x077CB531)
_BIT_NUMBER = np.zeros(32, np.int64)
for _bit in range(32):
    _BIT_NUMBER[((0x077CB531 << _bit) & 0xFFFFFFFF) >> 27] = _bit


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
def _threshold(flat: F32, grad: F32, add: bool, k: int, sample: F32, histogram: I32) -> tuple[int, int]:
    """A key that k and a few more entries of ``flat`` (``flat + grad`` with ``add``) should reach.

    Returns it and the most candidates to accept, which is 0 when there is no useful threshold.
    """
    n = flat.shape[0]
    size = min(_SAMPLE, max(1024, n // 64), max(1024, (_HITS * n) // k))
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
    rank = int(expected + 3.0 * math.sqrt(expected)) + 2
    if rank >= size:
        return 0, 0
    key, _ = _kth_key(sample[:size].view(np.int32), rank, histogram, False)
    return key, int((rank + 6.0 * math.sqrt(rank)) * n / size) + 64


@_jit
def _collect(
    flat: F32, bits: I32, grad: F32, add: bool, threshold: int, limit: int, where: I32, found: I32
) -> int:
    """Add the gradient (if ``add``) and collect position and bits of every key >= threshold.

    ``where`` and ``found`` have room for ``limit + _BLOCK`` entries. Returns their number, or -1 when
    there are more than ``limit``; the addition is complete in either case.
    """
    n = flat.shape[0]
    count = 0
    least = np.int32(threshold)
    for block in range(0, n, _BLOCK):
        end = min(block + _BLOCK, n)
        if add:
            _add(flat[block:end], grad[block:end])
        if count > limit:
            continue
        here = bits[block:end]
        length = end - block
        for lane in range(0, length, _LANE):
            part = here[lane : lane + _LANE]
            if max_key(part) >= least:
                hits = np.uint32(0)
                for i in range(part.shape[0]):
                    hits |= np.uint32(np.uint32(np.int32(part[i] & KEY_MASK) >= least) << np.uint32(i))
                while hits != np.uint32(0):
                    lowest = np.uint32(hits & np.uint32(np.uint32(0) - hits))
                    i = _BIT_NUMBER[np.uint32(lowest * _DE_BRUIJN) >> np.uint32(27)]
                    where[count] = block + lane + i
                    found[count] = part[i]
                    count += 1
                    hits = np.uint32(hits ^ lowest)
    return count if count <= limit else -1


@_jit
def _emit(bits: I32, kth: int, ties: int, out_bits: I32, indices: AnyInt, where: I32, base: int) -> None:
    """Write every entry above ``kth`` and the first ``ties`` equal to it, in the order of ``bits``.

    The position of entry i is ``base + where[i]``, or ``base + i`` where ``where`` is empty.
    """
    written = 0
    direct = where.shape[0] == 0
    for i in range(bits.shape[0]):
        key = np.int32(bits[i] & KEY_MASK)
        if key > kth or (key == kth and ties > 0):
            ties -= key == kth
            out_bits[written] = bits[i]
            indices[written] = base + (i if direct else where[i])
            written += 1


@_jit
def select_segments(
    flat: F32, grad: F32, add: bool, offsets: I64, ks: I64, values: F32, indices: AnyInt
) -> tuple[int, int]:
    """Per segment: optionally ``flat += grad``, then copy the k largest to ``values`` and ``indices``.

    Args:
        flat: float32 [N]. With ``add`` it is the residual, and the selected positions become 0.
        grad: float32 [N], read only with ``add``.
        offsets: int64 [L + 1] bounds. ks: int64 [L].
        values, indices: [sum(ks)].

    Returns:
        the first segment where a selected value is not finite (-1: none), and how many segments fell
        back on the selection over all their entries.
    """
    bits = flat.view(np.int32)
    out_bits = values.view(np.int32)
    segments = ks.shape[0]
    limit = 0
    for s in range(segments):
        n = offsets[s + 1] - offsets[s]
        if n > _DIRECT and ks[s] * _DENSE < n:
            limit = max(limit, 3 * ks[s] + 4096)
    where = np.empty(limit + _BLOCK, np.int32)
    found = np.empty(limit + _BLOCK, np.int32)
    sample = np.empty(_SAMPLE if limit else 1, np.float32)
    histogram = np.empty(_BUCKETS, np.int32)
    bad = -1
    fallbacks = 0
    first = 0
    for s in range(segments):
        start, stop, k = offsets[s], offsets[s + 1], ks[s]
        n = stop - start
        if k == 0:
            continue
        part = flat[start:stop]
        part_bits = bits[start:stop]
        part_grad = grad[start:stop] if add else grad
        out = out_bits[first : first + k]
        positions = indices[first : first + k]
        first += k
        count = -1
        added = not add
        if n > _DIRECT and k * _DENSE < n:
            threshold, most = _threshold(part, part_grad, add, k, sample, histogram)
            if threshold > 0 and most > 0:
                most = min(most, limit)
                count = _collect(part, part_bits, part_grad, add, threshold, most, where, found)
                added = True
            fallbacks += count < k
        if not added:
            _add(part, part_grad)
        if count >= k:
            kth, larger = _kth_key(found[:count], k, histogram, True)
            _emit(found[:count], kth, k - larger, out, positions, where[:count], start)
        elif k < n:
            kth, larger = _kth_key(part_bits, k, histogram, True)
            _emit(part_bits, kth, k - larger, out, positions, where[:0], start)
        else:
            _emit(part_bits, -1, 0, out, positions, where[:0], start)
        if bad < 0 and max_key(out) >= INF_KEY:
            bad = s
        if add:
            for j in range(k):
                flat[np.uint64(positions[j])] = np.float32(0.0)
    return bad, fallbacks


@_jit
def first_bad_segment(grad: F32, residual: F32, offsets: I64) -> int:
    """The first segment whose gradient, or whose sum with the residual, is not finite; -1 when all are."""
    bits = grad.view(np.int32)
    for s in range(offsets.shape[0] - 1):
        largest = max_key(bits[offsets[s] : offsets[s + 1]])
        if largest >= INF_KEY:
            return s
        if largest >= CAN_OVERFLOW_KEY:
            for i in range(offsets[s], offsets[s + 1]):
                if not np.isfinite(grad[i] + residual[i]):
                    return s
    return -1
