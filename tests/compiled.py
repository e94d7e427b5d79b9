"""For tests of the compiled kernels themselves, which have nothing to try where those are switched off."""

from __future__ import annotations

import pytest

from netsim_ddp.compression import kernels
from netsim_ddp.switches import KERNELS, compiled_kernels

REASON = (
    "numba is not installed" if compiled_kernels() else f"{KERNELS}=torch switches the compiled kernels off"
)
needs_compiled = pytest.mark.skipif(kernels.fused is None, reason=REASON)
