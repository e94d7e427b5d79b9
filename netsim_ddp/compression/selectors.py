"""Which entries are sent: every way to choose about k of each segment's n entries.

``exact`` is Top-K. The thresholds of :mod:`~netsim_ddp.compression.thresholds` save its last pass for a count that is
only about k. ``random`` and ``block`` are yardsticks: what a choice costs in accuracy that looks at no
magnitude, or at a block's alone.

Segments, ``offsets`` and ``ks`` are those of :mod:`netsim_ddp.compression.kernels`. Every selector writes entries in
ascending order of position, and at most ``most(n, k)`` of a segment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from netsim_ddp.compression import kernels
from netsim_ddp.compression.native import torch_kernels as twin
from netsim_ddp.compression.shards import clear_at

BLOCK = 64  # entries: a cache line of float16 gradients twice over, so that a block's energy is cheap to read


class Selector(ABC):
    """Chooses entries; what it keeps between steps is in :meth:`state_dict`."""

    name: ClassVar[str]

    step = 0
    """The number of this step, which those that draw at random draw from: never from torch's generators. The caller
    sets it, the same on every rank."""

    def most(self, n: int, k: int) -> int:
        """The largest number of entries it may choose where k of n are asked for."""
        del n
        return k

    def take(
        self,
        grad: kernels.Gradient,
        residual: Tensor,
        offsets: Tensor,
        ks: Tensor,
        values: Tensor,
        indices: Tensor,
        total: Tensor | None = None,
    ) -> int:
        """Add residual and gradient, and move the chosen entries of the sum out of it: they become exact 0.

        Args:
            grad, residual, total: as :func:`~netsim_ddp.compression.kernels.accumulate_select` takes them.
            values: dtype of ``residual``. indices: int32. Both have room for ``most`` of every segment.

        Returns:
            how many entries were chosen: ``values[:count]`` and ``indices[:count]``.

        Raises:
            NonFiniteGradient: the residual has not changed.
        """
        sums = kernels.add(grad, residual, torch.empty_like(residual) if total is None else total)
        kernels.check_finite(sums, offsets)
        count = self._choose(sums, offsets, ks, values, indices)
        clear_at(sums, indices[:count])
        if total is None:
            residual.copy_(sums)
        return count

    def pick(self, flat: Tensor, offsets: Tensor, ks: Tensor, values: Tensor, indices: Tensor) -> int:
        """As :meth:`take`, from ``flat``, which does not change."""
        kernels.check_finite(flat, offsets)
        return self._choose(flat, offsets, ks, values, indices)

    @abstractmethod
    def _choose(self, flat: Tensor, offsets: Tensor, ks: Tensor, values: Tensor, indices: Tensor) -> int:
        """Copy the chosen entries of ``flat``, which is finite."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep for the next choices to be the same."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` saved."""
        kernels.require(
            not state, f"selector {self.name} keeps no state, the checkpoint holds {sorted(state)}"
        )


class ExactSelector(Selector):
    """The k largest magnitudes, exactly k, ties to the lower position; one fused pass."""

    name = "exact"

    def take(
        self,
        grad: kernels.Gradient,
        residual: Tensor,
        offsets: Tensor,
        ks: Tensor,
        values: Tensor,
        indices: Tensor,
        total: Tensor | None = None,
    ) -> int:
        k = int(ks.numpy().sum())
        kernels.accumulate_select(grad, residual, offsets, ks, values[:k], indices[:k], total=total)
        return k

    def pick(self, flat: Tensor, offsets: Tensor, ks: Tensor, values: Tensor, indices: Tensor) -> int:
        return self._choose(flat, offsets, ks, values, indices)

    def _choose(self, flat: Tensor, offsets: Tensor, ks: Tensor, values: Tensor, indices: Tensor) -> int:
        k = int(ks.numpy().sum())
        kernels.select(flat, offsets, ks, values[:k], indices[:k])
        return k


class RandomSelector(Selector):
    """k positions drawn without replacement, the same on every rank: a contraction in expectation, E||x - C(x)||^2 =
    (1 - k/n) ||x||^2 (Stich et al. 2018, Def. 2.1). Values are sent as they are, not scaled by n/k, so it is for error
    feedback.
    """

    name = "random"

    def _choose(self, flat: Tensor, offsets: Tensor, ks: Tensor, values: Tensor, indices: Tensor) -> int:
        draw = np.random.default_rng(self.step)
        chosen = [
            np.sort(draw.choice(stop - start, k, replace=False, shuffle=False)) + start
            for (start, stop), k in zip(pairwise(offsets.tolist()), ks.tolist(), strict=True)
        ]
        return _copy(
            flat,
            torch.from_numpy(np.concatenate([*chosen, np.empty(0, np.int64)])).to(flat.device),
            values,
            indices,
        )


class BlockSelector(Selector):
    """Whole blocks of up to 64 neighbours, those of largest norm, ties to the lower position.

    A block is b = min(64, k) entries and ceil(k / b) of them are chosen: more than k - b and less than k + b entries,
    since a segment's last block may be short.
    """

    name = "block"

    def most(self, n: int, k: int) -> int:
        block = min(BLOCK, k)
        return min(n, -(-k // block) * block) if k else 0

    def _choose(self, flat: Tensor, offsets: Tensor, ks: Tensor, values: Tensor, indices: Tensor) -> int:
        chosen = [
            _blocks(flat[start:stop], k) + start
            for (start, stop), k in zip(pairwise(offsets.tolist()), ks.tolist(), strict=True)
            if k
        ]
        return _copy(flat, torch.cat(chosen), values, indices) if chosen else 0


def _blocks(part: Tensor, k: int) -> Tensor:
    """The positions of the best blocks of one segment, int64, ascending."""
    n, block = part.numel(), min(BLOCK, k)
    whole = n // block
    norms = torch.linalg.vector_norm(part[: whole * block].view(whole, block), dim=1)
    if n % block:
        norms = torch.cat((norms, torch.linalg.vector_norm(part[whole * block :]).reshape(1)))
    best = twin.top_indices(norms, -(-k // block))
    positions = best[:, None] * block + torch.arange(block, device=part.device)
    return positions[positions < n]


def _copy(flat: Tensor, positions: Tensor, values: Tensor, indices: Tensor) -> int:
    count = positions.numel()
    values[:count], indices[:count] = flat[positions], positions
    return count
