"""Entries as bytes: what a worker puts on the wire for k (index, value) pairs.

A message of k entries is the index section followed by the value section, both little endian and without
a header: k and the formats are agreed beforehand, so a message has exactly ``nbytes(k)`` bytes. Coding goes
through views, never through a Python loop.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from netsim_ddp.errors import UsageError


class CodecError(ValueError):
    """A message that no worker of this run can have sent: damaged, truncated, or of another format."""


@dataclass(frozen=True)
class _Format:
    dtype: torch.dtype

    @property
    def width(self) -> int:
        """Bytes per entry."""
        return self.dtype.itemsize


VALUE_FORMATS = {
    "fp32": _Format(torch.float32),
    "fp16": _Format(torch.float16),
    "bf16": _Format(torch.bfloat16),
}
INDEX_FORMATS = {"int32": _Format(torch.int32), "int64": _Format(torch.int64)}


def _look_up(table: dict[str, _Format], what: str, name: str) -> _Format:
    if name not in table:
        raise UsageError(f"there is no {what} format {name!r}", hint=f"choose from {', '.join(table)}")
    return table[name]


class Codec:
    """Turns entries into one message and back.

    Args:
        values: ``"fp32"`` (exact), ``"fp16"`` or ``"bf16"`` (rounded to nearest, and to the largest finite
            number where the value is beyond it: an inf would never leave a residual again).
        indices: ``"int32"`` (positions up to 2**31 - 1) or ``"int64"``.

    Raises:
        UsageError: an unknown format.
    """

    def __init__(self, values: str = "fp32", indices: str = "int32") -> None:
        self.values = values
        self.indices = indices
        self._value = _look_up(VALUE_FORMATS, "value", values)
        self._index = _look_up(INDEX_FORMATS, "index", indices)

    def __repr__(self) -> str:
        return f"Codec(values={self.values!r}, indices={self.indices!r})"

    def nbytes(self, k: int) -> int:
        """Bytes of a message of ``k`` entries."""
        if k < 0:
            raise ValueError(f"a message cannot hold {k} entries")
        return k * (self._index.width + self._value.width)

    def encode(self, values: Tensor, indices: Tensor, out: Tensor | None = None) -> Tensor:
        """One message.

        Args:
            values: floating [k], finite. indices: int32 or int64 [k], ascending, not negative.
            out: uint8 [nbytes(k)] on the same device to write to; made where it is None. It may start at
                any address.

        Raises:
            ValueError: shapes that do not match, or an index that the format cannot hold.
        """
        k = values.numel()
        if values.shape != (k,) or indices.shape != (k,):
            raise ValueError(f"{tuple(values.shape)} values do not match {tuple(indices.shape)} indices")
        last = torch.iinfo(self._index.dtype).max
        if k and not 0 <= int(indices[0]) <= int(indices[-1]) <= last:
            raise ValueError(f"{self.indices} indices must ascend from 0 or more to at most {last}")
        if out is None:
            out = torch.empty(self.nbytes(k), dtype=torch.uint8, device=values.device)
        elif out.dtype != torch.uint8 or out.shape != (self.nbytes(k),):
            raise ValueError(f"out must be uint8 [{self.nbytes(k)}], not {out.dtype} {tuple(out.shape)}")
        split = k * self._index.width
        out[:split].copy_(_to_bytes(indices.detach().to(self._index.dtype)))
        out[split:].copy_(_to_bytes(self._rounded(values)))
        return out

    def decode(self, message: Tensor, k: int, numel: int) -> tuple[Tensor, Tensor]:
        """The ``k`` entries of a message that addresses a flat tensor of ``numel`` entries.

        Returns:
            values float32 [k]; indices [k] in the format's own dtype. Neither shares memory with the
            message.

        Raises:
            CodecError: the message is not ``nbytes(k)`` long, more entries than positions, an index out of
                [0, numel) or not above the one before, a value that is not finite.
            ValueError: the message is not a uint8 vector.
        """
        if message.dtype != torch.uint8 or message.dim() != 1:
            raise ValueError(f"a message is a uint8 vector, not {message.dtype} {tuple(message.shape)}")
        if message.numel() != self.nbytes(k):
            raise CodecError(f"{message.numel()} bytes where {k} entries take {self.nbytes(k)}")
        if k > numel:
            raise CodecError(f"{k} entries cannot address {numel} positions")
        split = k * self._index.width
        indices = _from_bytes(message[:split], self._index.dtype)
        values = _from_bytes(message[split:], self._value.dtype).to(torch.float32)
        if k:
            if not bool((indices[1:] > indices[:-1]).all()):
                raise CodecError("the indices do not ascend")
            if int(indices[0]) < 0 or int(indices[-1]) >= numel:  # ascending, so the ends bound the rest
                raise CodecError(f"an index lies outside [0, {numel})")
            if not bool(torch.isfinite(values).all()):
                raise CodecError("a value is not finite")
        return values, indices

    def round_trip(self, values: Tensor) -> Tensor:
        """``values`` [k] as the others receive them, float32: what error feedback must subtract."""
        return self._rounded(values).to(torch.float32)

    def _rounded(self, values: Tensor) -> Tensor:
        largest = torch.finfo(self._value.dtype).max
        # Saturate in a type that holds the limit exactly: in bfloat16 the largest float16 would round up.
        wide = values.detach()
        wide = wide if wide.dtype == torch.float64 else wide.to(torch.float32)
        return wide.clamp(-largest, largest).to(self._value.dtype)


def _to_bytes(section: Tensor) -> Tensor:
    octets = section.contiguous().view(torch.uint8)
    return octets if sys.byteorder == "little" else _swapped(octets, section.element_size())


def _from_bytes(octets: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, because the section need not start where ``dtype`` may."""
    if sys.byteorder == "big":
        octets = _swapped(octets, dtype.itemsize)
    aligned = torch.empty(octets.numel() // dtype.itemsize, dtype=dtype, device=octets.device)
    aligned.view(torch.uint8).copy_(octets)
    return aligned


def _swapped(octets: Tensor, width: int) -> Tensor:
    return octets.reshape(-1, width).flip(1).reshape(-1)
