"""Top-K sparsification: keep the k entries of largest magnitude."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from netsim_ddp.compression import kernels
from netsim_ddp.errors import UsageError
from netsim_ddp.units import parse_ratio


def entry_count(n: int, ratio: float) -> int:
    """Entries kept of ``n``: max(1, ceil(ratio * n)), and 0 of 0.

    The product of two floats may land just above the integer that was meant (0.07 * 100 =
    7.000000000000001). It is off by at most 2**-52 of itself, so a product within 2**-50 above an integer
    counts as that integer; 0.01 of 100 is 1 and 0.07 of 100 is 7.

    Raises:
        UsageError: the ratio is not in (0, 1].
        ValueError: ``n`` is negative.
    """
    if not 0 < ratio <= 1:
        raise UsageError(
            f"ratio {ratio!r} must be above 0 and at most 1", hint="write for example 0.01 or 1%"
        )
    kernels.require(n >= 0, f"a tensor cannot have {n} entries")
    return min(n, max(1, math.ceil(ratio * n * (1 - 2**-50))))


def host_table(numbers: Sequence[int]) -> Tensor:
    """int64, on the CPU whatever torch's default device is, as the kernels take offsets and counts."""
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def segment_table(sizes: Iterable[int], ratio: float) -> tuple[Tensor, Tensor]:
    """``offsets`` int64 [L + 1] and ``ks`` int64 [L] for :mod:`~netsim_ddp.compression.kernels`.

    One segment per size, ``entry_count(size, ratio)`` entries each.
    """
    listed = list(sizes)
    offsets = host_table(list(itertools.accumulate(listed, initial=0)))
    return offsets, host_table([entry_count(n, ratio) for n in listed])


@dataclass
class CompressionStats:
    """What a compressor has done since it was made or reset; byte counts are of tensors, not of messages."""

    calls: int = 0
    entries: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def count(self, calls: int, entries: int, bytes_in: int, bytes_out: int) -> None:
        """Add what ``calls`` more calls have done."""
        self.calls += calls
        self.entries += entries
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out

    @property
    def reduction(self) -> float:
        """bytes_in / bytes_out; 1.0 before the first call."""
        return self.bytes_in / self.bytes_out if self.bytes_out else 1.0


class TopKCompressor:
    """The k = max(1, ceil(ratio * n)) entries of largest magnitude, exactly k, ties to the lower index.

    Biased, and a contraction: the rest has at most (1 - k/n) of the squared norm (Stich et al. 2018, Sec.
    2.1, Def. 2.1), which is what error feedback needs. It keeps no state but its counters.

    Args:
        ratio: the kept fraction in (0, 1], a number or text such as ``"1%"``.

    Raises:
        UsageError: the ratio is not in (0, 1].
    """

    def __init__(self, ratio: float | str = 0.01) -> None:
        self.ratio = ratio
        self.stats = CompressionStats()

    @property
    def ratio(self) -> float:
        """The kept fraction. Another one may be set at any time, on every rank before the same step."""
        return self._ratio

    @ratio.setter
    def ratio(self, ratio: float | str) -> None:
        self._ratio = parse_ratio(ratio)

    def __repr__(self) -> str:
        return f"TopKCompressor(ratio={self.ratio:g})"

    def compress(self, tensor: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
        """Any shape, float16, bfloat16, float32 or float64, any device; an empty tensor keeps nothing.

        Returns:
            values [k] in the tensor's dtype; indices int64 [k], ascending positions in the flattened
            tensor; its shape. Where the tensor takes part in autograd, so do the values.

        Raises:
            NonFiniteGradient: the tensor holds a NaN or inf. Both would be selected first and stay in an
                error-feedback residual for ever.
        """
        flat = tensor.reshape(-1)
        n = flat.numel()
        k = entry_count(n, self.ratio)
        values = flat.new_empty(k, requires_grad=False)
        indices = torch.empty(k, dtype=torch.int64, device=flat.device)
        try:
            kernels.select(flat.detach().contiguous(), host_table([0, n]), host_table([k]), values, indices)
        except kernels.NonFiniteGradient as error:
            raise kernels.NonFiniteGradient("the tensor to compress holds a NaN or inf", 0) from error
        if flat.requires_grad and torch.is_grad_enabled():
            values = flat[indices]
        self.stats.count(1, k, n * flat.element_size(), k * (values.element_size() + indices.element_size()))
        return values, indices, tensor.shape

    def decompress(self, values: Tensor, indices: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Dense tensor of ``shape`` with ``values`` at ``indices`` and 0 elsewhere; differentiable in values.

        Raises:
            ValueError: values and indices differ in length.
            RuntimeError: an index lies outside ``shape`` (from torch).
        """
        kernels.require(
            values.shape == indices.shape and values.dim() == 1,
            f"{tuple(values.shape)} values do not match {tuple(indices.shape)} indices",
        )
        return (
            torch.zeros(math.prod(shape), dtype=values.dtype, device=values.device)
            .scatter(0, indices.to(torch.int64), values)
            .reshape(shape)
        )

    def reset(self) -> None:
        """Set the counters back to zero."""
        self.stats = CompressionStats()
