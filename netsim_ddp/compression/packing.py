"""Ascending indices as few bytes: Golomb-Rice codes of the gaps between them.

An index of a 1% selection carries 8.1 bits of information, its code about 8.2. The format of k indices, in 32-bit
little-endian words:

* a table with two words per block of up to 2048 indices: the block's first index; then, in 27 bits, the number of words
  of its unary part, and above them its Rice parameter r;
* for each block, of every further index the r low bits of its gap (the positions skipped since the one before), packed
  from the lowest bit up and filled to a whole word; then the unary part: for each gap as many 0 bits as gap >> r says,
  and a 1, filled to a whole word.

Each block takes the r that makes it smallest, so dense layers and sparse ones may follow one another. With r = 0 the
unary part *is* a bitmap of the stretch, which is what a selection of more than a third becomes. Blocks are independent,
and threads share them out.

The compiled code of :mod:`.native.numba_codec` works on the CPU, its torch twin anywhere; the bytes are the same.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netsim_ddp.compression.kernels import require
from netsim_ddp.compression.native import compiled_module
from netsim_ddp.compression.native import torch_codec as twin

compiled = compiled_module("numba_codec")
_T = TypeVar("_T")

BLOCK = twin.BLOCK
LARGEST_INDEX = 2**31 - 1
_WORTH_A_THREAD = 1 << 17  # entries per thread below which waking one costs as much as it saves


def capacity(k: int, numel: int) -> int:
    """Bytes that no section of up to ``k`` indices below ``numel`` exceeds.

    A block of c gaps that skip s positions takes at most c (log2(1 + s/c) + 3) bits, with r = floor(log2(s/c)); the sum
    over blocks is largest where they are alike.
    """
    if k == 0:
        return 0
    return 4 * (math.ceil(k * (math.log2(1 + numel / k) + 3) / 32) + 1 + 4 * -(-k // BLOCK))


def expected(k: int, numel: int) -> int:
    """About what ``k`` indices take that lie anywhere below ``numel`` alike: 2% above their entropy."""
    if k == 0:
        return 0
    p = min(k / max(numel, 1), 1.0)
    entropy = -math.log2(p) - ((1 - p) / p * math.log2(1 - p) if p < 1 else 0.0)
    return math.ceil(k * max(entropy, 1.0) * 1.02 / 32) * 4 + 8 * -(-k // BLOCK)


def pack(indices: Tensor, threads: int, out: Tensor | None = None) -> Tensor:
    """The section of int32 or int64 ``indices`` [k] between 0 and :data:`LARGEST_INDEX`: uint8, on their device.

    Args:
        out: uint8, a vector on their device: the section may be made at its front.

    Raises:
        ValueError: they do not ascend.
    """
    k = indices.numel()
    if k == 0:
        return torch.empty(0, dtype=torch.uint8, device=indices.device)
    if compiled is None or indices.device.type != "cpu":
        words = twin.pack(indices)
        if words is None:
            raise ValueError("indices must ascend")
        return _octets(words)
    if indices.dtype != torch.int32:  # they ascend before large ones wrap around
        require(bool((indices[1:] > indices[:-1]).all()), "indices must ascend")
        indices = indices.to(torch.int32)
    source = indices.detach().contiguous().numpy()
    blocks = -(-k // BLOCK)
    cuts = cuts_of(blocks, k, threads)
    whole = len(cuts) == 2 and sys.byteorder == "little"
    if whole and out is not None and out.is_contiguous() and out.data_ptr() % 4 == 0:
        size = 4 * compiled.pack_whole(source, out[: out.numel() // 4 * 4].numpy().view(np.uint32))
        require(size > 0, "indices must ascend")
        if size <= out.numel():
            return out[:size]
    table: NDArray[np.uint32] = np.empty(2 * blocks, np.uint32)
    require(all(share_out(functools.partial(compiled.plan, source, table), cuts)), "indices must ascend")
    starts: NDArray[np.int64] = np.empty(blocks, np.int64)
    length = int(compiled.check(table, k, int(source[-1]) + 1, starts))
    section = np.concatenate([table, np.empty(length, np.uint32)])
    share_out(functools.partial(compiled.pack, source, table, starts, section[table.shape[0] :]), cuts)
    return torch.from_numpy(section.astype("<u4", copy=False).view(np.uint8))


def unpack(section: Tensor, k: int, numel: int, threads: int) -> Tensor | None:
    """The ``k`` indices below ``numel`` that ``section`` (uint8) holds: int32, ascending; None where it is damaged."""
    blocks = -(-k // BLOCK)
    if section.numel() % 4 or section.numel() < 8 * blocks or (k == 0 and section.numel()):
        return None
    if k == 0:
        return torch.empty(0, dtype=torch.int32, device=section.device)
    numel = min(numel, LARGEST_INDEX + 1)
    by_torch = compiled is None or section.device.type != "cpu"
    indices = (
        twin.unpack(_words(section), k, numel) if by_torch else _unpack_compiled(section, k, numel, threads)
    )
    if indices is not None and not bool((indices[BLOCK::BLOCK] > indices[BLOCK - 1 : k - 1 : BLOCK]).all()):
        return None
    return indices


def _unpack_compiled(section: Tensor, k: int, numel: int, threads: int) -> Tensor | None:
    assert compiled is not None
    # A copy: the section may start anywhere, and what is checked must not change before it is used.
    whole = np.frombuffer(bytearray(section.numpy()), "<u4").astype(np.uint32, copy=False)
    blocks = -(-k // BLOCK)
    table, words = whole[: 2 * blocks], whole[2 * blocks :]
    starts: NDArray[np.int64] = np.empty(blocks, np.int64)
    if compiled.check(table, k, numel, starts) != words.shape[0]:
        return None
    indices: NDArray[np.int32] = np.empty(k, np.int32)
    unpack_blocks = functools.partial(compiled.unpack, table, words, k, numel, starts, indices)
    return torch.from_numpy(indices) if all(share_out(unpack_blocks, cuts_of(blocks, k, threads))) else None


def cuts_of(count: int, k: int, threads: int) -> list[int]:
    """Where ``count`` blocks, or whatever holds ``k`` entries together, are cut into parts, one for each thread that is
    worth waking; 0 and ``count`` included."""
    threads = max(1, min(threads, k // _WORTH_A_THREAD))
    return [count * t // threads for t in range(threads + 1)]


def share_out(work: Callable[[int, int], _T], cuts: list[int]) -> list[_T]:
    """Returns ``work(begin, end)`` of every part, each done by a thread of its own."""
    if len(cuts) == 2:
        return [work(*cuts)]
    from netsim_ddp.compression.native.fused import together  # which imports numba

    return together([functools.partial(work, *part) for part in itertools.pairwise(cuts)])


def _octets(words: Tensor) -> Tensor:
    """uint8 of int64 ``words`` that hold 32 bits each, little endian whatever the machine."""
    return ((words[:, None] >> torch.arange(0, 32, 8, device=words.device)) & 0xFF).to(torch.uint8).view(-1)


def _words(octets: Tensor) -> Tensor:
    return (octets.view(-1, 4).long() << torch.arange(0, 32, 8, device=octets.device)).sum(1)
