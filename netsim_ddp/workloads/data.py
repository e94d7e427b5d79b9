"""Data for the ranks: one real set that needs no download, and generated ones with familiar shapes.

Everything is a function of the seed. torch's global random numbers are neither read nor moved.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from netsim_ddp.errors import UsageError
from netsim_ddp.names import DATASETS, check_dataset

Batch = tuple[Tensor, Tensor]
Loader = DataLoader[Batch]

_VALIDATION_SHARE = 0.2
_SPLIT_STREAM, _EPOCH_STREAM, _NOISE_STREAM, _LOADER_STREAM = range(4)


def _generator(*keys: int) -> torch.Generator:
    """A generator that depends on all keys; unlike ``seed + epoch``, seed 0 epoch 1 is not seed 1 epoch 0."""
    state = int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state)


class ImageDataset(Dataset[Batch]):
    """Images that come a batch at a time: ``self[i]`` is one pair, ``__getitems__`` one stacked batch."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """float32 ``[len(indices), channels, height, width]`` and int64 ``[len(indices)]``."""
        raise NotImplementedError


class Digits(ImageDataset):
    """scikit-learn's handwritten digits, float32 ``[n, 1, 8, 8]``.

    80/20, stratified by class and drawn from ``seed``: 1,438 training and 359 validation images. Scaled so
    that the training split has mean 0 and standard deviation 1.
    """

    def __init__(self, *, train: bool, seed: int) -> None:
        images, labels = _raw_digits()
        chosen = [_split_class(labels, digit, seed) for digit in range(10)]
        training = torch.cat([kept for kept, _ in chosen]).sort().values
        indices = training if train else torch.cat([held for _, held in chosen]).sort().values
        # The validation images are scaled by the training split's figures: they must not leak into it.
        deviation, mean = torch.std_mean(images[training], correction=0)
        self.images = (images[indices] - mean) / deviation
        self.labels = labels[indices]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices)
        return self.images[chosen], self.labels[chosen]


@functools.cache
def _raw_digits() -> Batch:
    from sklearn.datasets import load_digits  # here, since it is slow to import

    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32)).unsqueeze(1)
    return images, torch.from_numpy(digits.target.astype(np.int64))


def preload(dataset: str) -> None:
    """Read what does not depend on the rank, so that processes forked afterwards share it."""
    if dataset == "digits":
        _raw_digits()


def _split_class(labels: Tensor, label: int, seed: int) -> Batch:
    """Indices of one class's (training, validation) images."""
    members = (labels == label).nonzero().flatten()
    members = members[torch.randperm(len(members), generator=_generator(seed, _SPLIT_STREAM, label))]
    held_out = round(_VALIDATION_SHARE * len(members))
    return members[held_out:], members[:held_out]


class Synthetic(ImageDataset):
    """Generated images: unit noise plus a faint 4x4 pattern per class, so that there is something to learn.

    Each image is a window into one bank of noise, so it costs a copy instead of 150,528 normal draws and
    nothing but the bank (8 MB or less) is stored. The label of image ``i`` is ``i mod classes``.
    """

    def __init__(self, name: str, *, train: bool, seed: int) -> None:
        info = DATASETS[name]
        self.shape, self.classes = info.shape, info.classes
        self._length = info.train if train else info.validation
        self._seed, self._split = seed, int(train)
        self._tables: Batch | None = None

    def __len__(self) -> int:
        return self._length

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
            # Knuth's multiplicative hash spreads neighbouring images over the bank.
            start = ((2 * index + self._split) * 2_654_435_761) % 2**32 % (len(bank) - pixels)
            images[row] = bank[start : start + pixels]
        labels = torch.as_tensor(indices) % self.classes
        blocks = images.view(len(indices), channels, 4, height // 4, 4, width // 4)
        blocks += patterns[labels].view(len(indices), channels, 4, 1, 4, 1)
        return images.view(len(indices), *self.shape), labels

    def _draw(self) -> Batch:
        channels, height, width = self.shape
        generator = _generator(self._seed, _NOISE_STREAM)
        # Training and validation share the patterns (or validation could not be solved) and the bank.
        patterns = 0.5 * torch.randn(self.classes, channels, 4, 4, generator=generator)
        bank = torch.randn(channels * height * width + 2**20, generator=generator)
        return bank, patterns


class ShardSampler(Sampler[int]):
    """One rank's share of a shuffled epoch: every ``world_size``-th image, cut to whole batches.

    All ranks draw the same permutation from ``(seed, epoch)``; rank r takes places r, r + P, r + 2P ...
    Shards never overlap and have the same number of batches, and step s uses the same images over all
    ranks as one rank with a P times larger batch does. The remainder, fewer than P·batch_size images, is
    dropped; another one each epoch.
    """

    def __init__(self, length: int, batch_size: int, rank: int, world_size: int, seed: int) -> None:
        self.length, self.rank, self.world_size, self.seed = length, rank, world_size, seed
        self.per_rank = length // world_size // batch_size * batch_size
        self.batch_size = batch_size
        self.epoch = self.first_batch = 0

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the permutation, and the batch to start at; call it before iterating the loader again."""
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        """Of a whole epoch, wherever it starts."""
        return self.per_rank

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.length, generator=_generator(self.seed, _EPOCH_STREAM, self.epoch))
        mine = order[self.rank :: self.world_size][: self.per_rank]
        return iter(mine[self.first_batch * self.batch_size :].tolist())


def _as_is(batch: Any) -> Any:
    """``__getitems__`` has stacked the batch already (a named function: spawned workers must unpickle it)."""
    return batch


def get_dataloaders(
    dataset: str = "digits",
    batch_size: int = 32,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    text: str | Path | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> tuple[Loader, Loader]:
    """Training and validation loaders of one rank.

    Batches are float32 ``[batch, channels, height, width]`` and int64 ``[batch]``. ``batch_size`` is per
    rank. Training data is sharded without overlap and reshuffled by ``loader.sampler.set_epoch(epoch)``;
    every rank gets the same number of whole batches (see :class:`ShardSampler` for what is dropped).
    Validation data is *not* sharded: every rank sees all of it in a fixed order, the last batch may be
    short, and one rank's accuracy is the accuracy.

    ``num_workers`` loader processes per rank; 0 is the faster choice for every dataset here.

    Raises:
        UsageError: unknown dataset, a batch larger than a rank's shard, or numbers out of range.
    """
    check_dataset(dataset)
    if download or data_dir is not None or text is not None:
        raise UsageError(f"dataset {dataset} reads no files")
    for what, value, least in (
        ("batch size", batch_size, 1),
        ("number of ranks", world_size, 1),
        ("seed", seed, 0),
        ("number of loader processes", num_workers, 0),
    ):
        if value < least:
            raise UsageError(f"{what} must be at least {least}, got {value}")
    if not 0 <= rank < world_size:
        raise UsageError(f"rank {rank} is outside 0..{world_size - 1}")
    shard = DATASETS[dataset].train // world_size
    if shard == 0:
        raise UsageError(
            f"{dataset} has too few images for {world_size} ranks",
            hint=f"use at most {DATASETS[dataset].train} ranks",
        )
    if batch_size > shard:
        over = f" over {world_size} ranks" if world_size > 1 else ""
        raise UsageError(
            f"batch size {batch_size} is larger than a rank's share of {dataset}: {shard} images{over}",
            hint=f"use a batch size of at most {shard}",
        )
    training, validation = (
        Digits(train=train, seed=seed) if dataset == "digits" else Synthetic(dataset, train=train, seed=seed)
        for train in (True, False)
    )
    train_loader: Loader = DataLoader(
        training,
        batch_size=batch_size,
        sampler=ShardSampler(len(training), batch_size, rank, world_size, seed),
        collate_fn=_as_is,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        # Without its own generator a loader draws from the global one at every epoch.
        generator=_generator(seed, _LOADER_STREAM, rank),
    )
    validation_loader: Loader = DataLoader(
        validation,
        batch_size=min(max(batch_size, 64), len(validation)),
        collate_fn=_as_is,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=_generator(seed, _LOADER_STREAM, rank),
    )
    return train_loader, validation_loader
