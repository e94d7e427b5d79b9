"""Scattered reads and writes of entries, one pass each; import only through :mod:`netsim_ddp.compression.shares`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from netsim_ddp.compression._numba_kernels import F32, I32, I64, _jit


@_jit
def partition(values: F32, indices: I32, bits: int, out_values: F32, out_local: I32, bounds: I64) -> None:
    owners = bounds.size - 1
    for i in range(indices.size):
        bounds[(indices[i] >> bits) % owners + 1] += 1
    for r in range(owners):
        bounds[r + 1] += bounds[r]
    next_slot = bounds[:owners].copy()
    mask = (1 << bits) - 1
    for i in range(indices.size):
        block = indices[i] >> bits
        slot = next_slot[block % owners]
        next_slot[block % owners] = slot + 1
        out_values[slot] = values[i]
        out_local[slot] = ((block // owners) << bits) + (indices[i] & mask)


@_jit
def write(
    values: F32, local: I32, bits: int, owners: int, owner: int, divisor: float, out: F32, written: I32
) -> None:
    mask = (1 << bits) - 1
    # A product with the inverse is not the quotient's bits where the divisor is no power of two.
    by = np.float32(divisor)
    for i in range(local.size):
        position = (((local[i] >> bits) * owners + owner) << bits) + (local[i] & mask)
        out[position] = values[i] / by
        written[i] = position


@_jit
def add_at(total: F32, local: I32, values: F32) -> None:
    for i in range(local.size):
        total[local[i]] += values[i]


@_jit
def clear_at(total: F32, positions: I32) -> None:
    for i in range(positions.size):
        total[positions[i]] = 0.0


def warm() -> None:
    """Compile every signature in use."""
    values: NDArray[np.float32] = np.zeros(1, np.float32)
    places: NDArray[np.int32] = np.zeros(1, np.int32)
    partition(values, places, 10, values.copy(), places.copy(), np.zeros(3, np.int64))
    write(values, places, 10, 2, 0, 2.0, values.copy(), places.copy())
    add_at(values, places, values)
    clear_at(values, places)
