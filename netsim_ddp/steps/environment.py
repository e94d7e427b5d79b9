"""What a reader needs to know of the machine that a result is from."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from netsim_ddp.scenario import available_cores
from netsim_ddp.switches import compiled_kernels


def installed_version(package: str) -> str | None:
    """The version that is installed, from its metadata; None where there is none."""
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, ValueError):
        return None


def environment() -> dict[str, Any]:
    """Versions are read from metadata, nothing is imported."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "l3_bytes": _last_cache_bytes(),
        "load_1min": round(os.getloadavg()[0], 2),
        **{package: installed_version(package) for package in ("torch", "torchvision", "numpy")},
        "numba": installed_version("numba") if compiled_kernels() else None,  # None: it is not used
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        return platform.processor()
    return names[0] if names else platform.machine()


def _last_cache_bytes() -> int | None:
    """The size of the cache of level 3 that the first core uses; None where Linux does not tell."""
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if (folder / "level").read_text().strip() == "3":
                size = (folder / "size").read_text().strip()
                return int(size.removesuffix("K")) * (1024 if size.endswith("K") else 1)
        except (OSError, ValueError):
            continue
    return None
