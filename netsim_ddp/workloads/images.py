"""Images: handwritten digits, the data sets that torchvision reads, and generated ones with familiar shapes.

The digits are the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, UCI Machine
Learning Repository, https://doi.org/10.24432/C50P49, licence CC BY 4.0), the one that scikit-learn's ``load_digits``
returns. They lie beside this module, in ``digits.csv.gz``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netsim_ddp.errors import EnvironmentFault, describe
from netsim_ddp.names import DATASETS
from netsim_ddp.workloads.batched import (
    NOISE_STREAM,
    SPLIT_STREAM,
    Batch,
    Batched,
    generator,
    scattered,
)
from netsim_ddp.workloads.files import FILES

_VALIDATION_SHARE = 0.2
_SCALES = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
"""Mean and standard deviation per channel of each training set's pixels in 0..1: the usual figures."""


class Digits(Batched):
    """Handwritten digits, float32 ``[n, 1, 8, 8]``.

    80/20, stratified by class and drawn from ``seed``: 1,438 training and 359 validation images. Scaled so
    that the training split has mean 0 and standard deviation 1.
    """

    def __init__(self, *, train: bool, seed: int) -> None:
        images, labels = raw_digits()
        chosen = [_split_class(labels, digit, seed) for digit in range(10)]
        training = torch.cat([kept for kept, _ in chosen]).sort().values
        indices = training if train else torch.cat([held for _, held in chosen]).sort().values
        # The validation images are scaled by the training split's figures: they must not leak into it.
        deviation, mean = torch.std_mean(images[training], correction=0)
        self.images = (images[indices] - mean) / deviation
        self.labels = labels[indices]
        self.length = len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices)
        return self.images[chosen], self.labels[chosen]


@functools.cache
def raw_digits() -> Batch:
    """Returns all 1,797 images (float32 ``[n, 1, 8, 8]``, 0..16) and their labels (int64 ``[n]``)."""
    file = Path(__file__).with_name("digits.csv.gz")
    rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.int64))
    return rows[:, :-1].float().view(-1, 1, 8, 8), rows[:, -1].clone()


def _split_class(labels: Tensor, label: int, seed: int) -> Batch:
    """Indices of one class's (training, validation) images."""
    members = (labels == label).nonzero().flatten()
    members = members[torch.randperm(len(members), generator=generator(seed, SPLIT_STREAM, label))]
    held_out = round(_VALIDATION_SHARE * len(members))
    return members[held_out:], members[:held_out]


class Read(Batched):
    """A set that torchvision reads: float32 ``[n, channels, height, width]``, scaled by the training set's figures.

    No augmentation. Pixels stay bytes until their batch is asked for.
    """

    def __init__(self, name: str, folder: Path, *, train: bool) -> None:
        self.images, self.labels = raw_images(name, folder, train)
        self.length = len(self.labels)
        self._scale = [torch.tensor(each).view(-1, 1, 1) for each in _SCALES[name]]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices)
        mean, deviation = self._scale
        return (self.images[chosen].float() / 255 - mean) / deviation, self.labels[chosen]


@functools.cache
def raw_images(name: str, folder: Path, train: bool) -> Batch:
    """uint8 ``[n, channels, height, width]`` and int64 ``[n]``; processes forked afterwards share them.

    Raises:
        EnvironmentFault: torchvision cannot read the files.
    """
    from torchvision import datasets  # here: two seconds

    try:
        found = getattr(datasets, FILES[name].reader)(folder, train=train)
        pixels = torch.as_tensor(found.data)
        images = pixels.permute(0, 3, 1, 2).contiguous() if pixels.ndim == 4 else pixels.unsqueeze(1)
        labels = torch.as_tensor(found.targets, dtype=torch.int64)
        if len(images) != len(labels) or images.shape[1:] != DATASETS[name].shape:
            raise ValueError(f"{len(labels)} labels for images of shape {list(images.shape)}")
    except Exception as error:
        raise EnvironmentFault(
            f"{name}'s files in {folder / FILES[name].folder} are damaged: {describe(error)}",
            hint="delete that folder, then write --download",
        ) from error
    return images, labels


class Synthetic(Batched):
    """Generated images: unit noise plus a faint 4x4 pattern per class, so that there is something to learn.

    Each image is a window into one bank of noise, so it costs a copy instead of 150,528 normal draws and
    nothing but the bank (8 MB or less) is stored. The label of image ``i`` is ``i mod classes``.
    """

    def __init__(self, name: str, *, train: bool, seed: int) -> None:
        info = DATASETS[name]
        self.shape, self.classes = info.shape, info.classes
        self.length = info.examples_in(train=train)
        self._seed, self._split = seed, int(train)
        self._tables: Batch | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A spawned loader process draws its own tables, faster than it would receive them.
        return {**self.__dict__, "_tables": None}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        if self._tables is None:
            self._tables = self._draw()
        bank, patterns = self._tables
        channels, height, width = self.shape
        pixels = channels * height * width
        images = torch.empty(len(indices), pixels)
        for row, index in enumerate(indices):
            start = scattered(2 * index + self._split, len(bank) - pixels)
            images[row] = bank[start : start + pixels]
        labels = torch.as_tensor(indices) % self.classes
        blocks = images.view(len(indices), channels, 4, height // 4, 4, width // 4)
        blocks += patterns[labels].view(len(indices), channels, 4, 1, 4, 1)
        return images.view(len(indices), *self.shape), labels

    def _draw(self) -> Batch:
        channels, height, width = self.shape
        noise = generator(self._seed, NOISE_STREAM)
        # Training and validation share the patterns (or validation could not be solved) and the bank.
        patterns = 0.5 * torch.randn(self.classes, channels, 4, 4, generator=noise)
        return torch.randn(channels * height * width + 2**20, generator=noise), patterns
