"""Magnitudes as integers, and the k-th largest of them.

A *key* is the bits of a float32 with the sign cleared, as int32. Keys order exactly as the magnitudes do (denormals
and both zeros included), and a NaN or inf is a key of at least ``INF_KEY``, so no comparison of keys can be confused
by a NaN.

Two habits here and in :mod:`~netsim_ddp.compression.native.candidates` are worth a factor of eight: loops run from 0
over a slice, because an index that might be negative keeps LLVM from using vectors, and a key is cast back to int32,
because numba widens it to int64.
"""

from __future__ import annotations

import numpy as np

from netsim_ddp.compression.native.jit import F32, I32, I64, jit

KEY_MASK = np.int32(0x7FFFFFFF)
LARGEST_KEY = np.int32(0x7FFFFFFF)
INF_KEY = np.int32(0x7F800000)
# 2**103. The largest float32 is 2**128 - 2**104, and a sum rounds to inf from 2**128 - 2**103 on: adding
# anything smaller than 2**103 to a finite residual cannot overflow: only larger gradients need a second look.
CAN_OVERFLOW_KEY = np.int32((103 + 127) << 23)

_CHECK = 1 << 18  # floats checked between two looks at the result
_BUCKETS = 2048  # of a histogram over 11 bits


@jit
def max_key(bits: I32) -> int:
    """Largest key of ``bits``; 0 when empty."""
    largest = np.int32(0)
    for i in range(bits.shape[0]):
        largest = max(largest, np.int32(bits[i] & KEY_MASK))
    return int(largest)


@jit
def _find_bucket(histogram: I32, buckets: int, k: int) -> tuple[int, int]:
    """The bucket that holds the k-th largest, and how many lie in the buckets above it."""
    above = 0
    bucket = buckets - 1
    while above + histogram[bucket] < k:
        above += histogram[bucket]
        bucket -= 1
    return bucket, above


@jit
def kth_key(bits: I32, k: int, exact: bool) -> tuple[int, int]:
    """The k-th largest key of ``bits`` and how many keys are larger; 1 <= k <= len(bits).

    Radix selection over 11 + 10 + 10 bits. With ``exact`` false the last digit is left out and the key
    is a lower bound that is at most 2**-13 too small, relatively.
    """
    n = bits.shape[0]
    histogram = np.zeros(_BUCKETS, np.int32)
    for i in range(n):
        histogram[np.int32(bits[i] & KEY_MASK) >> 20] += 1
    top, larger = _find_bucket(histogram, _BUCKETS, k)
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


@jit
def kth_of_ties(bits: I32, k: int) -> tuple[int, int]:
    """:func:`kth_key`, in two fast passes where the smallest key of all is so frequent that it is the k-th."""
    smallest = LARGEST_KEY
    for i in range(bits.shape[0]):
        smallest = min(smallest, np.int32(bits[i] & KEY_MASK))
    larger = 0
    for i in range(bits.shape[0]):
        larger += int(np.int32(bits[i] & KEY_MASK) > smallest)
    if larger < k:
        return int(smallest), larger
    return kth_key(bits, k, True)


@jit
def is_harmless(grad: F32) -> bool:
    """Whether every entry is finite and too small to make a finite residual overflow."""
    bits = grad.view(np.int32)
    # From the end to the start: what was read last is still in the cache when the scan begins there.
    for stop in range(bits.shape[0], 0, -_CHECK):
        if max_key(bits[max(0, stop - _CHECK) : stop]) >= CAN_OVERFLOW_KEY:
            return False
    return True


@jit
def first_bad_segment(grad: F32, residual: F32, offsets: I64) -> int:
    """The first segment whose gradient, or whose sum with the residual, is not finite; -1 when all are."""
    if is_harmless(grad):
        return -1
    for s in range(offsets.shape[0] - 1):
        for i in range(offsets[s], offsets[s + 1]):
            if not (np.isfinite(grad[i]) and np.isfinite(grad[i] + residual[i])):
                return s
    return -1
