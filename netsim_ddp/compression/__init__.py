"""Tensors in, sparse tensors out. Knows nothing of processes or wires."""

from __future__ import annotations

from netsim_ddp.compression.codec import Codec, CodecError
from netsim_ddp.compression.feedback import ErrorFeedbackBuffer, return_rounding_error
from netsim_ddp.compression.kernels import NonFiniteGradient, accumulate_select, all_finite, select, warm
from netsim_ddp.compression.topk import CompressionStats, TopKCompressor, entry_count, segment_table
from netsim_ddp.errors import UsageError

__all__ = [
    "Codec",
    "CodecError",
    "CompressionStats",
    "ErrorFeedbackBuffer",
    "NonFiniteGradient",
    "TopKCompressor",
    "accumulate_select",
    "all_finite",
    "entry_count",
    "get_compressor",
    "return_rounding_error",
    "segment_table",
    "select",
    "warm",
]

COMPRESSORS = ("topk", "none", "dense")


def get_compressor(name: str = "topk", ratio: float | str = 0.01) -> TopKCompressor | None:
    """The compressor of that name; ``None`` for ``"none"`` and ``"dense"``, which compress nothing.

    Raises:
        UsageError: an unknown name, or a ratio outside (0, 1].
    """
    if name == "topk":
        return TopKCompressor(ratio)
    if name in COMPRESSORS:
        return None
    raise UsageError(f"there is no compressor {name!r}", hint=f"choose from {', '.join(COMPRESSORS)}")
