"""A recording on a terminal or in a pipe: what was recorded, where its steps went, its buckets, what the file holds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rich.console import Console

from netsim_ddp.report.recordings import (
    MOST_BUCKETS,
    NARROWER,
    bucket_table,
    energy,
    header,
    held,
    more_buckets,
    origin,
    sentences,
    split_tables,
    watching,
)
from netsim_ddp.report.terminal.printing import print_line, print_table
from netsim_ddp.results.recorded_steps import bucket_times, seen_steps
from netsim_ddp.results.recording import Recording


def render_recording(
    recording: Recording, top: Sequence[float | None], file_bytes: int, console: Console
) -> None:
    """Print ``recording``, of a file of ``file_bytes``, to ``console``.

    Args:
        top: of each set of gradients the share of its energy that the largest 1% of the entries hold.
    """
    line = partial(print_line, console, indent="  ")
    seen = seen_steps(recording)
    line(header(recording), "bold")
    line(origin(recording))
    line("")
    print_table(console, split_tables(seen), header_style="dim")
    line("")
    rows = bucket_times(recording, seen)
    variants = (bucket_table(rows[:MOST_BUCKETS], NARROWER[:count]) for count in range(len(NARROWER) + 1))
    print_table(console, variants, gap=1, header_style="dim")
    for sentence in more_buckets(rows):
        line(sentence)
    line("")
    said = (f"file: {held(recording, file_bytes)}", *energy(top), watching(recording.overhead))
    for sentence in (*sentences(recording, seen), *said):
        line(sentence)
    for note in recording.notes:
        line(f"note: {note}", "yellow")
