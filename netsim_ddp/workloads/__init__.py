"""What the ranks train: models, data, and the emulated accelerator.

The names below load on first use: ``netsim_ddp.names`` must be importable without torch, so that
the command line can refuse a misspelt model before it pays for the import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netsim_ddp.workloads.data import get_dataloaders
    from netsim_ddp.workloads.models import get_model
    from netsim_ddp.workloads.workload import Workload, build_workload

_HOME = {
    "Workload": "netsim_ddp.workloads.workload",
    "build_workload": "netsim_ddp.workloads.workload",
    "get_dataloaders": "netsim_ddp.workloads.data",
    "get_model": "netsim_ddp.workloads.models",
}

__all__ = ["Workload", "build_workload", "get_dataloaders", "get_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
