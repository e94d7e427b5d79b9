"""Scattered reads and writes of entries, one pass each; import only through :mod:`netsim_ddp.compression.shards`."""

from __future__ import annotations

import numpy as np

from netsim_ddp.compression.native.jit import F32, I32, I64, jit


@jit
def partition(
    values: F32,
    indices: I32,
    offsets: I64,
    bits: I64,
    parts: I64,
    first: I64,
    starts: I64,
    out_values: F32,
    out_local: I32,
    bounds: I64,
) -> None:
    """Two passes over the entries: which owner gets each and by which local number, and where they go."""
    owners, k = bounds.size - 1, indices.size
    turn_owner = np.zeros(owners, np.int64)
    owner, local = np.empty(k, np.int32), np.empty(k, np.int32)
    i = 0
    for s in range(bits.size):
        end = offsets[s + 1]
        if i == k or indices[i] >= end:
            continue
        begin, shift, count = np.int32(offsets[s]), np.int32(bits[s]), np.uint32(parts[s])
        mask = np.int32((1 << bits[s]) - 1)
        for turn in range(parts[s]):
            turn_owner[turn] = (first[s] + turn) % owners
        while i < k and indices[i] < end:
            inside = np.int32(indices[i] - begin)
            block = np.uint32(inside >> shift)
            row = block // count
            r = turn_owner[block - row * count]
            owner[i] = r
            local[i] = starts[r, s] + (np.int64(row) << bits[s]) + (inside & mask)
            bounds[r + 1] += 1
            i += 1
    for r in range(owners):
        bounds[r + 1] += bounds[r]
    next_slot = bounds[:owners].copy()
    for i in range(k):
        slot = next_slot[owner[i]]
        next_slot[owner[i]] = slot + 1
        out_values[slot] = values[i]
        out_local[slot] = local[i]


@jit
def write(
    values: F32,
    local: I32,
    offsets: I64,
    bits: I64,
    parts: I64,
    turns: I64,
    starts: I64,
    divisor: float,
    out: F32,
    written: I32,
) -> None:
    """``turns``, ``starts``: the owner's."""
    # A product with the inverse is not the quotient's bits where the divisor is no power of two.
    by = np.float32(divisor)
    k = local.size
    i = 0
    for s in range(bits.size):
        end = starts[s + 1]
        start, shift, count, turn, begin = starts[s], bits[s], parts[s], turns[s], offsets[s]
        mask = (1 << shift) - 1
        while i < k and local[i] < end:
            inside = local[i] - start
            position = begin + (((inside >> shift) * count + turn) << shift) + (inside & mask)
            out[position] = values[i] / by
            written[i] = position
            i += 1


@jit
def add_at(total: F32, local: I32, values: F32) -> None:
    for i in range(local.size):
        total[local[i]] += values[i]


@jit
def add_noting(total: F32, local: I32, values: F32, before: F32) -> None:
    for i in range(local.size):
        old = total[local[i]]
        before[i] = old
        total[local[i]] = old + values[i]


@jit
def put_at(total: F32, local: I32, values: F32) -> None:
    for i in range(local.size):
        total[local[i]] = values[i]


@jit
def clear_at(total: F32, positions: I32) -> None:
    for i in range(positions.size):
        total[positions[i]] = 0.0
