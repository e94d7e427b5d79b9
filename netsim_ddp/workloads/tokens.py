"""Sequences of tokens for a language model: the bytes of a text, and generated words."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from netsim_ddp.errors import UsageError
from netsim_ddp.names import DATASETS
from netsim_ddp.units import counted
from netsim_ddp.workloads.batched import (
    NOISE_STREAM,
    SPLIT_STREAM,
    Batch,
    Batched,
    generator,
    scattered,
)
from netsim_ddp.workloads.corpus import read_corpus

(CONTEXT,) = DATASETS["text"].shape
CONTEXTS_PER_BLOCK = 16
BLOCK = CONTEXTS_PER_BLOCK * CONTEXT + 1  # the last context's last target is one token further
_VALIDATION_SHARE = 0.1


class Text(Batched):
    """A text's bytes as tokens, int64 ``[n, 64]``; the targets, of the same shape, are each position's next byte.

    The text is cut into blocks of 1,025 bytes that share no byte, a tenth of which, drawn from ``seed``, is for
    validation; a block holds 16 contexts, each of which begins where the one before ends. So no byte of a validation
    context, targets included, is in any training context.

    Raises:
        UsageError: too little text for one block in each split; else as :func:`read_corpus`.
    """

    def __init__(self, text: str | None, *, train: bool, seed: int) -> None:
        self.tokens = raw_tokens(text)
        blocks = len(self.tokens) // BLOCK
        if blocks < 2:
            raise UsageError(
                f"{text or 'the text'} holds {counted(len(self.tokens), 'byte')}: too little to train on",
                hint=f"name a text of at least {2 * BLOCK} bytes",
            )
        held_out = max(1, round(_VALIDATION_SHARE * blocks))
        order = torch.randperm(blocks, generator=generator(seed, SPLIT_STREAM))
        chosen = order[held_out:] if train else order[:held_out]
        within = CONTEXT * torch.arange(CONTEXTS_PER_BLOCK)
        self.starts = (BLOCK * chosen.sort().values.unsqueeze(1) + within).flatten()
        self.length = len(self.starts)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        positions = self.starts[torch.as_tensor(indices)].unsqueeze(1) + torch.arange(CONTEXT)
        return self.tokens[positions].long(), self.tokens[positions + 1].long()


@functools.cache
def raw_tokens(text: str | None) -> Tensor:
    """uint8 ``[bytes of the text]``; processes forked afterwards share it."""
    return torch.frombuffer(bytearray(read_corpus(text)), dtype=torch.uint8)


class SyntheticText(Batched):
    """Generated words, int64 ``[n, 64]``, as frequent as a language's: the r-th has a probability of about 1/r (Zipf).

    A word follows from the one before half of the time, so that there is something to learn. Contexts are windows into
    one stream of a million words, and those of the two splits overlap: it is for throughput, not for accuracy.
    """

    def __init__(self, name: str, *, train: bool, seed: int) -> None:
        info = DATASETS[name]
        self.length, (self.context,), self._split = info.examples_in(train=train), info.shape, int(train)
        self._stream = _stream(info.classes, seed)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        room = len(self._stream) - self.context
        starts = torch.tensor([scattered(2 * index + self._split, room) for index in indices])
        positions = starts.unsqueeze(1) + torch.arange(self.context)
        return self._stream[positions].long(), self._stream[positions + 1].long()


@functools.lru_cache(maxsize=1)
def _stream(classes: int, seed: int, length: int = 2**20) -> Tensor:
    """int32 ``[length]``: words that are drawn, and words that follow from the word before."""
    random = generator(seed, NOISE_STREAM)
    drawn = (classes ** torch.rand(length, generator=random, dtype=torch.float64)).long() - 1
    follows = torch.rand(length, generator=random) < 0.5
    follows[0] = False
    # How many words ago the last drawn one was; its successor's successor is a fixed function of it.
    positions = torch.arange(length)
    since = positions - torch.where(follows, 0, positions).cummax(0).values
    return ((drawn[positions - since] + since * 7919) % classes).int()
