"""Makes a training repeatable to the bit: generators are seeded, saved and restored, kernels are deterministic."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_STREAM = 7


def seed_everything(seed: int, rank: int) -> None:
    """Seed this process's generators for ``rank``, and have torch choose kernels that repeat themselves.

    On a CPU with a fixed number of threads all that is used here does. On a GPU some kernels have no such form (the
    backward pass of adaptive pooling is one): there two runs may differ in the last bits.
    """
    words = np.random.SeedSequence([seed, _STREAM, rank]).generate_state(2, np.uint32)
    random.seed(int(words[0]))
    np.random.seed(int(words[0]))
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")


def capture(device: torch.device) -> dict[str, Any]:
    """Returns the state of every generator, as plain values and tensors."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "python": [version, list(words), gauss],
        **({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}),
    }


def restore(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators where :func:`capture` found them."""
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
