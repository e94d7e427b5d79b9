"""Top-K by a dense all-reduce, to show that it saves nothing on the wire."""

from __future__ import annotations

import torch

from netsim_ddp.communication.exchange import summed
from netsim_ddp.communication.segments import Local, Segment
from netsim_ddp.communication.sparse import SelectedEntries
from netsim_ddp.compression.kernels import largest


class TopKDense(SelectedEntries):
    """``topk-dense``: what many papers' code runs. The sparse approximation is written into a dense tensor and
    all-reduced, so that the wire carries exactly what it carries without compression. Kept to show that."""

    name = "topk-dense"

    @property
    def borrows(self) -> bool:
        """It needs a dense average of its own to reduce."""
        return False

    def _exchange(self) -> list[Segment]:
        return [
            Local("compress", self._compress),
            *summed(self.average, self.group),
            Local("decompress", self._divide),
        ]

    def _compress(self) -> None:
        self.average.zero_()
        if self._select():
            self.average[self.indices.long()] = self.values
        else:  # the others wait in the all-reduce: its sum tells them
            self.average.fill_(torch.nan)

    def _divide(self) -> None:
        self.average.div_(self.group.world_size)
        self._conclude(largest(self.average))
