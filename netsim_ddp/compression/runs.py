"""Entries that come from several ranks, summed and laid out in few ascending passes.

Each rank's entries are a *run*: ascending positions, which other runs may hold as well. A tensor that is larger than
the caches is gone through once, stretch by stretch, and each stretch takes the entries of all runs in their order: what
comes of it does not depend on which message came first, and is what one pass for each run would give.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from netsim_ddp.compression import packing
from netsim_ddp.compression.kernels import require
from netsim_ddp.compression.native import compiled_module
from netsim_ddp.compression.shards import I64, add_at, clear_at, put_at

fused = compiled_module("numba_shards")

_BEYOND_CACHES = 1 << 20  # floats; what is larger will hardly be found in a cache again
_FEW = 1 / 256  # the entries of a tensor that cost less one by one than writing all of it


class Runs:
    """R runs of entries, one behind the other, in memory that is kept for the next ones.

    Attributes:
        values: float32 [K]. positions: int32 [K]. peaks: float32 [R] on the CPU, the largest magnitude in each run
            before division. bounds: int64 [R + 1], where the runs begin and end.
    """

    def __init__(self, device: torch.device) -> None:
        self.bounds: I64 = np.zeros(1, np.int64)
        self._room = [torch.empty(0, dtype=kind, device=device) for kind in (torch.float32, torch.int32)]
        self._before = torch.empty_like(self._room[0])
        self.resize([])

    def resize(self, counts: Sequence[int]) -> None:
        """Have room for runs of so many entries, whose values are anything."""
        self.bounds = np.array([0, *itertools.accumulate(counts)], np.int64)
        k = int(self.bounds[-1])
        if self._room[0].numel() < k:
            self._room = [each.new_empty(k) for each in self._room]
        self.values, self.positions = (each[:k] for each in self._room)
        self.peaks = torch.zeros(len(counts), dtype=torch.float32, device="cpu")

    def __len__(self) -> int:
        return self.bounds.size - 1

    def __getitem__(self, run: int) -> tuple[Tensor, Tensor]:
        """Values and positions of one run."""
        part = slice(*self.bounds[run : run + 2].tolist())
        return self.values[part], self.positions[part]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[run] for run in range(len(self)))

    def add_to(self, total: Tensor) -> None:
        """``total[positions] += values``, run by run."""
        if self._before.numel() < self.values.numel():
            self._before = torch.empty_like(self.values)
        before = self._before
        if fused is not None and total.device.type == "cpu":
            arrays = (each.numpy() for each in (total, self.positions, self.values))
            self._share_out(
                functools.partial(fused.add_runs, *arrays, self.bounds, before.numpy()), total.numel()
            )
            return
        for run, (values, positions) in enumerate(self):
            before[self.bounds[run] : self.bounds[run + 1]] = total[positions.long()]
            total.index_add_(0, positions, values)

    def take_back(self, total: Tensor) -> None:
        """What the last :meth:`add_to` changed is as it was before."""
        before = self._before
        if fused is not None and total.device.type == "cpu":
            fused.put_back(total.numpy(), self.positions.numpy(), before.numpy())
            return
        for run in reversed(range(len(self))):
            total[self[run][1].long()] = before[self.bounds[run] : self.bounds[run + 1]]

    def replace(self, target: Tensor, written: Tensor | None, *, add: bool) -> Tensor | None:
        """``target`` [N] becomes 0 but for the entries.

        Args:
            written: the positions where it is not 0, int32; None where they are not known.
            add: as :meth:`lay` takes it.

        Returns:
            ``written`` of the next call.
        """
        few = self.values.numel() <= target.numel() * _FEW
        if few and written is not None:
            clear_at(target, written)
            for values, positions in self:
                (add_at if add else put_at)(target, positions, values)
        else:
            self.lay([target], add=add)
        return self.positions.clone() if few else None

    def lay(self, targets: Sequence[Tensor], *, add: bool) -> None:
        """``targets`` become 0 but for the entries.

        Args:
            targets: contiguous, float32, on the device of ``values``: stretches that follow each other, as positions
                count them.
            add: entries of one position are summed, in the runs' order; otherwise none may occur twice.
        """
        offsets: I64 = np.array([0, *itertools.accumulate(each.numel() for each in targets)], np.int64)
        fit = all(each.is_contiguous() and each.dtype == torch.float32 for each in targets)
        require(fit, "the average is written into contiguous float32 tensors")
        if fused is not None and self.values.device.type == "cpu":
            addresses = np.array([each.data_ptr() for each in targets], np.int64)
            entries = addresses, offsets, self.positions.numpy(), self.values.numpy(), self.bounds
            numel = int(offsets[-1])
            self._share_out(functools.partial(fused.lay, *entries, add, numel > _BEYOND_CACHES), numel)
            return
        for target, begin, end in zip(targets, offsets, offsets[1:], strict=False):
            flat = target.view(-1).zero_()
            for values, positions in self:
                first, last = torch.searchsorted(positions, positions.new_tensor([begin, end])).tolist()
                where = positions[first:last].long() - begin
                if add:
                    flat.index_add_(0, where, values[first:last])
                else:
                    flat[where] = values[first:last]

    def _share_out(self, work: Callable[[int, int], None], numel: int) -> None:
        """``work`` on all positions, each thread on a stretch of them."""
        packing.share_out(work, packing.cuts_of(numel, self.values.numel(), torch.get_num_threads()))
