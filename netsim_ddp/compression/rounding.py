"""Values as few bytes: rounded to half precision, or to 8 bits with a scale for every 256 of them.

A format writes the section of k values and says what it reads back as, so that error feedback can keep the difference.
``int8`` is 127 levels to each side of zero of the block's largest magnitude (symmetric, so that zero stays zero);
``int8-stochastic`` rounds up or down at random with the value as its mean (Alistarh et al. 2017, Sec. 3.1, with the
largest magnitude for the norm). Its random numbers come from a counter, never from torch's generator.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from netsim_ddp.compression.native import torch_codec as twin
from netsim_ddp.compression.packing import compiled

GROUP = 256
COUNTERS = 2**32


class ValueFormat(ABC):
    """How values cross the wire."""

    counter: int = -1
    """Where the next random number comes from; below 0 where none is drawn."""

    @abstractmethod
    def nbytes(self, k: int) -> int:
        """Bytes of a section of ``k`` values."""

    @abstractmethod
    def write(self, values: Tensor, out: Tensor, received: Tensor | None) -> None:
        """Round ``values`` (floating [k], finite) into ``out``, uint8 [nbytes(k)] on the same device; what they read
        back as goes to ``received``, float32 [k]."""

    @abstractmethod
    def read(self, section: Tensor) -> Tensor:
        """float32 [k] that share no memory with ``section``; whatever its bytes are."""


@dataclass
class Cast(ValueFormat):
    """A floating type: rounded to nearest, and to its largest finite number where a value is beyond that, because an
    inf would never leave a residual again."""

    dtype: torch.dtype

    def nbytes(self, k: int) -> int:
        return k * self.dtype.itemsize

    def write(self, values: Tensor, out: Tensor, received: Tensor | None) -> None:
        rounded = values.detach()
        if rounded.dtype != self.dtype:
            largest = torch.finfo(self.dtype).max
            # Saturate in a type that holds the limit exactly: in bfloat16 the largest float16 would round up.
            wide = rounded if rounded.dtype == torch.float64 else rounded.to(torch.float32)
            rounded = wide.clamp(-largest, largest).to(self.dtype)
        if received is not None:
            received.copy_(rounded)
        out.copy_(to_bytes(rounded))

    def read(self, section: Tensor) -> Tensor:
        return from_bytes(section, self.dtype).to(torch.float32)


class Levels(ValueFormat):
    """8 bits per value, and 32 for each :data:`GROUP` of them.

    Args:
        stochastic: round at random; a format then draws different numbers for every message.
        seed: where the random numbers start; ranks take different ones, or their errors would not average out.
    """

    def __init__(self, stochastic: bool, seed: int = 0) -> None:
        self.counter = seed * 0x9E3779B1 % COUNTERS if stochastic else -1

    def nbytes(self, k: int) -> int:
        return 4 * -(-k // GROUP) + k

    def write(self, values: Tensor, out: Tensor, received: Tensor | None) -> None:
        largest = torch.finfo(torch.float32).max
        wide = values.detach()
        # Only a float64 can be beyond float32.
        wide = wide.clamp(-largest, largest).float() if wide.dtype == torch.float64 else wide.float()
        wide, split = wide.contiguous(), 4 * -(-wide.numel() // GROUP)
        if compiled is not None and wide.device.type == "cpu":
            scales = torch.empty(split // 4, dtype=torch.float32, device="cpu")
            levels = torch.empty(wide.numel(), dtype=torch.int8, device="cpu")
            back = torch.empty_like(wide) if received is None else received
            compiled.quantize(wide.numpy(), scales.numpy(), levels.numpy(), back.numpy(), GROUP, self.counter)
        else:
            scales, levels = twin.quantize(wide, GROUP, self.counter)
            if received is not None:
                received.copy_(twin.dequantize(scales, levels, GROUP))
        if self.counter >= 0:
            self.counter = (self.counter + wide.numel()) % COUNTERS
        out[:split].copy_(to_bytes(scales))
        out[split:].copy_(levels.view(torch.uint8))

    def read(self, section: Tensor) -> Tensor:
        split = 4 * -(-section.numel() // (4 + GROUP))
        scales, levels = from_bytes(section[:split], torch.float32), section[split:].clone().view(torch.int8)
        if compiled is None or section.device.type != "cpu":
            return twin.dequantize(scales, levels, GROUP)
        values = np.empty(levels.numel(), np.float32)
        compiled.dequantize(scales.numpy(), levels.numpy(), GROUP, values)
        return torch.from_numpy(values)


def to_bytes(section: Tensor) -> Tensor:
    """Little endian, whatever the machine."""
    if section.numel() == 0:  # may have a stride that view refuses
        return section.new_empty(0, dtype=torch.uint8)
    octets = section.contiguous().view(torch.uint8)
    return octets if sys.byteorder == "little" else _swapped(octets, section.element_size())


def from_bytes(octets: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, because the section need not start where ``dtype`` may."""
    if sys.byteorder == "big":
        octets = _swapped(octets, dtype.itemsize)
    aligned = torch.empty(octets.numel() // dtype.itemsize, dtype=dtype, device=octets.device)
    aligned.view(torch.uint8).copy_(octets)
    return aligned


def _swapped(octets: Tensor, width: int) -> Tensor:
    return octets.reshape(-1, width).flip(1).reshape(-1)
