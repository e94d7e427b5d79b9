"""netsim: what gradient compression really buys on a slow network.

The public names load on first use, so that importing the package (for ``netsim --help``, or to build a
report where torch is not installed) does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netsim_ddp.communication.adam import CompressedAdam
    from netsim_ddp.communication.backend import DistributedBackend
    from netsim_ddp.communication.exchange import all_gather, all_reduce, peer_exchange, summed
    from netsim_ddp.communication.flat import FlatGradients
    from netsim_ddp.communication.hooks import HookState, TopKState, method_hook, topk_hook
    from netsim_ddp.communication.segments import Collective, Group, Local, Method, Segment, Wire
    from netsim_ddp.communication.sgd import CorrectedSGD
    from netsim_ddp.compression import get_compressor
    from netsim_ddp.compression.feedback import ErrorFeedbackBuffer
    from netsim_ddp.compression.kernels import NonFiniteGradient
    from netsim_ddp.compression.topk import TopKCompressor
    from netsim_ddp.tools.record.child import record
    from netsim_ddp.training.residuals import for_other_ranks
    from netsim_ddp.training.tracker import MetricsTracker
    from netsim_ddp.workloads.data import get_dataloaders
    from netsim_ddp.workloads.models import get_model

__version__ = "0.2.0.dev0"

_HOME = {
    "Collective": "netsim_ddp.communication.segments",
    "CompressedAdam": "netsim_ddp.communication.adam",
    "CorrectedSGD": "netsim_ddp.communication.sgd",
    "DistributedBackend": "netsim_ddp.communication.backend",
    "ErrorFeedbackBuffer": "netsim_ddp.compression.feedback",
    "FlatGradients": "netsim_ddp.communication.flat",
    "Group": "netsim_ddp.communication.segments",
    "HookState": "netsim_ddp.communication.hooks",
    "Local": "netsim_ddp.communication.segments",
    "Method": "netsim_ddp.communication.segments",
    "MetricsTracker": "netsim_ddp.training.tracker",
    "NonFiniteGradient": "netsim_ddp.compression.kernels",
    "Segment": "netsim_ddp.communication.segments",
    "TopKCompressor": "netsim_ddp.compression.topk",
    "TopKState": "netsim_ddp.communication.hooks",
    "Wire": "netsim_ddp.communication.segments",
    "all_gather": "netsim_ddp.communication.exchange",
    "all_reduce": "netsim_ddp.communication.exchange",
    "for_other_ranks": "netsim_ddp.training.residuals",
    "get_compressor": "netsim_ddp.compression",
    "get_dataloaders": "netsim_ddp.workloads.data",
    "get_model": "netsim_ddp.workloads.models",
    "method_hook": "netsim_ddp.communication.hooks",
    "peer_exchange": "netsim_ddp.communication.exchange",
    "record": "netsim_ddp.tools.record.child",
    "summed": "netsim_ddp.communication.exchange",
    "topk_hook": "netsim_ddp.communication.hooks",
}

__all__ = [
    "Collective",
    "CompressedAdam",
    "CorrectedSGD",
    "DistributedBackend",
    "ErrorFeedbackBuffer",
    "FlatGradients",
    "Group",
    "HookState",
    "Local",
    "Method",
    "MetricsTracker",
    "NonFiniteGradient",
    "Segment",
    "TopKCompressor",
    "TopKState",
    "Wire",
    "__version__",
    "all_gather",
    "all_reduce",
    "for_other_ranks",
    "get_compressor",
    "get_dataloaders",
    "get_model",
    "method_hook",
    "peer_exchange",
    "record",
    "summed",
    "topk_hook",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = importlib.import_module(_HOME[name])
    except AttributeError as error:  # which would read as if the name did not exist here
        raise ImportError(f"{_HOME[name]} cannot be imported: {error}") from error
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)
