"""A rank's part of a checkpoint: tensors and plain values, which torch reads back without running code."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from netsim_ddp.errors import EnvironmentFault, UsageError

SHARED = "shared.pt"


def rank_file(rank: int) -> str:
    return f"rank-{rank}.pt"


def write_state(folder: Path, name: str, state: dict[str, Any]) -> dict[str, Any]:
    """Write and flush ``folder/name``; and return its checksum, as the manifest holds it.

    Raises:
        EnvironmentFault: the disk is full, or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write checkpoint file {folder / name}: {error.strerror}",
            hint="the checkpoint before it is whole",
        ) from error
    return {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}


def read_state(path: Path) -> dict[str, Any]:
    """What :func:`write_state` wrote, on the CPU. ``weights_only``: a file from elsewhere cannot run code.

    Raises:
        UsageError: the file is damaged, or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"checkpoint file {path} cannot be read: {reason}") from error
    if not isinstance(state, dict):
        raise UsageError(f"checkpoint file {path} holds no training")
    return state


def split_model(model: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's state as (parameters, which all ranks share; the rest, such as BatchNorm's statistics)."""
    shared = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state = model.state_dict()
    return (
        {name: value for name, value in state.items() if name in shared},
        {name: value for name, value in state.items() if name not in shared},
    )
