"""Whether a model fits a dataset and can be trained, found out before the first step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from netsim_ddp.errors import UsageError, describe
from netsim_ddp.names import DATASETS
from netsim_ddp.workloads.models import seeded

TRIED_BATCH = 2
"""Examples of the step that is tried: the fewest of which BatchNorm can take a variance."""


def check_fit(module: nn.Module, model: str, dataset: str, seed: int) -> None:
    """Send one input through ``module`` in evaluation mode, which gives lazy layers their shapes.

    Raises:
        UsageError: it cannot take the input, returns something else than logits, or a parameter has no values.
    """
    module.eval()  # one image must not touch BatchNorm's statistics, which could not be computed from it
    with torch.no_grad(), seeded(seed):
        _logits(module, model, dataset, 1)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise UsageError(
                f"model {model!r}: {name} has no shape after a forward pass: no input reaches its lazy layer",
                hint="give the layer its sizes, or remove it",
            )
        if tensor.device.type == "meta":
            raise UsageError(
                f"model {model!r}: {name} is on the meta device and has no values",
                hint="build the model on the CPU, or fill it: model.to_empty(device='cpu'), then initialise",
            )


def check_training(module: nn.Module, model: str, dataset: str, batch_size: int, seed: int) -> list[str]:
    """Take forward and backward of a small batch in training mode; ``module`` is of no use afterwards.

    Returns:
        The names of the parameters that got no gradient.

    Raises:
        UsageError: training cannot take a batch of this size, returns something else than logits, has no gradient, or
            has a sparse one.
    """
    count = min(batch_size, TRIED_BATCH)
    module.train()
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    with torch.enable_grad(), seeded(seed):
        outputs = _logits(module, model, dataset, count)
        targets = torch.zeros(outputs.shape[:-1], dtype=torch.int64, device=outputs.device)
        loss = functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())
        try:
            found = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
        except (Exception, SystemExit) as error:  # whatever the user's layers raise
            raise UsageError(f"model {model!r} has no backward pass: {describe(error)}") from error
    for (name, _), gradient in zip(named, found, strict=True):
        if gradient is not None and gradient.layout != torch.strided:
            raise UsageError(
                f"model {model!r}: the gradient of {name} is sparse, which no method exchanges",
                hint="build its layer with sparse=False",
            )
    unused = [name for (name, _), gradient in zip(named, found, strict=True) if gradient is None]
    if len(unused) == len(named):
        raise UsageError(f"model {model!r}: its outputs depend on none of its parameters")
    return unused


def _logits(module: nn.Module, model: str, dataset: str, count: int) -> Tensor:
    """Returns what ``module`` gives for ``count`` inputs of ``dataset``, which must be logits."""
    info = DATASETS[dataset]
    hint = f"use a model for {info.input}, or a dataset out of {', '.join(DATASETS)}"
    home = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    images = info.kind == "images"
    inputs = torch.zeros(count, *info.shape, device=home, dtype=torch.float32 if images else torch.int64)
    while_training = " while training" if module.training else ""
    try:
        outputs = module(inputs)
    except (Exception, SystemExit) as error:  # whatever the user's layers raise
        if module.training:
            many = f"a batch of {count} of the {info.input} of {dataset} while training"
            if count == 1:
                hint = "write --batch-size 2 or more, which BatchNorm needs"
        else:
            many = f"the {info.input} of {dataset}"
        raise UsageError(f"model {model!r} cannot take {many}: {describe(error)}", hint=hint) from error
    wanted = [count, info.classes] if images else [count, *info.shape, info.classes]
    got = list(outputs.shape) if isinstance(outputs, Tensor) else None
    if got is None or len(got) != len(wanted) or got[:-1] != wanted[:-1] or got[-1] < wanted[-1]:
        if got is None:
            hint = "have its forward return the logits alone, without auxiliary heads"
        many = f"{count} of the" if count > 1 else "one of the"
        given = type(outputs).__name__ if got is None else got
        raise UsageError(
            f"model {model!r} gives {given} for {many} {info.input} of {dataset}{while_training}, not {wanted}",
            hint=hint,
        )
    logits: Tensor = outputs
    return logits
