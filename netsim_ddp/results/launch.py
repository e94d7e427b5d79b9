"""What one launch of a program on the link came to, rank by rank."""

from __future__ import annotations

from statistics import median
from typing import Literal

from netsim_ddp.results.fields import Count, Positive, Seconds, Strict, Tool
from netsim_ddp.results.record import LinkRecord
from netsim_ddp.results.recorded_steps import (
    Spread,
    bucket_times,
    longest_step_s,
    seen_steps,
    without_exchange_s,
)
from netsim_ddp.results.recording import Recording


class LaunchRank(Strict):
    """One rank's process. Bytes count every header, as the interface's qdisc does; ``ended_here``: it was still
    running when another rank failed, the time was up or the user interrupted."""

    rank: int
    exit_code: int | None
    signal: int | None
    ended_here: bool
    wall_s: float
    tx_bytes: int
    rx_bytes: int
    drops: int
    retransmits: int

    @property
    def tx_bps(self) -> float:
        """Mean over the time that the process ran."""
        return self.tx_bytes * 8 / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def rx_bps(self) -> float:
        """Mean over the time that the process ran."""
        return self.rx_bytes * 8 / self.wall_s if self.wall_s > 0 else 0.0


class RecordedRank(Strict):
    """Where one rank's recorded steps went: medians, of the parts that :mod:`netsim_ddp.results.recorded_steps` has.
    ``exchange_s`` is the exposed communication; ``wait_s`` is part of it where not all ranks were seen."""

    rank: Count
    step_s: Positive
    data_s: Positive
    forward_s: Positive
    backward_s: Positive
    wait_s: Positive
    exchange_s: Positive
    other_s: Positive
    optimizer_s: Positive


class RecordedBucket(Strict):
    """One bucket, over steps and ranks: medians of when it was full and when its exchange was through, for
    how long this exchange was exposed, and how far the ranks were apart. None where nobody saw it."""

    bytes: Count
    full_s: Seconds | None
    done_s: Seconds | None
    exposed_s: Seconds | None
    apart_s: Seconds | None


class RecordedLaunch(Strict):
    """Where the launched program's own steps went. ``step_s`` is the slowest rank's, in the median;
    ``without_exchange_s`` is worked out and not measured: what it would be if exchanges took no time. ``file`` is the
    name of the recording's file, ``key`` the recording's key."""

    file: str
    key: str
    source: str
    steps: Count
    world_size: Count
    step_s: Positive
    without_exchange_s: Positive
    ranks: list[RecordedRank]
    buckets: list[RecordedBucket]


def recorded_launch(recording: Recording, file: str) -> RecordedLaunch:
    seen = seen_steps(recording)
    ranks = []
    for steps in seen:
        parts = [each.parts for each in steps]
        medians = {f"{name}_s": median(each[name] for each in parts) for name in parts[0]}
        length = median(each.step.end_s for each in steps)
        ranks.append(RecordedRank.model_validate({"rank": steps[0].rank, "step_s": length, **medians}))
    return RecordedLaunch(
        file=file,
        key=recording.key,
        source=recording.source,
        steps=len(seen[0]),
        world_size=recording.world_size,
        step_s=longest_step_s(seen),
        without_exchange_s=without_exchange_s(seen),
        ranks=ranks,
        buckets=[
            RecordedBucket(
                bytes=row.bucket.bytes,
                full_s=_median(row.full),
                done_s=_median(row.done),
                exposed_s=_median(row.exposed),
                apart_s=_median(row.apart),
            )
            for row in bucket_times(recording, seen)
        ],
    )


def _median(value: Spread | None) -> float | None:
    return None if value is None else value.median


class Launch(Strict):
    """A whole launch. ``exit_code`` is the first failing rank's, and the command's own. ``recorded``: with --record,
    where the program's steps went (since version 2)."""

    schema_version: Literal[1, 2] = 2
    kind: Literal["launch"] = "launch"
    tool: Tool
    created_utc: str
    status: Literal["complete", "failed", "interrupted", "timeout"]
    exit_code: int
    first_failing_rank: int | None
    environment: dict[str, object]
    command: str
    program: list[str]
    workers: int
    wall_s: float
    link: LinkRecord
    ranks: list[LaunchRank]
    recorded: RecordedLaunch | None = None
