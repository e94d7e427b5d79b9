"""The coding of entries in plain torch: any device, no compiler, the same bytes as the compiled code.

Words are int64 here, each holding 32 bits, because torch has no arithmetic on uint32.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 2048
LARGEST_RICE = 30
RICE_SHIFT = 27
_WORDS = (1 << RICE_SHIFT) - 1
_HALF = 0xFFFFFFFF


def pack(indices: Tensor) -> Tensor | None:
    """The index section of ``indices`` [k], k > 0, as words; None where they do not ascend.

    One look of the host at the device, at the end.
    """
    wide = indices.long()
    k, device = wide.numel(), wide.device
    number = torch.arange(k, device=device)
    block, place = number // BLOCK, number % BLOCK
    blocks = -(-k // BLOCK)
    counts = torch.full((blocks,), BLOCK - 1, dtype=torch.int64, device=device)
    counts[-1] = (k - 1) % BLOCK
    coded = place[1:] > 0  # the first of a block stands in the table
    steps = wide.diff()
    ascending = (steps > 0).all()
    gaps, owner, place = (steps - 1)[coded], block[1:][coded], place[1:][coded] - 1
    rices = torch.arange(LARGEST_RICE + 1, device=device)
    sizes = torch.stack([_per_block(gaps >> rice, owner, blocks) for rice in range(LARGEST_RICE + 1)])
    sizes += counts * (rices[:, None] + 1)
    rice = ((sizes << 5) + rices[:, None]).min(0).values & 31  # of equal sizes the smaller parameter
    unary = (sizes.gather(0, rice[None])[0] - counts * rice + 31) >> 5
    lengths = ((counts * rice + 31) >> 5) + unary
    starts = lengths.cumsum(0) - lengths
    total, ordered = torch.stack([lengths.sum(), ascending.long()]).tolist()
    if not ordered:
        return None
    streams = torch.zeros(total + 1, dtype=torch.int64, device=device)
    shift = rice[owner]
    at = place * shift
    word = starts[owner] + (at >> 5)
    low = (gaps & ((1 << shift) - 1)) << (at & 31)
    # Every bit is set once, so adding is setting.
    streams.index_add_(0, word, low & _HALF)
    streams.index_add_(0, word + 1, low >> 32)
    bit = (gaps >> shift).cumsum(0)
    before = torch.zeros_like(counts)
    before[1:] = bit[counts.cumsum(0)[:-1] - 1]
    bit = bit - before[owner] + place
    streams.index_add_(0, (starts + lengths - unary)[owner] + (bit >> 5), 1 << (bit & 31))
    table = torch.stack([wide[::BLOCK], (rice << RICE_SHIFT) | unary], 1).reshape(-1)
    return torch.cat([table, streams[:total]])


def unpack(words: Tensor, k: int, numel: int) -> Tensor | None:
    """The ``k`` > 0 indices that :func:`pack` made ``words`` of, int32; None where nothing below ``numel`` can be."""
    blocks = -(-k // BLOCK)
    device = words.device
    table, streams = words[: 2 * blocks].view(-1, 2), words[2 * blocks :]
    counts = torch.full((blocks,), BLOCK - 1, dtype=torch.int64, device=device)
    counts[-1] = (k - 1) % BLOCK
    rice, unary = table[:, 1] >> RICE_SHIFT, table[:, 1] & _WORDS
    lows = (counts * rice + 31) >> 5
    lengths = lows + unary
    most = counts + (numel >> rice)
    wrong = (rice > LARGEST_RICE) | (unary < (counts + 31) >> 5) | (unary > (most + 31) >> 5)
    if bool(wrong.any()) or int(lengths.sum()) != streams.numel():
        return None
    starts = lengths.cumsum(0) - lengths
    owner_of_word = torch.repeat_interleave(torch.arange(blocks, device=device), unary)
    within = torch.arange(owner_of_word.numel(), device=device) - (unary.cumsum(0) - unary)[owner_of_word]
    high = streams[(starts + lows)[owner_of_word] + within]
    word, bit = ((high[:, None] >> torch.arange(32, device=device)) & 1).nonzero(as_tuple=True)
    owner = owner_of_word[word]
    if not torch.equal(torch.bincount(owner, minlength=blocks), counts):
        return None
    first_of = counts.cumsum(0) - counts
    place = torch.arange(owner.numel(), device=device) - first_of[owner]
    shift = rice[owner]
    at = place * shift
    padded = torch.cat([streams, streams.new_zeros(2)])
    pair = padded[starts[owner] + (at >> 5)] | (padded[starts[owner] + (at >> 5) + 1] << 32)
    low = (pair >> (at & 31)) & ((1 << shift) - 1)
    summed = torch.cat([low.new_zeros(1), low.cumsum(0)])
    position = within[word] * 32 + bit
    gap_sum = ((position - place) << shift) + summed[1:] - summed[first_of][owner]
    indices = torch.empty(k, dtype=torch.int64, device=device)
    indices[::BLOCK] = table[:, 0]
    number = torch.arange(owner.numel(), device=device) + owner + 1
    indices[number] = table[owner, 0] + gap_sum + place + 1
    if int(indices.max()) >= numel or int(indices.min()) < 0:
        return None
    return indices.to(torch.int32)


def _per_block(gaps: Tensor, owner: Tensor, blocks: int) -> Tensor:
    return torch.zeros(blocks, dtype=torch.int64, device=gaps.device).index_add_(0, owner, gaps)


def quantize(values: Tensor, group: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scales float32 [blocks] and levels int8 [k] of float32 ``values``; a negative ``seed`` rounds to nearest."""
    k = values.numel()
    blocks = -(-k // group)
    padded = torch.nn.functional.pad(values, (0, blocks * group - k)).view(blocks, group)
    scales = padded.abs().amax(1) / 127
    exact = padded / torch.where(scales > 0, scales, 1)[:, None]
    if seed < 0:
        levels = exact.round()
    else:
        counters = torch.arange(seed, seed + blocks * group, device=values.device).view(blocks, group)
        levels = (exact + _uniform(counters)).floor()
    levels = torch.where(scales[:, None] > 0, levels.clamp(-127, 127), 0)
    return scales, levels.to(torch.int8).view(-1)[:k]


def _uniform(counters: Tensor) -> Tensor:
    x = counters & _HALF
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _HALF
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _HALF
    x = x ^ (x >> 15)
    return (x >> 8).to(torch.float32) * 2.0**-24


def dequantize(scales: Tensor, levels: Tensor, group: int) -> Tensor:
    """float32 [k]."""
    largest = torch.finfo(torch.float32).max
    each = torch.repeat_interleave(scales, group)[: levels.numel()]
    return (levels.to(torch.float32) * each).clamp(-largest, largest)
