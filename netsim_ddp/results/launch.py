"""What one launch of a program on the link came to, rank by rank."""

from __future__ import annotations

from typing import Literal

from netsim_ddp.results.fields import Strict, Tool
from netsim_ddp.results.record import LinkRecord


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


class Launch(Strict):
    """A whole launch. ``exit_code`` is the first failing rank's, and the command's own."""

    schema_version: Literal[1] = 1
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
