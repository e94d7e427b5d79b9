"""What a rank is told to do, and what ranks of one host share. Imports no torch: the command writes jobs too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import SkipValidation, TypeAdapter

from netsim_ddp.link.base import Endpoint, Link
from netsim_ddp.link.bucket.operations import OperationTable
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.ranks.barrier import HostBarrier
from netsim_ddp.scenario import Scenario, Settings, TrainScenario

S = TypeVar("S", bound=Settings)
KINDS: Mapping[str, type[Settings]] = {kind.__name__: kind for kind in (Scenario, TrainScenario)}
NO_METHOD = MethodSpec(name="")
"""The method of a task that needs none."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What the command tells one rank.

    Attributes:
        task: the class that the rank runs, as ``module:Class``.
        settings: resolved; :meth:`settings_as` has their type.
        method: the method and its options; :data:`NO_METHOD` for a task that needs none.
        params: the task's own parameters: JSON values.
        repeat: the number of the repeat, or a training's seed.
        mechanism, spec: the link.
        endpoint: the rank's address in it.
    """

    task: str
    settings: SkipValidation[Settings]
    method: MethodSpec
    params: Mapping[str, Any]
    repeat: int
    mechanism: str
    spec: LinkSpec
    endpoint: Endpoint
    world_size: int

    @property
    def rank(self) -> int:
        return self.endpoint.rank

    @property
    def label(self) -> str:
        """What its ranks are for, as the log says it: the task, the cell and the repeat."""
        method = f", {self.method.id}" if self.method.name else ""
        return f"{self.task.rpartition(':')[2]}{method}, repeat {self.repeat + 1}"

    def settings_as(self, kind: type[S]) -> S:
        """The settings, which are of this kind."""
        if not isinstance(self.settings, kind):
            raise TypeError(f"{self.task} needs a {kind.__name__}, not a {type(self.settings).__name__}")
        return self.settings


_JOBS = TypeAdapter(list[Job])


def jobs_for(
    link: Link,
    settings: Settings,
    task: str,
    params: Mapping[str, Any],
    *,
    method: MethodSpec = NO_METHOD,
    repeat: int = 0,
) -> list[Job]:
    """One job per rank of ``link``."""
    return [
        Job(task, settings, method, params, repeat, link.mechanism, link.spec, endpoint, link.spec.workers)
        for endpoint in link.endpoints
    ]


def settings_to_json(settings: Settings) -> dict[str, Any]:
    """``settings`` as JSON carries them to a fork server, on this host or another."""
    return {"kind": type(settings).__name__, "values": settings.model_dump(mode="json")}


def settings_from_json(document: Mapping[str, Any]) -> Settings:
    """What :func:`settings_to_json` has written, checked again."""
    return KINDS[document["kind"]].model_validate(document["values"])


def to_json(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """``jobs`` as JSON carries them, without their settings."""
    found: list[dict[str, Any]] = _JOBS.dump_python(
        list(jobs), mode="json", exclude={"__all__": {"settings"}}
    )
    return found


def from_json(documents: Sequence[Mapping[str, Any]], settings: Settings) -> list[Job]:
    """The jobs that :func:`to_json` has written, checked again; all have these ``settings``."""
    return _JOBS.validate_python([{**each, "settings": settings} for each in documents])


@dataclasses.dataclass(frozen=True)
class Shared:
    """Memory that all ranks of a repeat on one host share, made before they are forked."""

    barrier: HostBarrier
    operations: OperationTable | None
    recording: int
    """A file for this rank's recorded gradients; the repeats that follow find them there."""
    compute_times: int
    """A file for the times of this rank's forward and backward; the methods that follow find them there."""
    common_recording: int
    """A file for recorded gradients that all ranks of this host play."""
