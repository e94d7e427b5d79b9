"""How a kernel is compiled, and the arrays that kernels work on."""

from __future__ import annotations

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


def jit(function: _F) -> _F:
    """``njit``, cached on disk where that is possible.

    Numba looks for a writable cache beside the source, then below the home directory, and raises when it
    finds neither (installed by root, used by an account without a home): then each process compiles. It compiles anew
    what stands in a file that has changed, but not what calls it from another file: whoever changes a kernel deletes
    ``netsim_ddp/compression/native/__pycache__``.
    """
    options: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
    try:
        compiled: _F = njit(cache=True, **options)(function)
    except RuntimeError:
        compiled = njit(**options)(function)
    return compiled
