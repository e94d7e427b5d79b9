"""The optimizer of one rank, as the settings name it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from netsim_ddp.communication.sgd import CorrectedSGD
from netsim_ddp.scenario import Settings


def build_optimizer(
    settings: Settings, parameters: Iterable[nn.Parameter], params: Mapping[str, Any], *, alone: bool
) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW with the rate and the weight decay of ``settings``.

    Where the method corrects momentum, SGD has none, and is :class:`CorrectedSGD`: twice would be wrong. A rank that is
    ``alone`` exchanges nothing, so its SGD has the method's momentum.

    Args:
        settings: resolved.
        params: the method's options.
    """
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer != "sgd":
        adam = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        return adam(parameters, lr=rate, weight_decay=decay)
    corrected = float(params.get("momentum") or 0.0)
    sgd = CorrectedSGD if corrected and not alone else torch.optim.SGD
    return sgd(parameters, lr=rate, momentum=corrected or settings.momentum, weight_decay=decay)
