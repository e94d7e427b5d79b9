"""The kernels that are called from Python, with the types of the arguments they are called with."""

from __future__ import annotations

from typing import Any

from numba import boolean, float32, float64, int8, int32, int64, uint8, uint32

from netsim_ddp.compression.native import (
    candidates,
    keys,
    numba_codec,
    numba_kernels,
    numba_shards,
    numba_thresholds,
)

_ATTEMPTS = 50  # more than a kernel calls others
_F32, _I8, _I32, _I64, _U8, _U32 = (kind[::1] for kind in (float32, int8, int32, int64, uint8, uint32))
_TABLE = int64[:, ::1]

SIGNATURES: list[tuple[Any, tuple[Any, ...]]] = [
    (keys.max_key, (_I32,)),
    (keys.is_harmless, (_F32,)),
    (keys.first_bad_segment, (_F32, _F32, _I64)),
    (candidates.bracket, (_F32, _F32, int64, boolean, int64, int64, int64)),
    (
        candidates.collect,
        (_F32, _F32, int64, boolean, int64, int64, int64, int64, int64, _I32, _I32, int64),
    ),
    (
        candidates.decide,
        (_F32, boolean, int64, int64, boolean, _I64, _I64, _I64, _I32, _I32, _I32, _I32),
    ),
    (numba_kernels.scratch_length, (_I64, _I64)),
    *(
        (kernel, types)
        for indices in (_I32, _I64)
        for kernel, types in (
            (candidates.emit, (_I32, _I32, int64, int64, _F32, indices)),
            (numba_kernels.select_directly, (_F32, boolean, int64, int64, int64, _F32, indices)),
            (
                numba_kernels.select_segments,
                (_F32, _F32, _I64, boolean, _I64, _I64, _F32, indices, _I32, _I32, _I32, _I32),
            ),
        )
    ),
    (numba_codec.plan, (_I32, _U32, int64, int64)),
    (numba_codec.check, (_U32, int64, int64, _I64)),
    (numba_codec.pack, (_I32, _U32, _I64, _U32, int64, int64)),
    (numba_codec.pack_whole, (_I32, _U32)),
    (numba_codec.unpack, (_U32, _U32, int64, int64, _I64, _I32, int64, int64)),
    (
        numba_codec.decode,
        (_U8, _TABLE, int64, int64, int64, int64, int64, float64, _F32, _I32, _F32),
    ),
    (
        numba_codec.encode,
        (_F32, _I32, _I64, _U8, _TABLE, int64, int64, int64, int64, int64, int64, _F32, _I64),
    ),
    (numba_codec.quantize, (_F32, _F32, _I8, _F32, int64, int64)),
    (numba_codec.dequantize, (_F32, _I8, int64, _F32)),
    (numba_shards.partition, (_F32, _I32, _I64, _I64, _I64, _I64, _TABLE, _F32, _I32, _I32, _I64)),
    (numba_shards.add_at, (_F32, _I32, _F32)),
    (numba_shards.add_runs, (_F32, _I32, _F32, _I64, _F32, int64, int64)),
    (numba_shards.put_back, (_F32, _I32, _F32)),
    (numba_shards.to_positions, (_I32, _I64, _I64, _I64, _I64, _TABLE, _TABLE)),
    (numba_shards.lay, (_I64, _I64, _I32, _F32, _I64, boolean, boolean, int64, int64)),
    (numba_shards.put_at, (_F32, _I32, _F32)),
    (numba_shards.clear_at, (_F32, _I32)),
    (numba_thresholds.above, (_F32, float32, _F32, _I32)),
    (numba_thresholds.excess, (_F32, float32)),
]


def compile_kernels() -> OSError | None:
    """Compile every kernel, or load it from numba's cache, without starting a thread.

    Returns:
        what kept numba from storing what it compiled, None where nothing did.
    """
    problem = None
    for kernel, types in SIGNATURES:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                kernel.compile(types)
                break
            except OSError as error:
                # numba keeps what it compiled and then fails to store it (disk full), one function at a time:
                # calling again goes one function further.
                problem = error
                if attempt == _ATTEMPTS:
                    raise
    return problem
