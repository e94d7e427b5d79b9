"""How much memory this process takes, as Linux tells it."""

from __future__ import annotations

import ctypes
import re
from contextlib import suppress
from pathlib import Path


def release_freed() -> None:
    """Have the C library give freed memory back to the system: what it keeps would be used again without being seen."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes(which: str) -> int:
    """Returns ``VmRSS``, what this process has of the machine's memory, or ``VmHWM``, the most that it had.

    Raises:
        OSError: the system does not tell.
    """
    found = re.search(
        rf"^{which}:\s+(\d+) kB$", Path("/proc/self/status").read_text("ascii", "replace"), re.M
    )
    if found is None:
        raise OSError(f"no {which} in /proc/self/status")
    return int(found[1]) * 1024
