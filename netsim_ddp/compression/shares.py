"""Who owns which position of a flat tensor, when ranks share the work of summing entries.

Positions are dealt out in blocks, block b to rank b mod P, so that every rank owns about N/P of them and the large
gradients of one layer do not all fall to one owner. A position has a *local* number within its owner's share.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from netsim_ddp.compression.native import compiled_module

fused = compiled_module("_numba_shares")

LARGEST_BLOCK_BITS = 10
BLOCKS_PER_OWNER = 16


@dataclass(frozen=True)
class Shares:
    """The shares of ``owners`` ranks in ``numel`` positions."""

    numel: int
    owners: int

    @property
    def bits(self) -> int:
        """A block is ``2 ** bits`` positions: small enough that a small tensor, too, is spread evenly."""
        blocks = BLOCKS_PER_OWNER * self.owners
        return max(0, min(LARGEST_BLOCK_BITS, (self.numel // blocks).bit_length() - 1))

    def size(self, owner: int) -> int:
        """How many positions ``owner`` has."""
        block = 1 << self.bits
        whole, rest = divmod(self.numel, block)
        blocks = whole // self.owners + (1 if owner < whole % self.owners else 0)
        return blocks * block + (rest if owner == whole % self.owners else 0)

    def partition(self, values: Tensor, indices: Tensor, out_values: Tensor, out_local: Tensor) -> list[int]:
        """Group entries by owner, each group's local numbers ascending.

        Args:
            values: floating [k]. indices: int32 [k], ascending.
            out_values, out_local: likewise, on the same device, with room for k entries or more; written.

        Returns:
            P + 1 bounds: owner r's entries are ``out[bounds[r]:bounds[r + 1]]``.
        """
        if fused is not None and values.device.type == "cpu" and values.dtype == torch.float32:
            bounds = torch.zeros(self.owners + 1, dtype=torch.int64, device="cpu")
            fused.partition(
                values.numpy(),
                indices.numpy(),
                self.bits,
                out_values.numpy(),
                out_local.numpy(),
                bounds.numpy(),
            )
            return [int(bound) for bound in bounds.tolist()]
        block, offset = indices >> self.bits, indices & ((1 << self.bits) - 1)
        owner = block % self.owners
        order = torch.sort(owner, stable=True).indices
        k = values.numel()
        out_values[:k] = values[order]
        out_local[:k] = (((block // self.owners) << self.bits) + offset)[order]
        counts = torch.bincount(owner, minlength=self.owners).tolist()
        return list(itertools.accumulate(counts, initial=0))

    def positions(self, owner: int, local: Tensor) -> Tensor:
        """The global positions of ``owner``'s ``local`` numbers, int64."""
        wide = local.long()
        block, offset = wide >> self.bits, wide & ((1 << self.bits) - 1)
        return ((block * self.owners + owner) << self.bits) + offset

    def write(
        self, owner: int, values: Tensor, local: Tensor, divisor: float, out: Tensor, written: Tensor
    ) -> None:
        """``out[positions(owner, local)] = values / divisor``; the positions go to ``written`` (int32 [k])."""
        if fused is not None and out.device.type == "cpu":
            fused.write(
                values.numpy(),
                local.numpy(),
                self.bits,
                self.owners,
                owner,
                divisor,
                out.numpy(),
                written.numpy(),
            )
            return
        positions = self.positions(owner, local)
        out[positions] = values / divisor
        written.copy_(positions)


def add_at(total: Tensor, local: Tensor, values: Tensor) -> None:
    """``total[local] += values``; ``local`` holds no number twice."""
    if fused is not None and total.device.type == "cpu":
        fused.add_at(total.numpy(), local.numpy(), values.numpy())
    else:
        total.index_add_(0, local, values)


def clear_at(total: Tensor, positions: Tensor) -> None:
    """``total[positions] = 0``."""
    if fused is not None and total.device.type == "cpu":
        fused.clear_at(total.numpy(), positions.numpy())
    else:
        total[positions.long()] = 0
