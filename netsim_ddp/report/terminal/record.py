"""What ``netsim record`` says when its file is written."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from netsim_ddp.results.recording import Overhead, Recording
from netsim_ddp.units import format_bytes, format_duration


def record_lines(recording: Recording, name: str, file_bytes: int) -> list[str]:
    """A few lines on ``recording``, which is in the file ``name``."""
    steps = recording.ranks[0].steps
    split = {
        "data": [step.data_s for step in steps],
        "forward": [step.forward_pass_s for step in steps],
        "backward": [step.backward_pass_s for step in steps],
        "exposed communication": [step.exposed_s for step in steps],
        "optimizer and other": [step.after_s for step in steps],
    }
    how = {"ddp": "DDP", "plain": "no DDP: buckets by its rule"}.get(recording.source, recording.source)
    hook = f", hook {recording.hook}" if recording.hook else ""
    sizes = [bucket.bytes for bucket in recording.buckets]
    passes = median(len(step.passes) for step in steps)
    lines = [
        f"{recording.model}, {recording.numel / 1e6:.3g}M parameters in {len(sizes)} "
        f"{'bucket' if len(sizes) == 1 else 'buckets'} ({how}{hook}), "
        f"{recording.world_size} {'rank' if recording.world_size == 1 else 'ranks'}, {recording.optimizer}",
        f"step {format_duration(median(step.end_s for step in steps))}: "
        + ", ".join(f"{what} {format_duration(median(times))}" for what, times in split.items())
        + f" (medians of {len(steps)} steps, rank {recording.ranks[0].rank}"
        + (f", {passes:g} passes each)" if passes > 1 else ")"),
        f"watching cost {_overhead(recording.overhead)}",
        f"{name}: {format_bytes(file_bytes)}, holds {_holds(recording)}",
        *(f"note: {note}" for note in recording.notes),
        f"next: netsim run --recording {name} --bandwidth 1gbps",
    ]
    return lines


def _overhead(overhead: Overhead | None) -> str:
    if overhead is None or (share := overhead.share) is None:
        return "was not measured: too few steps"

    def shown(times: Sequence[float]) -> str:
        return (
            f"{format_duration(median(times))} [{format_duration(min(times))}, {format_duration(max(times))}]"
        )

    return (
        f"{share:+.1%} of a step: {shown(overhead.on_s)} watched, {shown(overhead.off_s)} not, "
        f"{len(overhead.on_s)} + {len(overhead.off_s)} steps in turns"
    )


def _holds(recording: Recording) -> str:
    gradients = recording.gradients
    rest = "no data, no parameters"
    if not gradients.steps:
        return f"{rest}, no gradients"
    share = sum(gradients.kept) / recording.numel
    what = "all gradients" if gradients.kind == "full" else f"samples ({share:.0%}) of gradients"
    return f"{rest}: {what} of {len(gradients.steps)} steps"
