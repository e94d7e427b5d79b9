"""The compiled kernels and their twins in torch; the one place that looks for numba."""

from __future__ import annotations

import importlib
from types import ModuleType

from netsim_ddp.switches import compiled_kernels


def compiled_module(name: str) -> ModuleType | None:
    """``netsim_ddp.compression.native.NAME``; None where numba is missing or ``NETSIM_KERNELS=torch``, and a twin in
    torch does the same work with the same result.

    Raises:
        UsageError: ``NETSIM_KERNELS`` holds an unknown word.
    """
    if not compiled_kernels():
        return None
    try:
        return importlib.import_module(f"netsim_ddp.compression.native.{name}")
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("numba", "llvmlite"):
            raise
        return None  # netsim_ddp.compression.kernels.warm says so
