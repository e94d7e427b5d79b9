"""What a rank is told to do, and what ranks of one host share. Imports no torch: the command writes jobs too."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from netsim_ddp.link.base import Link
from netsim_ddp.link.bucket.arrivals import ArrivalTable
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.ranks.barrier import HostBarrier
from netsim_ddp.scenario import Settings


@dataclasses.dataclass(frozen=True)
class Job:
    """What the command tells one rank. ``scenario`` is resolved; ``task`` is the class that the rank runs, as
    ``module:Class``, and ``params`` are that task's own."""

    rank: int
    world_size: int
    task: str
    scenario: dict[str, Any]
    method: str
    params: dict[str, Any]
    mechanism: str
    link: dict[str, Any]
    address: str
    interface: str
    namespace: int | None
    repeat: int

    @functools.cached_property
    def spec(self) -> LinkSpec:
        return LinkSpec.from_json(self.link)


@dataclasses.dataclass(frozen=True)
class Shared:
    """Memory that all ranks of a repeat on one host share, made before they are forked."""

    barrier: HostBarrier
    arrivals: ArrivalTable | None
    recording: int
    """A file for this rank's recorded gradients; the repeats that follow find them there."""
    compute_times: int
    """Likewise for how long its forward and backward take."""


def jobs_for(
    link: Link,
    scenario: Settings,
    task: str,
    params: dict[str, Any],
    *,
    method: str = "",
    repeat: int = 0,
) -> list[dict[str, Any]]:
    """One job per rank of ``link``, as JSON carries it."""
    return [
        {
            "world_size": link.spec.workers,
            "task": task,
            "scenario": scenario.model_dump(mode="json"),
            "method": method,
            "params": params,
            "mechanism": link.mechanism,
            "link": link.spec.to_json(),
            "repeat": repeat,
            **dataclasses.asdict(endpoint),
        }
        for endpoint in link.endpoints
    ]
