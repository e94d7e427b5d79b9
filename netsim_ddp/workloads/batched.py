"""What every data set here is: examples that come a batch at a time, and random numbers that depend on keys alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

Batch = tuple[Tensor, Tensor]

SPLIT_STREAM, EPOCH_STREAM, NOISE_STREAM, LOADER_STREAM = range(4)
"""One stream of random numbers per purpose: what is drawn for one never moves another."""


def generator(*keys: int) -> torch.Generator:
    """A generator that depends on all keys; unlike ``seed + epoch``, seed 0 epoch 1 is not seed 1 epoch 0."""
    state = int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state)


class Batched(Dataset[Batch]):
    """Examples that come a batch at a time: ``self[i]`` is one pair, ``__getitems__`` one stacked batch.

    Attributes:
        length: how many examples there are.
    """

    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        inputs, targets = self.__getitems__([index])
        return inputs[0], targets[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Inputs and targets, each with ``len(indices)`` rows."""
        raise NotImplementedError


def scattered(number: int, positions: int) -> int:
    """Returns a position in 0..positions-1 for ``number``, far from its neighbours' (Knuth's multiplicative hash)."""
    return number * 2_654_435_761 % 2**32 % positions
