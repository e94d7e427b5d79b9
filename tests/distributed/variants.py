"""What the tests of methods run with: so many workers, with the compiled kernels and without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from netsim_ddp.switches import KERNELS, compiled_kernels


def workers_and_kernels(usual: Sequence[int], *, torch: int = 3) -> list[Any]:
    """Returns parameters ``(workers, kernels)`` of a fixture, the second for ``on_ranks``: ``usual`` with the kernels
    that this process would use, and ``torch`` workers with the compiled ones switched off. ``NETSIM_KERNELS=torch``
    runs ``usual`` without them."""
    off = pytest.mark.skipif(not compiled_kernels(), reason=f"{KERNELS}=torch: all tests run without them")
    return [
        *(pytest.param((workers, None), id=str(workers)) for workers in usual),
        pytest.param((torch, "torch"), id=f"{torch} torch", marks=off),
    ]
