"""The loss of a training: by name, or a user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from netsim_ddp.errors import NetsimError, UsageError, describe
from netsim_ddp.names import LOSS_CHOICES, check_loss
from netsim_ddp.workloads.own import called, found, typed_options

Loss = Callable[[Any, Tensor], Tensor]
"""``loss(outputs, targets)`` -> scalar."""
CONTRACT = "it is called as loss(outputs, targets) and returns a tensor of one number"


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy (scalar) of logits ``[..., classes]`` against classes ``[...]``, int64."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def mean_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error (scalar) of two tensors of one shape.

    Raises:
        ValueError: their shapes differ: [n] and [n, 1] would be broadcast to n x n differences without an error.
    """
    if outputs.shape != targets.shape:
        raise ValueError("their shapes differ")
    return functional.mse_loss(outputs, targets)


BUILT_IN: dict[str, Loss] = {"cross-entropy": cross_entropy, "mse": mean_squared}


def build_loss(text: str, device: torch.device) -> Loss:
    """What ``--loss-function`` names.

    ``my_module:loss`` is a function of outputs and targets, to which options are added as arguments; an instance of
    ``torch.nn.Module``; or else a class or function that returns one of the two, called with the options:
    ``torch.nn:CrossEntropyLoss,label_smoothing=0.1``.

    Raises:
        UsageError: unknown name, no such module or attribute, an option that it does not take, or nothing that can be
            called.
    """
    text = check_loss(text)
    if text in BUILT_IN:
        return BUILT_IN[text]
    value, options = found("loss", text, LOSS_CHOICES)
    if isinstance(value, type) or (
        callable(value) and not isinstance(value, nn.Module) and not _takes_two(value)
    ):
        value = called("loss", text, value, options)
    elif options and callable(value) and not isinstance(value, nn.Module):
        value = partial(value, **typed_options("loss", text, value, options))
    elif options:
        raise UsageError(
            f"loss {text!r} is made already, and takes no options", hint="name its class, or a function"
        )
    if not callable(value):
        raise UsageError(f"loss {text!r} is a {type(value).__name__}, not a function", hint=CONTRACT)
    if isinstance(value, nn.Module):
        if any(parameter.requires_grad for parameter in value.parameters()):
            raise UsageError(
                f"loss {text!r} has parameters of its own, which nothing would train",
                hint="have the model hold them and return what the loss needs, or requires_grad_(False)",
            )
        value = value.to(device)
    loss: Loss = value
    return loss


def try_loss(loss: Loss, text: str, outputs: Any, targets: Tensor) -> Tensor:
    """``loss(outputs, targets)``, of a first batch.

    Raises:
        UsageError: it fails, or returns something else than a scalar that has a gradient.
    """
    shapes = f"outputs {_shape(outputs)} and targets {_shape(targets)}"
    try:
        value = loss(outputs, targets)
    except NetsimError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's function raises
        raise UsageError(f"loss {text!r} cannot take {shapes}: {describe(error)}", hint=CONTRACT) from error
    if not isinstance(value, Tensor) or value.dim() > 0 or not value.is_floating_point():
        raise UsageError(
            f"loss {text!r} returned a {_shape(value)} for {shapes}, not one number", hint=CONTRACT
        )
    if not value.requires_grad and isinstance(outputs, Tensor) and outputs.requires_grad:
        raise UsageError(
            f"loss {text!r} returned a number that has no gradient",
            hint="compute it of the outputs with torch, without detach, item or no_grad",
        )
    if loss is not cross_entropy and not bool(value.isfinite()):
        raise UsageError(
            f"loss {text!r} is {float(value)} for the first targets, {shapes}",
            hint="look at it, and at what the model gives, in Python",
        )
    return value


def _takes_two(function: Callable[..., Any]) -> bool:
    """Whether it can be called with outputs and targets; taken for granted where nothing tells its parameters."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True


def _shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{list(value.shape)} ({str(value.dtype).removeprefix('torch.')})"
