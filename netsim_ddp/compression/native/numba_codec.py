"""Compiled coding of entries; import only through :mod:`netsim_ddp.compression.packing` and
:mod:`netsim_ddp.compression.rounding`, which describe the formats and hold the same in torch.

Nothing here checks bounds where it writes: callers give arrays of the sizes that :func:`plan` and :func:`check` found.
Scalars are int64 throughout, because numba makes a float of int64 and uint64 together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from netsim_ddp.compression.native import keys, vector
from netsim_ddp.compression.native.jit import F32, I32, I64, AnyInt, jit

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I8 = NDArray[np.int8]
Table = NDArray[np.int64]

BLOCK = 2048
LARGEST_RICE = 30
RICE_SHIFT = 27
_WORDS = (1 << RICE_SHIFT) - 1
_HALF = 0xFFFFFFFF
FLOAT32, FLOAT16, BFLOAT16, LEVELS = 0, 1, 2, 3
"""How values are coded, for :func:`decode`."""
# Of float16, as int32; magnitudes are shifted to where float32 has its fraction.
_SIGN, _MAGNITUDE, _FRACTION = np.int32(0x8000), np.int32(0x7FFF), np.int32(0x3FF)
_SMALLEST, _ENDLESS = np.int32(0x400 << 13), np.int32(0x7C00 << 13)
# Of float32, what rounding to 16 bits needs.
_LOWER, _LARGEST_BFLOAT = np.int32(0x7FFFFFFF), np.int32(0x7F7F0000)
_LARGEST_HALF, _SMALLEST_HALF = np.float32(65504.0), np.float32(2.0**-14)
_LARGEST_HALF_BITS = np.int32(0x477FE000)
_REBIASED, _TO_INFINITY = np.int32((127 - 15) << 23), np.int32((255 - 31) << 23)


@jit
def _unary_bits(gaps: I32, rice: int) -> int:
    shift = np.int32(rice)
    total = 0
    for i in range(gaps.shape[0]):
        total += int(gaps[i] >> shift)
    return total + len(gaps)


@jit
def plan(indices: I32, table: U32, begin: int, end: int) -> bool:
    """Fill the ``table`` of blocks ``begin`` to ``end``; False where the indices do not ascend."""
    gaps = np.empty(BLOCK, np.int32)
    for block in range(begin, end):
        part = indices[block * BLOCK : min((block + 1) * BLOCK, indices.shape[0])]
        count = part.shape[0] - 1
        disorder = 0
        for i in range(count):
            disorder |= int(part[i + 1] <= part[i])
            gaps[i] = part[i + 1] - part[i] - 1
        if disorder or (block > 0 and indices[block * BLOCK] <= indices[block * BLOCK - 1]):
            return False
        used = gaps[:count]
        rice = 0
        while count > 0 and count << (rice + 1) <= int(part[count]) - int(part[0]) - count:
            rice += 1
        unary = _unary_bits(used, rice)
        # The size is a convex function of the parameter, so the first rise ends the search.
        while rice > 0:
            lower = _unary_bits(used, rice - 1)
            if lower - count > unary:
                break
            rice, unary = rice - 1, lower
        while rice < LARGEST_RICE:
            higher = _unary_bits(used, rice + 1)
            if higher + count >= unary:
                break
            rice, unary = rice + 1, higher
        table[2 * block] = part[0]
        table[2 * block + 1] = (rice << RICE_SHIFT) | ((unary + 31) >> 5)
    return True


@jit
def check(table: U32, k: int, numel: int, starts: I64) -> int:
    """Where each block's words start, behind the table, and how many words there are in all; -1 where ``table`` cannot
    belong to ``k`` entries among ``numel`` positions."""
    at = 0
    for block in range(starts.shape[0]):
        count = min(BLOCK, k - block * BLOCK) - 1
        rice, unary = int(table[2 * block + 1]) >> RICE_SHIFT, int(table[2 * block + 1]) & _WORDS
        starts[block] = at
        most = count + (numel >> rice)
        if rice > LARGEST_RICE or unary < (count + 31) >> 5 or unary > (most + 31) >> 5:
            return -1
        at += ((count * rice + 31) >> 5) + unary
    return at


@jit
def pack(indices: I32, table: U32, starts: I64, words: U32, begin: int, end: int) -> None:
    """Write the words of blocks ``begin`` to ``end`` to their places."""
    for block in range(begin, end):
        part = indices[block * BLOCK : min((block + 1) * BLOCK, indices.shape[0])]
        count = part.shape[0] - 1
        rice, unary = int(table[2 * block + 1]) >> RICE_SHIFT, int(table[2 * block + 1]) & _WORDS
        mask = (1 << rice) - 1
        low = words[starts[block] : starts[block] + ((count * rice + 31) >> 5)]
        high = words[starts[block] + low.shape[0] : starts[block] + low.shape[0] + unary]
        high[:] = 0
        pending, filled, at, bit = 0, 0, 0, -1
        for i in range(count):
            gap = int(part[i + 1]) - int(part[i]) - 1
            bit += (gap >> rice) + 1
            high[np.uint64(bit >> 5)] |= np.uint32(1 << (bit & 31))
            pending |= (gap & mask) << filled
            filled += rice
            if filled >= 32:
                low[np.uint64(at)] = pending & _HALF
                pending >>= 32
                filled -= 32
                at += 1
        if filled > 0:
            low[np.uint64(at)] = pending & _HALF


@jit
def pack_whole(indices: I32, words: U32) -> int:
    """Write the section of ``indices``, one or more, to the front of ``words``.

    Returns:
        its length; nothing is written where there is less room. -1 where the indices do not ascend.
    """
    blocks = -(-indices.shape[0] // BLOCK)
    table, starts = np.empty(2 * blocks, np.uint32), np.empty(blocks, np.int64)
    if not plan(indices, table, 0, blocks):
        return -1
    length: int = check(table, indices.shape[0], int(indices[-1]) + 1, starts) + 2 * blocks
    if length <= words.shape[0]:
        words[: 2 * blocks] = table
        pack(indices, table, starts, words[2 * blocks : length], 0, blocks)
    return length


@jit
def unpack(
    table: U32, words: U32, k: int, numel: int, starts: I64, indices: I32, begin: int, end: int
) -> bool:
    """Write the indices of blocks ``begin`` to ``end``, each block's ascending and below ``numel``; False where they
    cannot be. ``words`` are what :func:`check` counted."""
    for block in range(begin, end):
        out = indices[block * BLOCK : min((block + 1) * BLOCK, k)]
        count = out.shape[0] - 1
        rice, unary = int(table[2 * block + 1]) >> RICE_SHIFT, int(table[2 * block + 1]) & _WORDS
        mask = (1 << rice) - 1
        # A low part may be read together with the word behind it: there is one, the unary part's first.
        low = words[starts[block] :]
        high = low[(count * rice + 31) >> 5 :][:unary]
        first = int(table[2 * block])
        if first >= numel:
            return False
        out[0] = first
        done, lows = 0, first
        for w in range(unary):
            bits = high[w]
            while bits != np.uint32(0):
                if done == count:
                    return False
                bit = w * 32 + vector.trailing_zeros(bits)
                bits = np.uint32(bits & np.uint32(bits - np.uint32(1)))
                if rice > 0:
                    at = done * rice
                    pair = int(low[np.uint64(at >> 5)]) | (int(low[np.uint64((at >> 5) + 1)]) << 32)
                    lows += (pair >> (at & 31)) & mask
                index = lows + ((bit - done) << rice) + done + 1
                if index >= numel:
                    return False
                done += 1
                out[np.uint64(done)] = index
        if done != count:
            return False
    return True


@jit
def quantize(values: F32, scales: F32, levels: I8, received: F32, group: int, seed: int) -> None:
    """Round ``values`` to ``levels`` * scale, one scale per ``group`` values; a negative ``seed`` is to nearest."""
    largest = np.float32(np.finfo(np.float32).max)
    for block in range(scales.shape[0]):
        part = values[block * group : (block + 1) * group]
        out, back = levels[block * group : (block + 1) * group], received[block * group : (block + 1) * group]
        most = np.float32(0)
        for i in range(part.shape[0]):
            most = max(most, abs(part[i]))
        scale = np.float32(most / np.float32(127))
        scales[block] = scale
        divisor = scale if scale > 0 else np.float32(1)
        for i in range(part.shape[0]):
            exact = np.float32(part[i] / divisor)
            if seed < 0:
                level = np.float32(np.rint(exact))
            else:
                level = np.float32(np.floor(np.float32(exact + _uniform(seed + block * group + i))))
            level = min(max(level, np.float32(-127)), np.float32(127))
            level = level if scale > 0 else np.float32(0)
            out[i] = np.int8(level)
            back[i] = min(max(np.float32(level * scale), -largest), largest)


@jit
def _uniform(counter: int) -> np.float32:
    """A number in [0, 1) for a counter below 2**32: a mixing function, so that order and threads do not matter."""
    x = counter & _HALF
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _HALF
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _HALF
    x = x ^ (x >> 15)
    return np.float32(np.float32(x >> 8) * np.float32(2.0**-24))


@jit
def dequantize(scales: F32, levels: I8, group: int, values: F32) -> None:
    largest = np.float32(np.finfo(np.float32).max)
    for block in range(scales.shape[0]):
        part, out = levels[block * group : (block + 1) * group], values[block * group : (block + 1) * group]
        scale = scales[block]
        for i in range(part.shape[0]):
            out[i] = min(max(np.float32(np.float32(part[i]) * scale), -largest), largest)


@jit
def decode(
    memory: U8,
    messages: Table,
    first: int,
    last: int,
    width: int,
    kind: int,
    group: int,
    divisor: float,
    values: F32,
    indices: I32,
    peaks: F32,
) -> int:
    """Decode messages ``first`` to ``last`` of those that lie in ``memory``.

    Args:
        messages: int64 [P, 5]; of each, where its indices and its values begin and where they end, in bytes, how many
            entries it has, and how many positions it addresses.
        width: bytes of an index; 0 where they are packed. kind: of the values. group: of :data:`LEVELS`.
        divisor: of the values.
        values, indices: written, the entries of one message behind those of the one before.
        peaks: float32 [P], written: the largest magnitude of each message's values, before they are divided.

    Returns:
        The first message that is damaged, or -1.
    """
    at = 0
    for m in range(first):
        at += messages[m, 3]
    for m in range(first, last):
        begin, split, end = messages[m, 0], messages[m, 1], messages[m, 2]
        count, numel = messages[m, 3], messages[m, 4]
        where, found = indices[at : at + count], values[at : at + count]
        at += count
        peaks[m] = 0
        if width == 0:
            good = _packed(memory[begin:split].view(np.uint32), count, numel, where)
        elif width == 4:
            good = _plain(memory[begin:split].view(np.int32), numel, where)
        else:
            good = _plain(memory[begin:split].view(np.int64), numel, where)
        if not good:
            return m
        if count > 0:
            _widen(memory[split:end], kind, group, found)
            key = keys.max_key(found.view(np.int32))
            if key >= keys.INF_KEY:
                return m
            bits = np.array([key], np.int32)
            peaks[m] = bits.view(np.float32)[0]
            if divisor != 1.0:
                # A product with the inverse is not the quotient's bits where the divisor is no power of two.
                by = np.float32(divisor)
                for i in range(count):
                    found[i] = found[i] / by
    return -1


@jit
def encode(
    values: F32,
    indices: I32,
    bounds: I64,
    memory: U8,
    places: Table,
    first: int,
    last: int,
    width: int,
    kind: int,
    group: int,
    seed: int,
    received: F32,
    sizes: I64,
) -> int:
    """Encode messages ``first`` to ``last``: what :func:`decode` reads.

    Args:
        bounds: int64 [P + 1]; message m has the entries from ``bounds[m]`` to ``bounds[m + 1]``.
        places: int64 [P, 2]; where in ``memory`` its room begins, a multiple of 8, and ends.
        width, kind, group: as in :func:`decode`. seed: of stochastic rounding; negative: to nearest.
        received: written as :func:`decode` will answer, where it is as long as ``values``.
        sizes: int64 [P], written: the bytes of each message.

    Returns:
        The first message whose indices do not ascend from 0 or more, or that has too little room; or -1.
    """
    for m in range(first, last):
        part, where = values[bounds[m] : bounds[m + 1]], indices[bounds[m] : bounds[m + 1]]
        k, room = part.shape[0], memory[places[m, 0] : places[m, 1]]
        sizes[m] = 0
        if k == 0:
            continue
        if where[0] < 0:
            return m
        split, length = k * width, _section_bytes(k, kind, group)
        if width == 0:
            words = pack_whole(where, room[: room.shape[0] // 4 * 4].view(np.uint32))
            if words < 0:
                return m
            split = 4 * words
        if split + length > room.shape[0]:
            return m
        if width == 4 and not _write_plain(where, room[:split].view(np.int32)):
            return m
        if width == 8 and not _write_plain(where, room[:split].view(np.int64)):
            return m
        section = room[split : split + length]
        back = received[bounds[m] : bounds[m + 1]] if received.shape[0] == values.shape[0] else received[:0]
        if kind == LEVELS:
            scales = 4 * -(-k // group)
            kept = back if back.shape[0] == k else np.empty(k, np.float32)
            drawn = seed if seed < 0 else (seed + bounds[m]) & _HALF
            quantize(
                part, section[:scales].view(np.float32), section[scales:].view(np.int8), kept, group, drawn
            )
        else:
            _narrow(part, kind, section)
            if back.shape[0] == k:
                _widen(section, kind, group, back)
        sizes[m] = split + length
    return -1


@jit
def _section_bytes(k: int, kind: int, group: int) -> int:
    if kind == FLOAT32:
        return 4 * k
    return 2 * k if kind != LEVELS else 4 * -(-k // group) + k


@jit
def _write_plain(indices: I32, section: AnyInt) -> bool:
    before, good = -1, True
    for i in range(indices.shape[0]):
        index = int(indices[i])
        good &= index > before
        before = index
        section[i] = index
    return good


@jit
def _narrow(values: F32, kind: int, section: U8) -> None:
    """Round to nearest, ties to even; what the type cannot hold becomes its largest finite number."""
    k = values.shape[0]
    if kind == FLOAT32:
        section.view(np.float32)[:] = values
        return
    bits, short = values.view(np.int32), section.view(np.uint16)
    if kind == BFLOAT16:
        for i in range(k):
            magnitude = min(bits[i] & _LOWER, _LARGEST_BFLOAT)
            magnitude += np.int32(0x7FFF) + np.int32(np.int32(magnitude >> np.int32(16)) & np.int32(1))
            short[i] = np.uint16(
                np.int32(magnitude >> np.int32(16)) | np.int32(np.int32(bits[i] >> np.int32(16)) & _SIGN)
            )
        return
    for i in range(k):
        most = min(abs(values[i]), _LARGEST_HALF)
        small = np.int32(np.rint(most * np.float32(2.0**24)))  # right where the exponent will be 0
        magnitude = np.int32(min(bits[i] & _LOWER, _LARGEST_HALF_BITS) - np.int32(112 << 23))
        magnitude += np.int32(0xFFF) + np.int32(np.int32(magnitude >> np.int32(13)) & np.int32(1))
        magnitude = small if most < _SMALLEST_HALF else np.int32(magnitude >> np.int32(13))
        short[i] = np.uint16(magnitude | np.int32(np.int32(bits[i] >> np.int32(16)) & _SIGN))


@jit
def _packed(section: U32, k: int, numel: int, indices: I32) -> bool:
    blocks = -(-k // BLOCK)
    if section.shape[0] < 2 * blocks:
        return False
    table, words = section[: 2 * blocks], section[2 * blocks :]
    starts = np.empty(blocks, np.int64)
    if check(table, k, numel, starts) != words.shape[0]:
        return False
    if not unpack(table, words, k, numel, starts, indices, 0, blocks):
        return False
    good = True
    for block in range(1, blocks):
        good &= indices[block * BLOCK] > indices[block * BLOCK - 1]
    return good


@jit
def _plain(section: AnyInt, numel: int, indices: I32) -> bool:
    before, good = -1, True
    for i in range(section.shape[0]):
        index = int(section[i])
        good &= (index > before) & (index < numel)
        before = index
        indices[i] = index
    return good


@jit
def _widen(section: U8, kind: int, group: int, values: F32) -> None:
    """What float16 cannot hold, NaN and inf, becomes NaN or inf."""
    k = values.shape[0]
    if kind == FLOAT32:
        values[:] = section.view(np.float32)
    elif kind == BFLOAT16:
        short, wide = section.view(np.uint16), values.view(np.int32)
        for i in range(k):
            wide[i] = np.int32(short[i]) << 16
    elif kind == FLOAT16:
        short, wide = section.view(np.uint16), values.view(np.int32)
        for i in range(k):  # right where the exponent is 0
            values[i] = np.float32(np.int32(short[i] & _FRACTION)) * np.float32(2.0**-24)
        for i in range(k):
            bits = np.int32(short[i])
            magnitude = np.int32(np.int32(bits & _MAGNITUDE) << np.int32(13))
            more = _REBIASED if magnitude < _ENDLESS else _TO_INFINITY
            magnitude = wide[i] if magnitude < _SMALLEST else np.int32(magnitude + more)
            wide[i] = np.int32(magnitude | np.int32(np.int32(bits & _SIGN) << np.int32(16)))
    else:
        split = 4 * -(-k // group)
        dequantize(section[:split].view(np.float32), section[split:].view(np.int8), group, values)
