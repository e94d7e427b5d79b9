"""Names of models and datasets, and their cheap checks. Imports neither torch nor numpy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from netsim_ddp.errors import UsageError

TORCHVISION_PREFIX = "torchvision:"

MODELS: dict[str, str] = {
    "simple_cnn": "1.1M parameters, for small images such as digits",
    "resnet18": "torchvision's ResNet-18, 11.7M parameters at 1000 classes",
    "resnet50": "torchvision's ResNet-50, 25.6M parameters at 1000 classes",
}
MODEL_PATTERNS: dict[str, str] = {
    "torchvision:NAME": "any classifier of torchvision, untrained",
    "my_module:build": "your own: build(num_classes=...) or build() returns a torch.nn.Module",
}


@dataclass(frozen=True)
class DatasetInfo:
    """What a model must fit: ``shape`` of one image [channels, height, width] and the number of classes."""

    shape: tuple[int, int, int]
    classes: int
    train: int
    """Images in the training split, over all ranks."""
    validation: int
    description: str


DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo((1, 8, 8), 10, 1_438, 359, "scikit-learn's 1,797 real handwritten digits"),
    "synthetic-cifar10": DatasetInfo((3, 32, 32), 10, 50_000, 2_000, "generated, CIFAR-10's shapes"),
    "synthetic-imagenet": DatasetInfo((3, 224, 224), 1000, 100_000, 2_000, "generated, ImageNet's shapes"),
}

_REFERENCE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"did you mean 'resnet50'? "``, or nothing where no known name is near."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def suggest(word: str, known: Iterable[str]) -> str:
    """``did you mean 'topk'?`` or the whole list."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}? known: {', '.join(names)}" if close else f"known: {', '.join(names)}"


def is_reference(name: str) -> bool:
    """Whether ``name`` is well-formed ``module:attribute``."""
    return _REFERENCE.fullmatch(name) is not None


def check_model(name: str) -> str:
    """Return ``name`` if it is a known model or well-formed ``module:attribute``; nothing is imported.

    Raises:
        UsageError: unknown name, or a reference that is not ``module:attribute``.
    """
    if name in MODELS or is_reference(name):
        return name
    choices = ", ".join([*MODELS, *MODEL_PATTERNS])
    if ":" in name:
        module, _, attribute = name.partition(":")
        path = module.removesuffix(".py").strip("./").replace("/", ".")
        guess = f"{path}:{attribute or 'build'}"
        suggestion = f"did you mean {guess!r}? " if is_reference(guess) else ""
        raise UsageError(f"model {name!r} is not MODULE:ATTRIBUTE", hint=f"{suggestion}choose from {choices}")
    raise UsageError(
        f"model {name!r} is not known", hint=f"{did_you_mean(name, MODELS)}choose from {choices}"
    )


def check_dataset(name: str) -> str:
    """Return ``name`` if it is a known dataset.

    Raises:
        UsageError: unknown name.
    """
    if name in DATASETS:
        return name
    raise UsageError(
        f"dataset {name!r} is not known",
        hint=f"{did_you_mean(name, DATASETS)}choose from {', '.join(DATASETS)}",
    )


def default_dataset(model: str) -> str:
    """The dataset that ``model`` trains on where the user names none.

    Raises:
        UsageError: as :func:`check_model`.
    """
    check_model(model)
    if model in ("resnet18", "resnet50") or model.startswith(TORCHVISION_PREFIX):
        return "synthetic-imagenet"
    return "digits"


def default_classes(model: str) -> int:
    """Number of classes that ``model`` is built for where the user names none."""
    return DATASETS[default_dataset(model)].classes
