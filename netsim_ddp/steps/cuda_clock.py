"""The clock of a step whose work is queued on a GPU."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch


class CudaClock:
    """CUDA events, for work that is only queued when the call returns; no synchronisation within the step."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        last.record()
        last.synchronize()
        now = time.monotonic()
        return [now - mark.elapsed_time(last) / 1e3 for mark in marks]
