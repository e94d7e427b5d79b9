"""Names of models, datasets and losses, and ``my_module:name``, a user's own, found by import.

Imports neither torch nor numpy, and nothing but what the user names.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from netsim_ddp.errors import UsageError, describe

TORCHVISION_PREFIX = "torchvision:"

SMALL_SUFFIX = "-small"
SMALL_IMAGE = 64
"""Images up to this height and width are small: a ResNet's usual stem would halve them twice before its first block."""

MODELS: dict[str, str] = {
    "simple_cnn": "1.1M parameters, for small images such as digits",
    "resnet18": "torchvision's ResNet-18, 11.7M parameters at 1000 classes; resnet18-small on small images",
    "resnet50": "torchvision's ResNet-50, 25.6M parameters at 1000 classes; resnet50-small on small images",
    "resnet18-small": "ResNet-18 with a 3x3 stem and no pool before its blocks, 11.2M parameters at 10 classes",
    "resnet50-small": "ResNet-50 with a 3x3 stem and no pool before its blocks, 23.5M parameters at 10 classes",
    "transformer": "2.2M parameters, reads text; 94% of them are an embedding of which a step touches few rows",
}
MODEL_PATTERNS: dict[str, str] = {
    "torchvision:NAME": "any classifier of torchvision, untrained",
    "my_module:build": "your own: build(num_classes=...) or build() returns a torch.nn.Module; options of its own "
    "behind it, my_module:build,dim=64",
}
LOSSES: dict[str, str] = {
    "cross-entropy": "mean cross entropy of logits against classes",
    "mse": "mean squared error of outputs against targets of the same shape",
}
OPTIMIZERS = ("sgd", "adam", "adamw")


def way_in(name: str) -> str:
    """How one's own model, dataset or loss is named: the end of every list of those that are known."""
    return f"or my_module:{name} of your own, in a module that Python can import from here"


Kind = Literal["images", "tokens"]


@dataclass(frozen=True)
class DatasetInfo:
    """What a model must fit.

    Attributes:
        kind: ``images``: float32 ``[batch, channels, height, width]``, one class each; ``tokens``: int64 ``[batch,
            length]``, and as target the token that follows each.
        shape: of one input: ``(channels, height, width)`` or ``(length,)``.
        classes: of an image; of tokens, how many there are.
        train, validation: examples in each split, over all ranks; None where the files decide.
    """

    kind: Kind
    shape: tuple[int, ...]
    classes: int
    train: int | None
    validation: int | None
    description: str

    def examples_in(self, *, train: bool) -> int:
        """How many examples a split of a generated data set has."""
        length = self.train if train else self.validation
        assert length is not None, "the files of a data set decide"
        return length

    @property
    def examples(self) -> str:
        """What its examples are called: ``images``."""
        return "images" if self.kind == "images" else "contexts"

    @property
    def input(self) -> str:
        """One kind of input in words: ``1x8x8 images``."""
        if self.kind == "images":
            return "x".join(str(size) for size in self.shape) + " images"
        return f"contexts of {self.shape[0]} tokens"


DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo(
        "images", (1, 8, 8), 10, 1_438, 359, "1,797 real handwritten digits (scikit-learn's), always there"
    ),
    "mnist": DatasetInfo("images", (1, 28, 28), 10, None, None, "handwritten digits, from --data-dir"),
    "fashion-mnist": DatasetInfo("images", (1, 28, 28), 10, None, None, "clothes, from --data-dir"),
    "cifar10": DatasetInfo("images", (3, 32, 32), 10, None, None, "animals and vehicles, from --data-dir"),
    "text": DatasetInfo(
        "tokens", (64,), 256, None, None, "bytes of --text, or of the standard library's own sources"
    ),
    "synthetic-cifar10": DatasetInfo(
        "images", (3, 32, 32), 10, 50_000, 2_000, "generated, CIFAR-10's shapes"
    ),
    "synthetic-imagenet": DatasetInfo(
        "images", (3, 224, 224), 1000, 100_000, 2_000, "generated, ImageNet's shapes"
    ),
    "synthetic-text": DatasetInfo(
        "tokens", (64,), 10_000, 50_000, 2_000, "generated, a vocabulary of 10,000 words"
    ),
}

MODEL_CHOICES = f"{', '.join(MODELS)}, torchvision:NAME, {way_in('build')}"
DATASET_CHOICES = f"{', '.join(DATASETS)}, {way_in('data')}"
LOSS_CHOICES = f"{', '.join(LOSSES)}, torch.nn:NAME, {way_in('loss')}"

_RECORDED = re.compile(r".+@[0-9a-f]{12}")
_REFERENCE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"did you mean 'resnet50'? "``, or nothing where no known name is near."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def suggest(word: str, known: Iterable[str]) -> str:
    """:func:`did_you_mean`, and all that is known."""
    names = sorted(known)
    return f"{did_you_mean(word, names)}known: {', '.join(names)}"


def is_reference(name: str) -> bool:
    """Whether ``name`` is well-formed ``module:attribute``."""
    return isinstance(name, str) and _REFERENCE.fullmatch(name) is not None


def is_recorded(name: str) -> bool:
    """Whether ``name`` is a recorded model's: ``ResNet@3fa8b2c91d04``, with the recording's key."""
    return _RECORDED.fullmatch(name) is not None


def load_reference(what: str, reference: str, choices: str) -> Any:
    """What ``reference`` names.

    The current directory is put first on ``sys.path`` and stays there, since the module may import its neighbours
    later.

    Args:
        what: the kind of thing, for messages: ``model``. choices: what else could have been named.

    Raises:
        UsageError: no such module or attribute, or the module fails when it is imported.
    """
    module_name, _, attribute_path = reference.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        value: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script may end itself
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"{what} {reference!r}: there is no module {error.name!r}",
                hint=f"looked in {here} and on PYTHONPATH; or choose from {choices}",
            ) from error
        raise UsageError(
            f"{what} {reference!r}: importing {module_name!r} failed: {describe(error)}",
            hint=f"try it alone: python -c 'import {module_name}'",
        ) from error
    for attribute in attribute_path.split("."):
        if not hasattr(value, attribute):
            offered = [name for name, item in vars(value).items() if callable(item) and name[0] != "_"]
            listing = f"it has {', '.join(sorted(offered)[:8])}" if offered else "it defines no function"
            raise UsageError(
                f"{what} {reference!r}: {module_name!r} has no {attribute!r}",
                hint=f"{did_you_mean(attribute, offered)}{listing}",
            )
        value = getattr(value, attribute)
    return value


def split_options(what: str, text: str) -> tuple[str, dict[str, str]]:
    """``my_module:build,dim=64`` -> its name, and its options as they are written.

    Args:
        what: the kind of thing, for messages: ``model``.

    Raises:
        UsageError: something that is not key=value, or a key twice.
    """
    name, *pairs = (part.strip() for part in text.split(","))
    options: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{what} {text!r}: {pair!r} is not key=value", hint=f"write {name},key=value")
        if key in options:
            raise UsageError(f"{what} {text!r} gives {key!r} twice", hint=f"write {name},{key}={value}")
        options[key] = value
    return name, options


def is_own(text: str) -> bool:
    """Whether ``text``, with options or without, names what is neither netsim's nor torchvision's."""
    name = text.partition(",")[0].strip()
    return is_reference(name) and not name.startswith(TORCHVISION_PREFIX)


def check_model(text: str) -> str:
    """:func:`_check` of a model, which may be a recording's."""
    return text if is_recorded(text) else _check("model", text, MODELS, MODEL_CHOICES, "build")


def check_dataset(text: str) -> str:
    """:func:`_check` of a dataset."""
    return _check("dataset", text, DATASETS, DATASET_CHOICES, "data")


def names_a_loss(text: object) -> bool:
    """Whether ``text``, which may be the share of packets that a link loses, names a loss function instead."""
    return isinstance(text, str) and text.strip()[:1].isalpha()


def check_loss(text: str) -> str:
    """:func:`_check` of a loss."""
    return _check("loss", text, LOSSES, LOSS_CHOICES, "loss")


def _check(what: str, text: str, known: Iterable[str], choices: str, usual: str) -> str:
    """Returns ``text`` with its options in alphabetical order, if it is one of ``known`` or well-formed
    ``module:attribute[,key=value ...]``; nothing is imported.

    Raises:
        UsageError: unknown name, a reference that is not ``module:attribute``, or options of what takes none.
    """
    name, options = split_options(what, text)
    if name in known or is_reference(name):
        if options and not is_own(name):
            raise UsageError(
                f"{what} {name!r} takes no options", hint=f"leave {', '.join(options)} out, {way_in(usual)}"
            )
        return ",".join([name, *(f"{key}={value}" for key, value in sorted(options.items()))])
    if ":" in name:
        module, _, attribute = name.partition(":")
        path = module.removesuffix(".py").strip("./").replace("/", ".")
        guess = f"{path}:{attribute or usual}"
        suggestion = f"did you mean {guess!r}? " if is_reference(guess) else ""
        raise UsageError(
            f"{what} {name!r} is not MODULE:ATTRIBUTE", hint=f"{suggestion}choose from {choices}"
        )
    raise UsageError(
        f"{what} {name!r} is not known", hint=f"{did_you_mean(name, known)}choose from {choices}"
    )


def default_dataset(model: str) -> str:
    """The dataset that ``model`` trains on where the user names none.

    Raises:
        UsageError: as :func:`check_model`.
    """
    check_model(model)
    if model in ("resnet18", "resnet50") or model.startswith(TORCHVISION_PREFIX):
        return "synthetic-imagenet"
    if model.endswith(SMALL_SUFFIX):
        return "synthetic-cifar10"
    return "text" if model == "transformer" else "digits"


def fitted(model: str, dataset: str) -> str:
    """The model that is built when ``model`` is to train on ``dataset``: ResNets get their small stem for small images.

    ``torchvision:resnet18`` stays as it is.

    Raises:
        UsageError: the one is for images and the other holds tokens, or the other way round.
    """
    if is_own(model) or is_own(dataset):
        return model  # a user's own, which is tried when it is built
    info = DATASETS[dataset]
    if (kind := "tokens" if model == "transformer" else "images") != info.kind:
        fitting = ", ".join(name for name, each in DATASETS.items() if each.kind == kind)
        raise UsageError(
            f"model {model!r} is for {kind}, and {dataset} holds {info.kind}",
            hint=f"choose a dataset from {fitting}, or another model",
        )
    small = info.kind == "images" and max(info.shape[1:]) <= SMALL_IMAGE
    return model + SMALL_SUFFIX if small and f"{model}{SMALL_SUFFIX}" in MODELS else model
