"""Steps as a Chrome trace, which https://ui.perfetto.dev and chrome://tracing open: one row per rank and phase."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from netsim_ddp.results.labels import clean
from netsim_ddp.results.trace import TracedLap

ROWS = ("compute", "compress", "send", "wire", "decompress", "optimizer", "other")
"""Phases from top to bottom; ``wire`` is waiting for an exchange, and for the ranks it is with."""
RANKS_PER_CELL = 1000


def trace_json(laps: Sequence[TracedLap]) -> str:
    """The trace: a process per rank, a thread per phase, times in microseconds. Every cell starts at 0, so that what
    ran one after the other can be looked at side by side."""
    cells = list(dict.fromkeys(lap.cell for lap in laps))
    zero = {cell: min(lap.begin_s for lap in laps if lap.cell == cell) for cell in cells}
    events: list[dict[str, Any]] = []
    for cell, rank in dict.fromkeys((lap.cell, lap.rank) for lap in laps):
        pid = cells.index(cell) * RANKS_PER_CELL + rank
        events.append(_meta("process_name", pid, 0, f"{clean(cell)} rank {rank}"))
        events += [_meta("thread_name", pid, tid, phase) for tid, phase in enumerate(ROWS)]
    events += [
        {
            "name": lap.phase,
            "cat": "step",
            "ph": "X",
            "ts": round((lap.begin_s - zero[lap.cell]) * 1e6, 3),
            "dur": round((lap.end_s - lap.begin_s) * 1e6, 3),
            "pid": cells.index(lap.cell) * RANKS_PER_CELL + lap.rank,
            "tid": ROWS.index(lap.phase),
            "args": {"step": lap.step},
        }
        for lap in laps
    ]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n"


def _meta(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
