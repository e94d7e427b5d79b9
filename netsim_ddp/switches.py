"""Switches in the environment, which every process that netsim starts inherits."""

from __future__ import annotations

import os

from netsim_ddp.errors import UsageError

KERNELS = "NETSIM_KERNELS"
"""``compiled``, the default, or ``torch``: work in torch everywhere, as on a GPU or where numba is missing."""
DISTURBED = "NETSIM_DISTURBED"
"""What becomes of a repeat that a virtual machine's host disturbed: ``repeat``, the default, or ``keep``."""


def compiled_kernels() -> bool:
    """Whether the compiled kernels may be used.

    Raises:
        UsageError: the variable holds another word.
    """
    return _word(KERNELS, "compiled", "torch") == "compiled"


def repeats_disturbed() -> bool:
    """Whether a repeat that a virtual machine's host disturbed is run again.

    Raises:
        UsageError: the variable holds another word.
    """
    return _word(DISTURBED, "repeat", "keep") == "repeat"


def _word(name: str, usual: str, other: str) -> str:
    word = os.environ.get(name) or usual
    if word not in (usual, other):
        raise UsageError(
            f"{name}={word} is not one of {usual}, {other}", hint=f"write {name}={other}, or unset it"
        )
    return word
