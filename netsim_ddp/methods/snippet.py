"""The lines that put a method into a training of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netsim_ddp.methods import entry_of

_TORCH_HOOKS = {"float16": "fp16_compress_hook", "bfloat16": "bf16_compress_hook"}
"""By what a method rounds to, torch's own hook that does the same."""


def snippet(method: str, params: Mapping[str, Any], *, overlap: bool) -> str:
    """Lines for a user's own DistributedDataParallel training, with the model in ``ddp``."""
    entry = entry_of(method)
    if entry.is_baseline and str(params.get("values", "fp32")) == "fp32":
        return "# DistributedDataParallel as it is: no hook."
    if hook := _TORCH_HOOKS.get(entry.ddp_type or ""):
        return (
            "from torch.distributed.algorithms.ddp_comm_hooks import default_hooks\n"
            f"ddp.register_comm_hook(None, default_hooks.{hook})"
        )
    given = "".join(f", {key}={value!r}" for key, value in sorted(params.items()))
    also = ", overlap=True" if overlap else ""
    return (
        "from netsim_ddp import HookState, method_hook\n"
        f"state = HookState(ddp, {method!r}{given}{also})\n"
        "ddp.register_comm_hook(state, method_hook)"
    )
