"""Where a training went wrong: the layer behind a loss or a gradient that is not finite."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from netsim_ddp.communication.flat import FlatGradients


def gradient_fault(flat: FlatGradients) -> str | None:
    """The first parameter, in the model's order, whose gradient holds a NaN or inf."""
    for name, view in zip(flat.names, flat.views, strict=True):
        if not bool(torch.isfinite(view).all()):
            return name
    return None


def activation_fault(model: nn.Module, inputs: Tensor) -> str | None:
    """The first layer, in the order of the forward pass, whose output for ``inputs`` holds a NaN or inf.

    Runs the forward pass once more; a layer that draws random numbers may behave differently this time.
    """
    found: list[str] = []
    hooks = []
    for name, layer in model.named_modules():
        if next(layer.children(), None) is None:

            def look(_: nn.Module, __: object, output: object, name: str = name) -> None:
                if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                    found.append(name or "the model itself")

            hooks.append(layer.register_forward_hook(look))
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
