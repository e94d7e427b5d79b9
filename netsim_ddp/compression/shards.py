"""Who owns which position of a flat tensor, when ranks share the work of summing entries.

The tensor is cut into segments (:mod:`netsim_ddp.compression.kernels`), and each is dealt out by itself: in blocks, in
turn to a few owners that follow each other, so that the large gradients at one end of a layer do not all fall to one of
them. A position has a *local* number within its owner's share; local numbers ascend with positions, so that a share has
the same segments as the whole, some of them empty. :mod:`netsim_ddp.compression.quotas` decides how many owners a
segment has, and which.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netsim_ddp.compression.kernels import require
from netsim_ddp.compression.native import compiled_module

fused = compiled_module("numba_shards")

LARGEST_BLOCK_BITS = 10
BLOCKS_PER_OWNER = 16

I64 = NDArray[np.int64]


def block_bits(size: int, parts: int) -> int:
    """A block of a segment of ``size`` is ``2 ** bits`` positions: small enough that ``parts`` owners have equal shares
    of a small segment, too."""
    return max(0, min(LARGEST_BLOCK_BITS, (size // (BLOCKS_PER_OWNER * parts)).bit_length() - 1))


class Shards:
    """The shares of ``owners`` ranks in a flat tensor of N positions.

    Args:
        sizes: of the segments. parts: how many owners each has, 1 to ``owners``. first: the one that has the first
            block; block b is that of owner (first + b mod parts) mod ``owners``.
    """

    def __init__(self, owners: int, sizes: Sequence[int], parts: Sequence[int], first: Sequence[int]) -> None:
        self.owners = owners
        self._sizes, self._parts, self._first = (np.array(x, np.int64) for x in (sizes, parts, first))
        self._bits = np.array(
            [block_bits(int(size), int(part)) for size, part in zip(sizes, parts, strict=True)], np.int64
        )
        self._offsets = _bounds(self._sizes)
        self.turns: I64 = (np.arange(owners)[:, None] - self._first) % owners
        """int64 [P, L]: the how-manieth of a segment's owners a rank is; those from ``parts`` on have none of it."""
        whole, rest = np.divmod(self._sizes, 1 << self._bits)
        blocks = whole // self._parts + (self.turns < whole % self._parts)
        sizes_of = (blocks << self._bits) + np.where(self.turns == whole % self._parts, rest, 0)
        self.sizes: I64 = np.where(self.turns < self._parts, sizes_of, 0)
        """int64 [P, L]: how many positions of each segment an owner has."""
        self.bounds: I64 = _bounds(self.sizes)
        """int64 [P, L + 1]: where the segments begin and end in an owner's local numbers."""
        self._on_device: dict[torch.device, dict[str, Tensor]] = {}

    @property
    def numel(self) -> int:
        """N."""
        return int(self._offsets[-1])

    def size(self, owner: int) -> int:
        """How many positions ``owner`` has."""
        return int(self.bounds[owner, -1])

    def partition(
        self, values: Tensor, indices: Tensor, out_values: Tensor, out_local: Tensor, slots: Tensor
    ) -> list[int]:
        """Group entries by owner, each group's local numbers ascending.

        Args:
            values: floating [k]. indices: int32 [k], ascending.
            out_values, out_local: likewise, on the same device, with room for k entries or more; written.
            slots: int32 likewise; becomes where in them each entry went.

        Returns:
            P + 1 bounds: owner r's entries are ``out[bounds[r]:bounds[r + 1]]``.
        """
        if fused is not None and values.device.type == "cpu" and values.dtype == torch.float32:
            bounds: I64 = np.zeros(self.owners + 1, np.int64)
            fused.partition(
                values.numpy(),
                indices.numpy(),
                self._offsets,
                self._bits,
                self._parts,
                self._first,
                self.bounds,
                out_values.numpy(),
                out_local.numpy(),
                slots.numpy(),
                bounds,
            )
            return [int(bound) for bound in bounds]
        table, k, wide = self._tables(values.device), values.numel(), indices.long()
        segment = torch.bucketize(wide, table["ends"], right=True)
        bits, parts = table["bits"][segment], table["parts"][segment]
        inside = wide - table["offsets"][segment]
        block = inside >> bits
        owner = (table["first"][segment] + block % parts) % self.owners
        local = table["bounds"][owner, segment] + ((block // parts) << bits) + (inside & ((1 << bits) - 1))
        order = torch.sort(owner, stable=True).indices
        out_values[:k], out_local[:k] = values[order], local[order]
        slots[order] = torch.arange(k, dtype=slots.dtype, device=slots.device)
        return list(itertools.accumulate(torch.bincount(owner, minlength=self.owners).tolist(), initial=0))

    def positions(self, owner: int, local: Tensor) -> Tensor:
        """The global positions of ``owner``'s ``local`` numbers, int64."""
        table, wide = self._tables(local.device), local.long()
        begins = table["bounds"][owner]
        segment = torch.bucketize(wide, begins[1:], right=True)
        bits = table["bits"][segment]
        inside = wide - begins[segment]
        block = (inside >> bits) * table["parts"][segment] + table["turns"][owner][segment]
        return table["offsets"][segment] + (block << bits) + (inside & ((1 << bits) - 1))

    def spread(self, local: Tensor, bounds: I64) -> None:
        """Owner r's local numbers, ``local[bounds[r]:bounds[r + 1]]`` (int32, ascending), become positions."""
        if fused is not None and local.device.type == "cpu":
            tables = self._offsets, self._bits, self._parts, self.turns, self.bounds
            fused.to_positions(local.numpy(), bounds, *tables)
            return
        for owner, (begin, end) in enumerate(itertools.pairwise(bounds.tolist())):
            local[begin:end] = self.positions(owner, local[begin:end])

    def _tables(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._on_device:
            arrays = {
                "offsets": self._offsets,
                "ends": self._offsets[1:],
                "bits": self._bits,
                "parts": self._parts,
                "first": self._first,
                "turns": self.turns,
                "bounds": self.bounds,
            }
            self._on_device[device] = {
                name: torch.from_numpy(array).to(device) for name, array in arrays.items()
            }
        return self._on_device[device]

    def state(self) -> Tensor:
        """int64 [L, 3], for a checkpoint: size, parts and first owner of each segment."""
        return torch.from_numpy(np.stack([self._sizes, self._parts, self._first], axis=1))


def saved_sums(state: Mapping[str, Any], numel: int) -> Tensor:
    """What the rank that saved ``state`` kept back as an owner, at its positions: float32 [numel], 0 elsewhere.

    Sums may be added to the residual of the rank that holds them without changing what is pending, since both count
    with 1/P: so they can be taken over into any other layout.

    Args:
        state: of a method; "sums" in it is [size of the share], "shares" what :meth:`Shards.state` told. Up to version
            0.1.0 there was no such entry, and the whole tensor was one segment of all owners.

    Raises:
        ValueError: they are sums over another number of positions.
    """
    everywhere = torch.zeros(numel, dtype=torch.float32, device="cpu")
    if "sums" not in state:
        return everywhere
    rank, owners, sums = state["rank"], state["world_size"], state["sums"]
    shares = Shards(owners, *(state["shares"].T.tolist() if "shares" in state else ([numel], [owners], [0])))
    require(
        shares.numel == numel and sums.shape == (shares.size(rank),),
        f"the saved sums, {tuple(sums.shape)}, are not a share of {numel} positions",
    )
    local = torch.arange(sums.numel(), dtype=torch.int64, device="cpu")
    everywhere[shares.positions(rank, local)] = sums.cpu()
    return everywhere


def _bounds(sizes: I64) -> I64:
    """Cumulative sums along the last axis, from 0 on."""
    return np.concatenate([np.zeros((*sizes.shape[:-1], 1), np.int64), np.cumsum(sizes, axis=-1)], axis=-1)


def add_at(total: Tensor, local: Tensor, values: Tensor) -> None:
    """``total[local] += values``; ``local`` holds no number twice."""
    if fused is not None and total.device.type == "cpu":
        fused.add_at(total.numpy(), local.numpy(), values.numpy())
    else:
        total.index_add_(0, local, values)


def put_at(total: Tensor, local: Tensor, values: Tensor) -> None:
    """``total[local] = values``; ``local`` holds no number twice."""
    if fused is not None and total.device.type == "cpu":
        fused.put_at(total.numpy(), local.numpy(), values.numpy())
    else:
        total[local.long()] = values


def clear_at(total: Tensor, positions: Tensor) -> None:
    """``total[positions] = 0``."""
    if fused is not None and total.device.type == "cpu":
        fused.clear_at(total.numpy(), positions.numpy())
    else:
        total[positions.long()] = 0
