"""Entries as bytes: what a worker puts on the wire for k (index, value) pairs.

A message is the index section (:mod:`~netsim_ddp.compression.packing`, or plain integers) followed by the value section
(:mod:`~netsim_ddp.compression.rounding`), both little endian and without a header: k and the formats are agreed
beforehand. Packed indices make its length depend on them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netsim_ddp.compression import packing
from netsim_ddp.compression.kernels import all_finite, require
from netsim_ddp.compression.rounding import COUNTERS, GROUP, Cast, Levels, ValueFormat, from_bytes, to_bytes
from netsim_ddp.compression.runs import Runs
from netsim_ddp.errors import UsageError


class CodecError(ValueError):
    """A message that no worker of this run can have sent: damaged, truncated, or of another format."""


VALUE_FORMATS: dict[str, Callable[[int], ValueFormat]] = {
    "fp32": lambda _: Cast(torch.float32),
    "fp16": lambda _: Cast(torch.float16),
    "bf16": lambda _: Cast(torch.bfloat16),
    "int8": lambda _: Levels(stochastic=False),
    "int8-stochastic": lambda seed: Levels(stochastic=True, seed=seed),
}
_COMPILED = {"fp32": 0, "fp16": 1, "bf16": 2, "int8": 3, "int8-stochastic": 3}
"""As :mod:`.native.numba_codec` numbers the value formats."""
INDEX_FORMATS = {"packed": None, "int32": torch.int32, "int64": torch.int64}


class Codec:
    """Turns entries into one message and back.

    Args:
        values: ``"fp32"`` (exact), ``"fp16"``, ``"bf16"``, ``"int8"`` or ``"int8-stochastic"``.
        indices: ``"packed"`` (about 8 bits each at 1%), ``"int32"`` (both hold positions up to 2**31 - 1) or
            ``"int64"``.
        seed: of stochastic rounding; each rank takes its own.

    Raises:
        UsageError: an unknown format.
    """

    def __init__(self, values: str = "fp32", indices: str = "packed", seed: int = 0) -> None:
        for what, name, known in (("value", values, VALUE_FORMATS), ("index", indices, INDEX_FORMATS)):
            if name not in known:
                raise UsageError(
                    f"there is no {what} format {name!r}", hint=f"choose from {', '.join(known)}"
                )
        self.values, self.indices = values, indices
        self._value, self._index = VALUE_FORMATS[values](seed), INDEX_FORMATS[indices]

    def __repr__(self) -> str:
        return f"Codec(values={self.values!r}, indices={self.indices!r})"

    @property
    def counter(self) -> int | None:
        """Where stochastic rounding draws its next number from, for a checkpoint; None where nothing is drawn."""
        return self._value.counter if self._value.counter >= 0 else None

    @counter.setter
    def counter(self, value: int) -> None:
        self._value.counter = value

    @property
    def exact(self) -> bool:
        """Whether float32 values arrive as they were sent."""
        return self.values == "fp32"

    def capacity(self, k: int, numel: int) -> int:
        """Bytes that no message of up to ``k`` entries of a tensor of ``numel`` exceeds."""
        return self._nbytes(k, numel, packing.capacity)

    def expected(self, k: int, numel: int) -> int:
        """Bytes that a message of ``k`` entries takes, spread evenly over ``numel`` where they are packed."""
        return self._nbytes(k, numel, packing.expected)

    def _nbytes(self, k: int, numel: int, packed: Callable[[int, int], int]) -> int:
        require(k >= 0, f"a message cannot hold {k} entries")
        index = packed(k, numel) if self._index is None else k * self._index.itemsize
        return index + self._value.nbytes(k)

    def encode(
        self, values: Tensor, indices: Tensor, out: Tensor | None = None, received: Tensor | None = None
    ) -> Tensor:
        """One message.

        Args:
            values: floating [k], finite. indices: int32 or int64 [k], ascending, not negative.
            out: uint8 with room for the message, to write it to the front of; made where it is None. It may
                start at any address, and lie on another device.
            received: float32 [k] on the device of ``values``, written: what :meth:`decode` will answer.

        Returns:
            uint8, the message: the front of ``out``.

        Raises:
            ValueError: shapes that do not match, an index that the format cannot hold or packed indices out of
                order, too little room.
        """
        k = values.numel()
        require(
            values.shape == indices.shape == (k,),
            f"{tuple(values.shape)} values do not match {tuple(indices.shape)} indices",
        )
        if received is not None:
            require(
                received.shape == (k,) and received.dtype == torch.float32,
                f"received must be float32 [{k}], not {received.dtype} {tuple(received.shape)}",
            )
        if out is not None and out.device != values.device:
            back = None if received is None else torch.empty(k, dtype=torch.float32, device=out.device)
            message = self.encode(values.to(out.device), indices.to(out.device), out, back)
            if received is not None and back is not None:
                received.copy_(back)
            return message
        require(
            out is None or (out.dtype == torch.uint8 and out.dim() == 1),
            "out must be a uint8 vector",
        )
        section = self._index_section(indices, out)
        size = section.numel() + self._value.nbytes(k)
        if out is None:
            out = torch.empty(size, dtype=torch.uint8, device=values.device)
        require(out.numel() >= size, f"out must have room for {size} bytes, not {out.numel()}")
        message = out[:size]
        if section.data_ptr() != message.data_ptr():
            message[: section.numel()].copy_(section)
        self._value.write(values, message[section.numel() :], received)
        return message

    def _index_section(self, indices: Tensor, out: Tensor | None) -> Tensor:
        last = torch.iinfo(self._index or torch.int32).max
        ends = indices[:: max(1, indices.numel() - 1)].tolist()
        require(
            not ends or 0 <= ends[0] <= ends[-1] <= last,
            f"{self.indices} indices must ascend from 0 or more to at most {last}",
        )
        if self._index is None:
            return packing.pack(indices, torch.get_num_threads(), out)
        return to_bytes(indices.detach().to(self._index))

    def encode_all(
        self,
        values: Tensor,
        indices: Tensor,
        bounds: Sequence[int],
        memory: Tensor,
        places: NDArray[np.int64],
        received: Tensor | None = None,
    ) -> list[int] | None:
        """Write several messages into one piece of memory in one call.

        Args:
            values: floating [k], finite. indices: [k], those of each message ascending, not negative.
            bounds: P + 1; message m has the entries from ``bounds[m]`` to ``bounds[m + 1]``.
            memory: uint8. places: int64 [P, 2], where in it the room of each message begins, a multiple of 8, and ends.
            received: float32 [k], written: what :meth:`decode` will answer.

        Returns:
            The bytes of each message; None where the compiled code cannot do it.

        Raises:
            ValueError: indices of a message do not ascend, or it has too little room.
        """
        compiled = packing.compiled
        fits = (
            compiled is not None
            and sys.byteorder == "little"
            and values.device.type == indices.device.type == memory.device.type == "cpu"
            and (values.dtype, indices.dtype) == (torch.float32, torch.int32)
            and values.is_contiguous()
            and indices.is_contiguous()
            and memory.data_ptr() % 8 == 0
        )
        if compiled is None or not fits:
            return None
        sizes: NDArray[np.int64] = np.zeros(len(places), np.int64)
        back = values[:0] if received is None else received
        work = functools.partial(
            compiled.encode,
            values.detach().numpy(),
            indices.numpy(),
            np.array(bounds, np.int64),
            memory.numpy(),
            places,
        )
        width = 0 if self._index is None else self._index.itemsize
        form = width, _COMPILED[self.values], GROUP, self._value.counter, back.detach().numpy(), sizes
        cuts = packing.cuts_of(len(places), bounds[-1] - bounds[0], torch.get_num_threads())
        found = packing.share_out(lambda first, last: work(first, last, *form), cuts)
        bad = next((number for number in found if number >= 0), None)
        require(
            bad is None, f"message {bad} has indices that do not ascend from 0 or more, or too little room"
        )
        if self._value.counter >= 0:
            self._value.counter = (self._value.counter + bounds[-1]) % COUNTERS
        return [int(size) for size in sizes]

    def decode(self, message: Tensor, k: int, numel: int) -> tuple[Tensor, Tensor]:
        """The ``k`` entries of a message that addresses a flat tensor of ``numel`` entries.

        Returns:
            values float32 [k]; indices [k], int64 from ``"int64"`` and else int32. Neither shares memory with
            the message.

        Raises:
            CodecError: the message has not the length that its entries take, more entries than positions, an
                index out of [0, numel) or not above the one before, a value that is not finite.
            ValueError: the message is not a uint8 vector.
        """
        require(
            message.dtype == torch.uint8 and message.dim() == 1,
            f"a message is a uint8 vector, not {message.dtype} {tuple(message.shape)}",
        )
        require(k >= 0, f"a message cannot hold {k} entries")
        require(k <= numel, f"{k} entries cannot address {numel} positions", CodecError)
        split = message.numel() - self._value.nbytes(k)
        require(
            split >= 0 if self._index is None else split == k * self._index.itemsize,
            f"{message.numel()} bytes do not hold {k} entries, {self.indices} {self.values}",
            CodecError,
        )
        if self._index is None:
            packed = packing.unpack(message[:split], k, numel, torch.get_num_threads())
            if packed is None:
                raise CodecError(f"{split} bytes are no packed indices of {k} entries in [0, {numel})")
            indices = packed
        else:
            indices = from_bytes(message[:split], self._index)
            require(bool((indices[1:] > indices[:-1]).all()), "the indices do not ascend", CodecError)
            bounded = not k or 0 <= int(indices[0]) <= int(indices[-1]) < numel  # the ends bound the rest
            require(bounded, f"an index lies outside [0, {numel})", CodecError)
        values = self._value.read(message[split:])
        require(all_finite(values), "a value is not finite", CodecError)
        return values, indices

    def decode_all(
        self, memory: Tensor, messages: Sequence[tuple[int, int, int, int]], out: Runs, divisor: float = 1.0
    ) -> bool:
        """Decode several messages of one piece of memory in one call.

        Args:
            memory: uint8. messages: of each, where in ``memory`` it begins and ends, its entries and ``numel``.
            out: becomes their entries, each message a run, int32 indices for positions.
            divisor: of the values; the peaks are those of the values before.

        Returns:
            Whether it has been done: not where the compiled code cannot, nor where a message is damaged.
            :meth:`decode` then says what is wrong with it.
        """
        out.resize([count for _, _, count, _ in messages])
        compiled, last = packing.compiled, packing.LARGEST_INDEX
        if (
            compiled is None
            or sys.byteorder == "big"
            or not memory.device.type == out.values.device.type == "cpu"
        ):
            return False
        width = 0 if self._index is None else self._index.itemsize
        table: list[tuple[int, ...]] = []
        for begin, end, count, numel in messages:
            split = end - self._value.nbytes(count)
            size = split - begin
            if count > numel or size < 0 or (size % 4 if width == 0 else size != count * width):
                return False
            table.append((begin, split, end, count, min(numel, last + 1)))
        arrays = (each.numpy() for each in (out.values, out.positions, out.peaks))
        work = functools.partial(compiled.decode, memory.numpy(), np.array(table, np.int64))
        form = width, _COMPILED[self.values], GROUP, divisor, *arrays
        cuts = packing.cuts_of(len(table), out.values.numel(), torch.get_num_threads())
        return all(bad < 0 for bad in packing.share_out(lambda first, last: work(first, last, *form), cuts))
