"""A recorded step: its passes, and each bucket from the moment it was full to the end of its exchange."""

from __future__ import annotations

from collections.abc import Sequence

from netsim_ddp.report.charts.shapes import Lane, Stretch, Timeline
from netsim_ddp.results.recorded_steps import PART_NAMES, PARTS, SeenStep, Span, middle_step
from netsim_ddp.results.recording import Recording
from netsim_ddp.units import counted, format_bytes

_MOST_RANKS, _MOST_BUCKETS, _TOLD_BUCKETS = 4, 40, 12


def timelines(recording: Recording, seen: Sequence[Sequence[SeenStep]]) -> list[Timeline]:
    """One step of the first ranks, side by side: that of median length on the first."""
    number = middle_step(seen[0])
    return [_timeline(recording, rank[number], number, len(rank)) for rank in seen[:_MOST_RANKS]]


def _timeline(recording: Recording, seen: SeenStep, number: int, count: int) -> Timeline:
    step = seen.step
    passes = (_stretch(span, PART_NAMES.get(span.part, span.part)) for span in seen.spans)
    lanes = [Lane("step", tuple(passes))]
    for bucket, spans in enumerate(seen.bucket_spans[:_MOST_BUCKETS]):
        full, size = step.full_s[bucket], format_bytes(recording.buckets[bucket].bytes)
        stretches = tuple(_stretch(span, f"bucket {bucket}, {size}, {span.part}") for span in spans)
        lanes.append(Lane(f"bucket {bucket}", stretches, None if full is None else full * 1e3))
    used = {stretch.part for lane in lanes for stretch in lane.stretches}
    notes = [
        "A diamond: the bucket's last gradient is there. The step is the one of median length on the first rank."
    ]
    if (more := len(recording.buckets) - _MOST_BUCKETS) > 0:
        notes.append(f"Not drawn: the last {counted(more, 'bucket')}.")
    return Timeline(
        key=f"step-rank-{seen.rank}",
        title=f"Rank {seen.rank}, step {number + 1} of {count}: {step.end_s * 1e3:.4g} ms",
        lanes=tuple(lanes),
        parts=tuple((part, _LEGEND.get(part, part)) for part in PARTS if part in used),
        text=_words(seen, number),
        notes=tuple(notes),
    )


_LEGEND = {"exchange": f"exchange (of the step: {PART_NAMES['exchange']})"}
"""One colour is a bucket's exchange, and what of all exchanges the step had to wait for."""


def _stretch(span: Span, words: str) -> Stretch:
    return Stretch(
        span.part,
        span.begin_s * 1e3,
        span.end_s * 1e3,
        f"{words}: {(span.end_s - span.begin_s) * 1e3:.4g} ms",
    )


def _words(seen: SeenStep, number: int) -> str:
    parts = [
        f"{PART_NAMES.get(part, part)} {value * 1e3:.3g} ms" for part, value in seen.parts.items() if value
    ]
    buckets = []
    for bucket, (full, done) in enumerate(
        zip(seen.step.full_s[:_TOLD_BUCKETS], seen.step.done_s, strict=False)
    ):
        through = "" if done is None else f", exchanged at {done * 1e3:.4g} ms"
        buckets.append(
            f"bucket {bucket} {'never full' if full is None else f'full at {full * 1e3:.4g} ms'}{through}"
        )
    more = len(seen.step.full_s) - _TOLD_BUCKETS
    rest = [counted(more, "more bucket")] if more > 0 else []
    return f"Recorded step {number} on rank {seen.rank}: {', '.join(parts)}. {'; '.join(buckets + rest)}."
