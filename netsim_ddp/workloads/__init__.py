"""What the ranks train: models, data, and the emulated accelerator.

The package itself imports no torch: the names of version 0.1.0 load on first use, with a DeprecationWarning where
``netsim_ddp`` has them.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

_HOME = {
    "Workload": "workload",
    "build_workload": "workload",
    "get_dataloaders": "data",
    "get_model": "models",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.startswith("get_"):
        warnings.warn(f"import {name} from netsim_ddp", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
