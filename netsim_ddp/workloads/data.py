"""Data for the ranks: which examples each of them sees, in which order, a batch at a time.

Everything is a function of the seed. torch's global random numbers are neither read nor moved.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from netsim_ddp.errors import UsageError
from netsim_ddp.names import DATASETS, check_dataset, is_own
from netsim_ddp.units import counted
from netsim_ddp.workloads.batched import EPOCH_STREAM, LOADER_STREAM, Batch, Batched, generator
from netsim_ddp.workloads.files import FILES, provide
from netsim_ddp.workloads.images import Digits, Read, Synthetic, raw_digits, raw_images
from netsim_ddp.workloads.own_data import Turns, own_data
from netsim_ddp.workloads.tokens import SyntheticText, Text, raw_tokens

Loader = DataLoader[Batch] | Turns
"""Batches of one rank; ``sampler.set_epoch(epoch)`` shuffles anew."""
START_METHODS = ("fork", "forkserver", "spawn")


class ShardSampler(Sampler[int]):
    """One rank's share of a shuffled epoch: every ``world_size``-th example, cut to whole batches.

    All ranks draw the same permutation from ``(seed, epoch)``; rank r takes positions r, r + P, r + 2P ...
    Shards never overlap and have the same number of batches, and step s uses the same examples over all
    ranks as one rank with a P times larger batch does. The remainder, fewer than P·batch_size examples, is
    dropped; another one each epoch.
    """

    def __init__(self, length: int, batch_size: int, rank: int, world_size: int, seed: int) -> None:
        self.length, self.rank, self.world_size, self.seed = length, rank, world_size, seed
        self.per_rank = length // world_size // batch_size * batch_size
        self.batch_size = batch_size
        self.epoch = self.first_batch = 0

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the permutation, and the batch to start at; call it before iterating the loader again.

        Batches before ``first_batch`` cost nothing: their examples are never asked for.
        """
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        """Of a whole epoch, wherever it starts."""
        return self.per_rank

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.length, generator=generator(self.seed, EPOCH_STREAM, self.epoch))
        mine = order[self.rank :: self.world_size][: self.per_rank]
        return iter(mine[self.first_batch * self.batch_size :].tolist())


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
    start_method: str | None = None,
    pin_memory: bool = False,
) -> tuple[Loader, Loader]:
    """Training and validation loaders of one rank.

    Batches are float32 ``[batch, channels, height, width]`` and int64 ``[batch]`` for images, int64 ``[batch, length]``
    twice for tokens, the targets being each position's next token. ``batch_size`` is per rank. Training data is sharded
    without overlap and reshuffled by ``loader.sampler.set_epoch(epoch)``; every rank gets the same number of whole
    batches (see :class:`ShardSampler` for what is dropped, and for starting in the middle of an epoch). Validation data
    is *not* sharded: every rank sees all of it in a fixed order, the last batch may be short, and one rank's accuracy
    is the accuracy. ``seed`` shuffles, and draws the split where the data set has none of its own (digits, text).

    Args:
        dataset: a name, or ``my_module:data``, as :func:`~netsim_ddp.workloads.own_data.own_data` takes it.
        data_dir: where the files of ``mnist``, ``fashion-mnist`` and ``cifar10`` are, laid out as torchvision does;
            by default ``netsim`` in the user's cache.
        download: fetch them where they are missing, once for all processes of a host.
        text: the file or folder that ``text`` reads; by default the standard library's own sources.
        num_workers: loader processes per rank; 0 is the faster choice for every dataset here.
        start_method: how loader processes start: ``fork``, ``forkserver`` or ``spawn``; by default as Python does.

    Raises:
        UsageError: unknown dataset, a batch larger than a rank's shard, numbers out of range, a text that is none.
        EnvironmentFault: files are missing or damaged, or cannot be downloaded.
    """
    dataset = check_dataset(dataset)
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
    if start_method not in (None, *START_METHODS):
        raise UsageError(
            f"start method {start_method!r} is not known", hint=f"choose from {', '.join(START_METHODS)}"
        )
    training: Batched | Turns
    validation: Batched | Turns
    if is_own(dataset):
        training, validation = own_data(
            dataset, batch_size=batch_size, rank=rank, world_size=world_size, seed=seed
        )
    else:
        training, validation = (
            _split(dataset, train, seed, data_dir=data_dir, download=download, text=text)
            for train in (True, False)
        )
    if isinstance(training, Turns) or isinstance(validation, Turns):
        return training, validation  # type: ignore[return-value]  # both are
    length, examples = len(training), DATASETS[dataset].examples if dataset in DATASETS else "examples"
    shard = length // world_size
    if shard == 0:
        raise UsageError(
            f"{dataset} has too few {examples} for {world_size} ranks",
            hint=f"use at most {counted(length, 'rank')}",
        )
    if batch_size > shard:
        over = f" over {world_size} ranks" if world_size > 1 else ""
        raise UsageError(
            f"batch size {batch_size} is larger than a rank's share of {dataset}: "
            f"{counted(shard, examples.removesuffix('s'))}{over}",
            hint=f"use a batch size of at most {shard}",
        )
    common: dict[str, Any] = {
        "collate_fn": tuple,  # __getitems__ has stacked the batch already
        "num_workers": num_workers,
        "multiprocessing_context": start_method if num_workers else None,
        "pin_memory": pin_memory,
    }
    train_loader: Loader = DataLoader(
        training,
        batch_size=batch_size,
        sampler=ShardSampler(length, batch_size, rank, world_size, seed),
        persistent_workers=num_workers > 0,
        # Without its own generator a loader draws from the global one at every epoch.
        generator=generator(seed, LOADER_STREAM, rank),
        **common,
    )
    return train_loader, DataLoader(
        validation,
        batch_size=min(max(batch_size, 64), len(validation)),
        generator=generator(seed, LOADER_STREAM, rank),
        **common,
    )


def preload(dataset: str, *, data_dir: str | None = None, text: str | None = None) -> None:
    """Read what does not depend on the rank, so that processes forked afterwards share it.

    Raises:
        UsageError, EnvironmentFault: as :func:`get_dataloaders`.
    """
    if dataset == "digits":
        raw_digits()
    elif dataset == "text":
        raw_tokens(_absolute(text))
    elif dataset in FILES:
        for train in (True, False):
            raw_images(dataset, provide(dataset, data_dir, download=False), train)


def _split(
    dataset: str,
    train: bool,
    seed: int,
    *,
    data_dir: str | Path | None,
    download: bool,
    text: str | Path | None,
) -> Batched:
    if text is not None and dataset != "text":
        raise UsageError(f"a text is read by the dataset text, not by {dataset}", hint="write --dataset text")
    if dataset == "text":
        return Text(_absolute(text), train=train, seed=seed)
    if dataset == "digits":
        return Digits(train=train, seed=seed)
    if dataset in FILES:
        return Read(dataset, provide(dataset, data_dir, download=download), train=train)
    return (Synthetic if DATASETS[dataset].kind == "images" else SyntheticText)(
        dataset, train=train, seed=seed
    )


def _absolute(text: str | Path | None) -> str | None:
    return None if text is None else os.path.abspath(Path(text).expanduser())
