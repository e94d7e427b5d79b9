"""What a trace of steps is made from: who did what, from when to when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

TRACED_STEPS = 5


class TracedLap(NamedTuple):
    """One rank's piece of one step; times in seconds of the monotonic clock that all ranks of a machine share."""

    cell: str
    rank: int
    step: int
    phase: str
    begin_s: float
    end_s: float


KeepTrace = Callable[[Sequence[TracedLap]], None]
"""Called with the laps of a cell, once it is through."""


def traced_laps(cell: str, records: Sequence[dict[str, Any]], steps: int) -> list[TracedLap]:
    """The laps of up to ``steps`` steps, out of what the ranks of ``cell`` answered."""
    return [
        TracedLap(cell, record["rank"], step, phase, begin, end)
        for record in records
        for step, sample in enumerate(record["samples"][:steps])
        for phase, begin, end in sample["laps"]
    ]
