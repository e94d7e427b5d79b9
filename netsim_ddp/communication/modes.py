"""An exchange computes what it computes, whatever mode the program around it has set for its model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_modes(device: torch.device) -> Iterator[None]:
    """Inside: no autocast, which would multiply PowerSGD's matrices in 16 bits; no graph; and no inference mode, whose
    tensors nobody may change outside of it. (Default type and device are given wherever a tensor is made.)"""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
