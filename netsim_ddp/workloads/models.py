"""Models by name, initialised from a seed without disturbing the global random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from netsim_ddp.errors import UsageError
from netsim_ddp.names import (
    DATASETS,
    MODEL_CHOICES,
    MODELS,
    SMALL_SUFFIX,
    TORCHVISION_PREFIX,
    check_model,
    default_dataset,
    did_you_mean,
)
from netsim_ddp.workloads.own import called, found
from netsim_ddp.workloads.transformer import Transformer


class SimpleCNN(nn.Module):
    """Two convolutions, a pool, two linear layers: 1,078,666 parameters for 1x8x8 images and 10 classes.

    No BatchNorm: its running statistics follow each rank's own batches, and ranks whose parameters are
    equal would still be different models. No dropout either, so a step depends on its batch alone.

    Shapes: ``[batch, channels, height, width]`` with height and width at least 4 -> ``[batch, num_classes]``.
    The pool brings any image to 4x4, hence the same linear layers for 8x8 digits and 32x32 pictures.
    """

    def __init__(self, num_classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(4),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 1024),
            nn.ReLU(),
            nn.Linear(1024, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(images))
        return logits


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's CPU random numbers start from ``seed``; afterwards the caller's go on undisturbed."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed CUDA's generators, which are not put back.
        torch.default_generator.manual_seed(seed)
        yield


def get_model(
    name: str = "simple_cnn", num_classes: int | None = None, seed: int = 0, *, channels: int | None = None
) -> nn.Module:
    """Build a model in float32 on the CPU, in training mode; the same ``seed`` gives the same parameters.

    Args:
        name: ``simple_cnn``, ``resnet18``, ``resnet50``, ``resnet18-small``, ``resnet50-small``, ``transformer``,
            ``torchvision:NAME`` or ``my_module:build``, which takes options: ``my_module:build,dim=64``.
        num_classes: outputs per image, or tokens of ``transformer``; by default those of the model's usual dataset.
        seed: seeds torch's CPU generator around the construction; the global state is put back.
        channels: image channels of ``simple_cnn`` (1 by default) and of the ResNets (3); the others fix their own.

    For ``my_module:build`` the current directory is put first on ``sys.path`` and stays there, since the
    module may import its neighbours later. ``build`` gets ``num_classes`` if it has such a parameter. An option has the
    type that its parameter is annotated with, or of its default; else it is a number or a switch if it reads like one.

    Raises:
        UsageError: unknown name, no such module or attribute, an option that ``build`` does not take, or a ``build``
            that fails or returns something other than a ``torch.nn.Module``.
    """
    name = check_model(name)
    if num_classes is None:
        num_classes = DATASETS[default_dataset(name)].classes
    if num_classes < 1:
        raise UsageError(f"num_classes must be at least 1, got {num_classes}")
    if seed < 0:
        raise UsageError(f"seed must not be negative, got {seed}", hint="write for example 0")
    if name in ("simple_cnn", "transformer"):
        with seeded(seed):
            return SimpleCNN(num_classes, channels or 1) if name == "simple_cnn" else Transformer(num_classes)
    if name in MODELS:
        return _resnet(name, num_classes, channels or 3, seed)
    if name.startswith(TORCHVISION_PREFIX):
        return _torchvision_model(name.removeprefix(TORCHVISION_PREFIX), num_classes, seed)
    return user_model(name, num_classes, seed)


def preload(model: str) -> None:
    """Import what building ``model`` needs, so that processes forked afterwards need not. A user's own module is
    not imported: what it does on import belongs in each rank."""
    if model.startswith(("resnet", TORCHVISION_PREFIX)) and (model in MODELS or ":" in model):
        import torchvision  # noqa: F401 - two seconds


def _resnet(name: str, num_classes: int, channels: int, seed: int) -> nn.Module:
    """torchvision's ResNet; ``-small`` with the stem of He et al. (2016), section 4.2, for CIFAR-10: a 3x3 convolution
    with stride 1 and no pool, so that the first block sees a 32x32 image as 32x32, not 8x8."""
    with seeded(seed):
        model = _torchvision_model(name.removesuffix(SMALL_SUFFIX), num_classes, seed)
        small = name.endswith(SMALL_SUFFIX)
        if small or channels != 3:
            size, stride = (3, 1) if small else (7, 2)
            stem = nn.Conv2d(channels, 64, size, stride, padding=size // 2, bias=False)
            nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
            model.conv1 = stem
        if small:
            model.maxpool = nn.Identity()
    return model


def _torchvision_model(name: str, num_classes: int, seed: int) -> nn.Module:
    from torchvision import models  # here: two seconds, and simple_cnn needs none of it

    known: list[str] = models.list_models(module=models)
    if name not in known:
        raise UsageError(
            f"torchvision has no classifier {name!r}",
            hint=f"{did_you_mean(name, known)}write for example torchvision:resnet34 or torchvision:vgg16",
        )
    # Auxiliary heads would make the training output a tuple, unlike every other classifier's.
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with seeded(seed):
        model = models.get_model(name, weights=None, num_classes=num_classes, **options)
    assert isinstance(model, nn.Module)
    return model


def user_model(text: str, num_classes: int | None, seed: int) -> nn.Module:
    """:func:`get_model` of ``my_module:build``; ``num_classes`` of None is not offered to it."""
    build, options = found("model", text, MODEL_CHOICES)
    if isinstance(build, nn.Module) or not callable(build):
        raise UsageError(
            f"model {text!r} is a {type(build).__name__}, not a function that builds a torch.nn.Module",
            hint="name a function build(num_classes=...) or build(), or the module's class",
        )
    offered = {} if num_classes is None else {"num_classes": num_classes}
    with seeded(seed):
        model = called("model", text, build, options, **offered)
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"model {text!r} returned a {type(model).__name__}, not a torch.nn.Module",
            hint="return the module from the function",
        )
    return model
