"""Steps as a Chrome trace, which https://ui.perfetto.dev and chrome://tracing open: one row per rank and phase."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from netsim_ddp.results.labels import clean
from netsim_ddp.results.recorded_steps import PART_NAMES, Span, seen_steps
from netsim_ddp.results.recording import Recording
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
        _event(
            lap.phase,
            lap.begin_s - zero[lap.cell],
            lap.end_s - lap.begin_s,
            (cells.index(lap.cell) * RANKS_PER_CELL + lap.rank, ROWS.index(lap.phase)),
            {"step": lap.step},
        )
        for lap in laps
    ]
    return _document(events)


def recording_trace(recording: Recording) -> str:
    """The recorded steps: a process per rank, in it a thread for the passes and one per bucket. Ranks of one host are
    on one clock."""
    events: list[dict[str, Any]] = []
    for rank in seen_steps(recording):
        pid = rank[0].rank
        events += [_meta("process_name", pid, 0, f"rank {pid}"), _meta("thread_name", pid, 0, "step")]
        events += [
            _meta("thread_name", pid, number + 1, f"bucket {number}")
            for number in range(len(recording.buckets))
        ]
        for seen in rank:
            lanes: list[list[Span]] = [seen.spans, *seen.bucket_spans]
            events += [
                _event(
                    PART_NAMES.get(span.part, span.part) if not tid else span.part,
                    seen.step.begin_s + span.begin_s,
                    span.end_s - span.begin_s,
                    (pid, tid),
                    {"step": seen.step.number},
                )
                for tid, lane in enumerate(lanes)
                for span in lane
            ]
            events += [
                {
                    "name": "full",
                    "ph": "i",
                    "s": "t",
                    "ts": _us(seen.step.begin_s + full),
                    "pid": pid,
                    "tid": number + 1,
                }
                for number, full in enumerate(seen.step.full_s)
                if full is not None
            ]
    return _document(events)


def _document(events: Sequence[dict[str, Any]]) -> str:
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n"


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _event(
    name: str, begin_s: float, long_s: float, row: tuple[int, int], args: dict[str, Any]
) -> dict[str, Any]:
    """``row``: process and thread."""
    return {
        "name": name, "cat": "step", "ph": "X", "ts": _us(begin_s), "dur": _us(long_s), "pid": row[0],
        "tid": row[1], "args": args,
    }  # fmt: skip


def _meta(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
