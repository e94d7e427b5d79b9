"""How much of the host's memory this process has held, and how much is free for it."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""The files of a control group, of version 2 and of version 1."""


def available_bytes() -> int | None:
    """What can still be allocated, within what this process's control group (a container's, say) may take; None where
    the system does not tell."""
    return min((*_of_host(), *_of_group()), default=None)


def peak_bytes() -> int:
    """The most memory that this process has held so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _of_host() -> Iterator[int]:
    if found := re.search(r"^MemAvailable:\s+(\d+) kB$", _read(Path("/proc/meminfo")), re.MULTILINE):
        yield int(found[1]) * 1024


def _of_group() -> Iterator[int]:
    root = Path("/sys/fs/cgroup")
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        # Inside a container the path may be one that only the host sees: its own group is then the root.
        for folder in (base / path.lstrip("/"), base):
            for limit, usage in _LIMITS:
                most, taken = _read(folder / limit).strip(), _read(folder / usage).strip()
                if most.isdigit() and taken.isdigit():
                    # Cached files count as taken; they are given up when somebody needs the memory.
                    kept = re.search(r"^(?:total_)?inactive_file (\d+)$", _read(folder / "memory.stat"), re.M)
                    yield max(0, int(most) - int(taken) + (int(kept[1]) if kept else 0))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
