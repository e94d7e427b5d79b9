"""Whether a model fits a dataset and can be trained, found out before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from netsim_ddp.errors import UsageError, describe
from netsim_ddp.names import DATASETS, is_own
from netsim_ddp.workloads.batched import Batch
from netsim_ddp.workloads.losses import Loss, cross_entropy, try_loss
from netsim_ddp.workloads.models import get_model, seeded, user_model

TRIED_BATCH = 2
"""Examples of the step that is tried: the fewest of which BatchNorm can take a variance."""


@dataclass(frozen=True)
class Trial:
    """What a model is tried with.

    Attributes:
        model, dataset, loss: their names.
        classes: that the data have; None where a user's own do not say.
        sample: the first inputs and targets of a user's own data; None of netsim's own.
    """

    model: str
    dataset: str
    loss: str
    loss_function: Loss
    seed: int
    classes: int | None
    sample: Batch | None

    def build(self) -> nn.Module:
        """The model, for the classes and the images' channels of the data.

        Raises:
            UsageError: as :func:`get_model`, and where it has to be told the classes and nobody does.
        """
        if is_own(self.model):
            return user_model(self.model, self.classes, self.seed)
        if self.classes is None:
            raise UsageError(
                f"dataset {self.dataset!r} does not say how many classes it has, which {self.model!r} must know",
                hint="give it an attribute num_classes or classes, or name a model of your own, my_module:build",
            )
        shape = DATASETS[self.dataset].shape if self.sample is None else tuple(self.sample[0].shape[1:])
        return get_model(self.model, self.classes, self.seed, channels=shape[0] if len(shape) == 3 else None)

    def batch(self, count: int, device: torch.device) -> Batch:
        """Inputs and targets with ``count`` rows, or as many as there are."""
        if self.sample is not None:
            return self.sample[0][:count].to(device), self.sample[1][:count].to(device)
        info = DATASETS[self.dataset]
        images = info.kind == "images"
        inputs = torch.zeros(
            count, *info.shape, device=device, dtype=torch.float32 if images else torch.int64
        )
        targets = (count,) if images else (count, *info.shape)
        return inputs, torch.zeros(targets, dtype=torch.int64, device=device)

    @property
    def input(self) -> str:
        """One kind of input in words: ``1x8x8 images``."""
        if self.sample is None:
            return DATASETS[self.dataset].input
        inputs = self.sample[0]
        return f"inputs {list(inputs.shape[1:])} ({str(inputs.dtype).removeprefix('torch.')})"

    @property
    def plain(self) -> bool:
        """Whether outputs must be logits of classes."""
        return self.loss_function is cross_entropy


def check_fit(module: nn.Module, trial: Trial) -> None:
    """Send one input through ``module`` in evaluation mode, which gives lazy layers their shapes.

    Raises:
        UsageError: it cannot take the input, returns something else than logits where the loss wants them, or a
            parameter has no values.
    """
    model = trial.model
    module.eval()  # one image must not touch BatchNorm's statistics, which could not be computed from it
    with torch.no_grad(), seeded(trial.seed):
        _outputs(module, trial, 1)
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


def check_training(module: nn.Module, trial: Trial, batch_size: int) -> list[str]:
    """Take forward, loss and backward of a small batch in training mode; ``module`` is of no use afterwards.

    Returns:
        The names of the parameters that got no gradient.

    Raises:
        UsageError: training cannot take a batch of this size, returns what the loss cannot take, has no gradient, or
            has a sparse one.
    """
    model = trial.model
    module.train()
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    with torch.enable_grad(), seeded(trial.seed):
        outputs, targets = _outputs(module, trial, min(batch_size, TRIED_BATCH))
        loss = try_loss(trial.loss_function, trial.loss, outputs, targets)
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


def _outputs(module: nn.Module, trial: Trial, count: int) -> tuple[Any, Tensor]:
    """Returns what ``module`` gives for ``count`` inputs, which must be logits where the loss wants them, and the
    targets."""
    model, dataset = trial.model, trial.dataset
    own = trial.sample is not None
    other = "other data" if own else f"a dataset out of {', '.join(DATASETS)}"
    hint = f"use a model for {trial.input}, or {other}"
    home = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    inputs, targets = trial.batch(count, home)
    count = len(inputs)
    while_training = " while training" if module.training else ""
    try:
        outputs = module(inputs)
    except (Exception, SystemExit) as error:  # whatever the user's layers raise
        if module.training:
            many = f"a batch of {count} of the {trial.input} of {dataset} while training"
            if count == 1:
                hint = "write --batch-size 2 or more, which BatchNorm needs"
        else:
            many = f"the {trial.input} of {dataset}"
        raise UsageError(f"model {model!r} cannot take {many}: {describe(error)}", hint=hint) from error
    if not trial.plain:
        return outputs, targets
    if targets.is_floating_point():
        raise UsageError(
            f"dataset {dataset!r} has targets of floating point, and cross entropy wants classes, int64",
            hint="write --loss-function mse, or my_module:loss of your own",
        )
    many = f"{count} of the" if count > 1 else "one of the"
    got = list(outputs.shape) if isinstance(outputs, Tensor) else None
    wanted = [*targets.shape, trial.classes if trial.classes is not None else int(targets.max()) + 1]
    if got is None or len(got) != len(wanted) or got[:-1] != wanted[:-1] or got[-1] < wanted[-1]:
        if got is None:
            hint = "have its forward return the logits alone, without auxiliary heads"
        given = type(outputs).__name__ if got is None else got
        raise UsageError(
            f"model {model!r} gives {given} for {many} {trial.input} of {dataset}{while_training}, not {wanted}",
            hint=hint if not own else f"{hint}; another loss: --loss-function my_module:loss",
        )
    return outputs, targets.long()
