"""Switches in the environment, which every process that netsim starts inherits."""

from __future__ import annotations

import os

from netsim_ddp.errors import UsageError

KERNELS = "NETSIM_KERNELS"
"""``compiled``, the default, or ``torch``: work in torch everywhere, as on a GPU or where numba is missing."""


def compiled_kernels() -> bool:
    """Whether the compiled kernels may be used.

    Raises:
        UsageError: the variable holds another word.
    """
    word = os.environ.get(KERNELS) or "compiled"
    if word not in ("compiled", "torch"):
        raise UsageError(
            f"{KERNELS}={word} is not one of compiled, torch", hint=f"write {KERNELS}=torch, or unset it"
        )
    return word == "compiled"
