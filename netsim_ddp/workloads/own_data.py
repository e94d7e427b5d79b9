"""A user's own data, ``my_module:data,key=value``: what it may be, and how every rank gets its share of it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, default_collate

from netsim_ddp.errors import NetsimError, UsageError, describe
from netsim_ddp.names import DATASET_CHOICES
from netsim_ddp.units import counted
from netsim_ddp.workloads.batched import EPOCH_STREAM, SPLIT_STREAM, Batch, Batched, generator
from netsim_ddp.workloads.models import seeded
from netsim_ddp.workloads.own import accepts, called, found

VALIDATION_SHARE = 0.2
ACCEPTED = (
    "a torch Dataset, or a function that returns a Dataset, two of them (training, validation), or two loaders: "
    "iterables of batches with a length"
)
PAIR = "give pairs of tensors (inputs, targets); for anything else netsim launch runs a script of your own"


class Examples(Batched):
    """A map-style ``Dataset`` of pairs (input, target), stacked as torch's ``default_collate`` does."""

    def __init__(self, name: str, dataset: Dataset[Any]) -> None:
        self._name, self._dataset = name, dataset
        try:
            self.length = len(dataset)  # type: ignore[arg-type]  # whether it has one is what is asked
        except (Exception, SystemExit) as error:  # whatever the user's class raises
            raise UsageError(
                f"dataset {name!r} has no length: {describe(error)}", hint="give its class __len__"
            ) from error
        if self.length < 1:
            raise UsageError(f"dataset {name!r} is empty", hint="return examples from it")

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        whole = getattr(self._dataset, "__getitems__", None)
        try:
            examples = [self._dataset[index] for index in indices] if whole is None else whole(list(indices))
            stacked = default_collate(examples)
        except NetsimError:
            raise
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"dataset {self._name!r}: reading examples {indices[0]} ... failed: {describe(error)}",
                hint=PAIR,
            ) from error
        return as_batch(self._name, stacked)


class Turns:
    """A user's own loader: one rank's batches of it, every ``world_size``-th, cut to whole rounds.

    Attributes:
        sampler: itself: where an epoch, and the place in it, are set, as of a ``DataLoader``.
    """

    def __init__(self, name: str, loader: Any, rank: int, world_size: int, seed: int) -> None:
        self._name, self._loader, self._rank, self._world_size, self._seed = (
            name,
            loader,
            rank,
            world_size,
            seed,
        )
        try:
            batches = len(loader)
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"dataset {name!r}: a loader has no length: {describe(error)}",
                hint="a loader is an iterable of batches with len(); of an IterableDataset give batches a length",
            ) from error
        self._length = batches // world_size
        if self._length < 1:
            raise UsageError(
                f"dataset {name!r}: a loader has {counted(batches, 'batch', 'batches')} for "
                f"{counted(world_size, 'rank')}",
                hint="smaller batches, or fewer --workers",
            )
        self.epoch = self.first_batch = 0
        self.sampler = self

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch and the batch to start at; batches before it are read and left out."""
        self.epoch, self.first_batch = epoch, first_batch
        for part in (self._loader, getattr(self._loader, "sampler", None)):
            if (set_epoch := getattr(part, "set_epoch", None)) is not None:
                set_epoch(epoch)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        begin, end = self.first_batch, self._length
        mine = islice(self._batches(), begin * self._world_size + self._rank, None, self._world_size)
        for _ in range(begin, end):
            batch = next(mine, None)
            if batch is None:
                raise UsageError(
                    f"dataset {self._name!r}: a loader ended before it had given its "
                    f"{counted(end * self._world_size, 'batch', 'batches')}",
                    hint="have its len() be the number of batches, and iter() start anew each time",
                )
            yield as_batch(self._name, batch)

    def _batches(self) -> Iterator[Any]:
        """All batches of the epoch. A shuffle is drawn when the first one is asked for: the same on all ranks."""
        key = int(generator(self._seed, EPOCH_STREAM, self.epoch).initial_seed() % 2**31)
        try:
            with all_seeded(key):
                batches = iter(self._loader)
                first = next(batches, None)
            if first is not None:
                yield first
                yield from batches
        except NetsimError:
            raise
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"dataset {self._name!r}: reading a batch failed: {describe(error)}", hint=PAIR
            ) from error


def own_data(
    text: str, *, batch_size: int, rank: int, world_size: int, seed: int
) -> tuple[Examples, Examples] | tuple[Turns, Turns]:
    """Training and validation data of ``my_module:data``.

    It is a ``torch.utils.data.Dataset``, or a class or function that returns what is accepted: a Dataset, of which a
    fifth, drawn from ``seed``, is for validation; two of them (training, validation); or two loaders, each an iterable
    of batches with a length. An example is a pair (input, target), a batch a pair of tensors with as many rows. The
    function gets the options, and of ``batch_size``, ``seed``, ``rank`` and ``world_size`` those that it has parameters
    for.

    Datasets are shuffled and split over the ranks as netsim's own are, in batches of ``batch_size``. Of a loader, whose
    batches are of its own size, rank r takes batches r, r + P, ...; where the function takes ``rank`` and
    ``world_size``, it has split the data itself and each rank takes all of its loader. torch's, numpy's and Python's
    random numbers are the same on all ranks while the function runs, and while a loader begins an epoch.

    Raises:
        UsageError: no such module or attribute, an option that it does not take, or something else than what
            is accepted.
    """
    value, options = found("dataset", text, DATASET_CHOICES)
    splits_itself = False
    if callable(value) and not isinstance(value, Dataset):
        splits_itself = accepts(value, "rank") and accepts(value, "world_size")
        with all_seeded(seed):
            value = called(
                "dataset",
                text,
                value,
                options,
                batch_size=batch_size,
                seed=seed,
                rank=rank,
                world_size=world_size,
            )
    elif options:
        raise UsageError(
            f"dataset {text!r} is made already, and takes no options", hint="name its class, or a function"
        )
    if isinstance(value, Dataset) and not isinstance(value, IterableDataset):
        return _halves(text, value, seed)
    pair = value if isinstance(value, tuple | list) and len(value) == 2 else ()
    if pair and all(isinstance(each, Dataset) and not isinstance(each, IterableDataset) for each in pair):
        return Examples(text, pair[0]), Examples(text, pair[1])
    if pair and all(
        hasattr(each, "__iter__") and not isinstance(each, Dataset | Tensor | str | Mapping) for each in pair
    ):
        share = (0, 1) if splits_itself else (rank, world_size)
        return Turns(text, pair[0], *share, seed), Turns(text, pair[1], 0, 1, seed)
    raise UsageError(f"dataset {text!r} is {_described(value)}", hint=f"name {ACCEPTED}")


def classes_of(data: object) -> int | None:
    """How many classes a user's data say that they have: ``num_classes``, or the length of ``classes``."""
    inner = data
    while inner is not None:
        count, names = getattr(inner, "num_classes", None), getattr(inner, "classes", None)
        if isinstance(count, int) and count > 0:
            return count
        if isinstance(names, Sequence | Mapping) and names:
            return len(names)
        inner = next(
            (
                part
                for name in ("_dataset", "_loader", "dataset")
                if (part := getattr(inner, name, None)) is not None
            ),
            None,
        )
    return None


def first_of(data: object, count: int, seed: int) -> Batch:
    """At most ``count`` rows of inputs and targets of what :func:`own_data` returns; the generators of random numbers
    are put back."""
    with all_seeded(seed):
        if isinstance(data, Examples):
            return data.__getitems__(range(min(count, len(data))))
        assert isinstance(data, Turns)
        inputs, targets = next(iter(data))
    return inputs[:count], targets[:count]


def as_batch(name: str, found: object) -> Batch:
    """``found`` as inputs and targets.

    Raises:
        UsageError: it is no pair of tensors with equally many rows.
    """
    if (
        isinstance(found, tuple | list)
        and len(found) == 2
        and all(isinstance(part, Tensor) and part.dim() > 0 for part in found)
        and len(found[0]) == len(found[1]) > 0
    ):
        return found[0], found[1]
    raise UsageError(f"dataset {name!r} gives batches that are {_described(found)}", hint=PAIR)


@contextmanager
def all_seeded(seed: int) -> Iterator[None]:
    """:func:`seeded`, with Python's and numpy's random numbers too."""
    python, arrays = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with seeded(seed):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def _halves(text: str, dataset: Dataset[Any], seed: int) -> tuple[Examples, Examples]:
    length = Examples(text, dataset).length
    if length < 2:
        raise UsageError(
            f"dataset {text!r} has one example, and none to validate on", hint="give two at least"
        )
    order = torch.randperm(length, generator=generator(seed, SPLIT_STREAM)).tolist()
    held = max(1, round(VALIDATION_SHARE * length))
    return tuple(
        Examples(text, Subset(dataset, part)) for part in (sorted(order[held:]), sorted(order[:held]))
    )  # type: ignore[return-value]


def _described(value: object) -> str:
    if isinstance(value, tuple | list):
        inside = ", ".join(_described(each) for each in value[:3]) + (", ..." if len(value) > 3 else "")
        return f"{type(value).__name__} ({inside})"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with the keys {', '.join(map(str, list(value)[:5]))}"
    if isinstance(value, Tensor):
        return f"Tensor {list(value.shape)}"
    return type(value).__name__
