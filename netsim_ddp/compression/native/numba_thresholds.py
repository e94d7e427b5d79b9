"""One pass each over a segment, for :mod:`~netsim_ddp.compression.thresholds`; import only through it."""

from __future__ import annotations

import numpy as np

from netsim_ddp.compression.native.jit import F32, I32, jit

_BLOCK = 4096  # floats between two looks at how full the output is
_LANES = 64  # sums side by side: one alone would have to be added in order, and no vector can do that


@jit
def above(part: F32, threshold: np.float32, values: F32, indices: I32) -> int:
    room = int(values.shape[0])
    count = 0
    for start in range(0, part.shape[0], _BLOCK):
        block = part[start : start + _BLOCK]
        hits = np.int32(0)  # counted first: that loop is all vectors, and many blocks need no other
        for i in range(block.shape[0]):
            hits = np.int32(hits + np.int32(abs(block[i]) >= threshold))
        if count + hits > room:
            return room + 1
        if hits:
            for i in range(block.shape[0]):
                if abs(block[i]) >= threshold:
                    values[count] = block[i]
                    indices[count] = start + i
                    count += 1
    return count


@jit
def excess(part: F32, threshold: np.float32) -> tuple[float, int]:
    sums, hits = np.zeros(_LANES, np.float32), np.zeros(_LANES, np.int32)
    total = 0.0
    for start in range(0, part.shape[0], _BLOCK):
        block = part[start : start + _BLOCK]
        whole = block.shape[0] // _LANES * _LANES
        for row in range(0, whole, _LANES):
            lanes = block[row : row + _LANES]
            for j in range(_LANES):
                over = abs(lanes[j]) - threshold
                sums[j] += max(over, np.float32(0.0))
                hits[j] += np.int32(over >= np.float32(0.0))
        for i in range(whole, block.shape[0]):
            over = abs(block[i]) - threshold
            sums[0] += max(over, np.float32(0.0))
            hits[0] += np.int32(over >= np.float32(0.0))
        for j in range(_LANES):
            total += sums[j]
            sums[j] = np.float32(0.0)
    return total, hits.sum()
