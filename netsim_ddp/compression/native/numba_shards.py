"""Scattered reads and writes of entries, one pass each; import only through :mod:`netsim_ddp.compression.shards`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from netsim_ddp.compression.native import vector
from netsim_ddp.compression.native.jit import F32, I32, I64, jit

Table = NDArray[np.int64]
STRETCH = 1 << 15  # floats that stay in the second cache while the ranks' entries are added to them in turn
LAID_AT_ONCE = 1 << 12


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
    slots: I32,
    bounds: I64,
) -> None:
    """Entries of the same block go to the same owner, one behind the other: first the blocks, then their entries."""
    owners, k = bounds.size - 1, indices.size
    turn_owner = np.zeros(owners, np.int64)
    ends, owner, steps = np.empty(k, np.int32), np.empty(k, np.int32), np.empty(k, np.int32)
    blocks = i = 0
    for s in range(bits.size):
        end = offsets[s + 1]
        if i == k or indices[i] >= end:
            continue
        begin, shift, count = offsets[s], bits[s], np.uint32(parts[s])
        for turn in range(parts[s]):
            turn_owner[turn] = (first[s] + turn) % owners
        while i < k and indices[i] < end:
            block = np.uint32((indices[i] - begin) >> shift)
            row = block // count
            r = turn_owner[block - row * count]
            stop = np.int32(min(begin + ((np.int64(block) + 1) << shift), end))
            bounds[r + 1] -= i
            while i < k and indices[i] < stop:
                i += 1
            bounds[r + 1] += i
            ends[blocks], owner[blocks] = i, r
            steps[blocks] = starts[r, s] - begin - ((np.int64(block) - np.int64(row)) << shift)
            blocks += 1
    for r in range(owners):
        bounds[r + 1] += bounds[r]
    next_slot = bounds[:owners].copy()
    i = 0
    for b in range(blocks):
        slot = next_slot[owner[b]]
        while i < ends[b]:
            out_values[slot] = values[i]
            out_local[slot] = indices[i] + steps[b]
            slots[i] = slot
            slot += 1
            i += 1
        next_slot[owner[b]] = slot


@jit
def to_positions(
    local: I32, runs: I64, offsets: I64, bits: I64, parts: I64, turns: Table, starts: Table
) -> None:
    """Owner r's local numbers, ``local[runs[r] : runs[r + 1]]``, become positions. ``turns``, ``starts``: of all."""
    for r in range(runs.size - 1):
        i, k = runs[r], runs[r + 1]
        for s in range(bits.size):
            start, end = starts[r, s], starts[r, s + 1]
            stop = i
            while stop < k and local[stop] < end:
                stop += 1
            part = local[i:stop]
            i = stop
            # An owner's place in a row of blocks and the rest are added to what its rows before took.
            shift, count = np.int32(bits[s]), np.int32(parts[s])
            mask, start = np.int32((1 << bits[s]) - 1), np.int32(start)
            begin = np.int32(offsets[s] + (turns[r, s] << bits[s]))
            for j in range(part.size):
                inside = np.int32(part[j] - start)
                row = np.int32(np.int32(inside >> shift) * count)
                part[j] = np.int32(begin + np.int32(row << shift) + np.int32(inside & mask))


@jit
def _first_at(positions: I32, begin: int, end: int, position: int) -> int:
    """The first of ``positions[begin:end]``, which ascend, that is ``position`` or more."""
    while begin < end:
        middle = (begin + end) >> 1
        if positions[middle] < position:
            begin = middle + 1
        else:
            end = middle
    return begin


@jit
def _cursors(positions: I32, runs: I64, begin: int) -> I64:
    found = np.empty(runs.size - 1, np.int64)
    for r in range(found.size):
        found[r] = _first_at(positions, runs[r], runs[r + 1], begin)
    return found


@jit
def add_runs(
    total: F32, positions: I32, values: F32, runs: I64, before: F32, begin: int, end: int
) -> np.float32:
    """``total[positions] += values`` from position ``begin`` to ``end``, run after run; what stood there goes to
    ``before``.

    Returns:
        nothing of use: what has been read ahead.
    """
    cursors, ahead = _cursors(positions, runs, begin), np.float32(0)
    for start in range(begin, end, STRETCH):
        stop = min(start + STRETCH, end)
        stretch = total[start:stop]
        for i in range(0, stretch.size, vector.LINE):  # one of each cache line: in order, they come early
            ahead += stretch[i]
        for r in range(cursors.size):
            first = last = cursors[r]
            while last < runs[r + 1] and positions[last] < stop:
                last += 1
            cursors[r] = last
            for i in range(first, last):
                old = total[positions[i]]
                before[i] = old
                total[positions[i]] = old + values[i]
    return ahead


@jit
def put_back(total: F32, positions: I32, before: F32) -> None:
    """``total[positions] = before``, the last first."""
    for i in range(positions.size - 1, -1, -1):
        total[positions[i]] = before[i]


@jit
def lay(
    addresses: I64,
    offsets: I64,
    positions: I32,
    values: F32,
    runs: I64,
    add: bool,
    stream: bool,
    begin: int,
    end: int,
) -> None:
    """From position ``begin`` to ``end`` become 0 but for the entries: of the same position the last one counts, or,
    with ``add``, their sum.

    ``addresses``, ``offsets`` [L], [L + 1]: of the stretches of float32 that the positions are in.
    """
    cursors = _cursors(positions, runs, begin)
    block = np.zeros(LAID_AT_ONCE, np.float32)
    s, at = 0, begin
    while at < end:
        while offsets[s + 1] <= at:
            s += 1
        start = offsets[s]
        unaligned = -((addresses[s] >> 2) + at - start) & (vector.LINE - 1)
        size = min(unaligned if unaligned > 0 else block.size, offsets[s + 1] - at, end - at)
        for r in range(cursors.size):
            i = cursors[r]
            while i < runs[r + 1] and positions[i] < at + size:
                place = np.uint64(positions[i] - at)
                block[place] = block[place] + values[i] if add else values[i]
                i += 1
            cursors[r] = i
        whole = 0 if unaligned > 0 else size & ~(vector.LINE - 1)
        if stream:
            for j in range(0, whole, vector.LINE):
                vector.stream_line(addresses[s], at - start + j, block, j)
        else:
            for j in range(0, whole, vector.LINE):
                vector.put_line(addresses[s], at - start + j, block, j)
        for j in range(whole, size):
            vector.put_at(addresses[s], at - start + j, block[j])
        block[:size] = 0
        at += size
    vector.drain()


@jit
def add_at(total: F32, local: I32, values: F32) -> None:
    for i in range(local.size):
        total[local[i]] += values[i]


@jit
def put_at(total: F32, local: I32, values: F32) -> None:
    for i in range(local.size):
        total[local[i]] = values[i]


@jit
def clear_at(total: F32, positions: I32) -> None:
    for i in range(positions.size):
        total[positions[i]] = 0.0
