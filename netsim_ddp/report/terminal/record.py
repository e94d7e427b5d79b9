"""What ``netsim record`` says when its file is written."""

from __future__ import annotations

from netsim_ddp.report.recordings import header, held, split_line, watching
from netsim_ddp.results.recorded_steps import seen_steps
from netsim_ddp.results.recording import Recording


def record_lines(recording: Recording, name: str, file_bytes: int) -> list[str]:
    """A few lines on ``recording``, which is in the file ``name``."""
    return [
        header(recording),
        split_line(seen_steps(recording)),
        watching(recording.overhead),
        f"{name}: {held(recording, file_bytes)}",
        *(f"note: {note}" for note in recording.notes),
        f"next: netsim show {name}, netsim run --recording {name} --bandwidth 1gbps",
    ]
