"""The command's side of ready times: given in a file, measured before, or measured now. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from netsim_ddp.link.base import Link
from netsim_ddp.ranks.jobs import jobs_for
from netsim_ddp.ranks.launcher import Launcher
from netsim_ddp.results.ready import ReadyTimes
from netsim_ddp.scenario import Scenario

TASK = "netsim_ddp.steps.ready_task:ReadyTask"
FULL = "buckets become full as in a real backward pass"


def ready_times(
    scenario: Scenario,
    launcher: Launcher,
    link: Link,
    cpu: str,
    note: Callable[[str], None],
    warn: Callable[[str], None],
) -> ReadyTimes | None:
    """When the gradients of the resolved ``scenario`` are ready; None where nothing needs to know: compute is real, or
    nothing overlaps.

    Args:
        cpu: the name of this machine's processor.

    Raises:
        UsageError, RankError: the model cannot be trained.
    """
    if scenario.ready_from is not None:
        return scenario.ready_from
    if scenario.compute_s is None or not any(method.params.get("overlap") for method in scenario.methods):
        return None
    if launcher.ready is None:
        note("measuring when a backward pass has its gradients ready, on one worker alone")
        found: dict[str, Any]
        (found,) = launcher.run(jobs_for(link, scenario, TASK, {})[:1], lambda _point, _values: None)
        device = found.pop("device")
        launcher.ready = ReadyTimes(
            model=scenario.model,
            machine=cpu if device == "cpu" else device,
            threads=scenario.threads,
            **found,
        )
        note(f"{FULL}: {launcher.ready.described}")
    if launcher.ready.batch_size != scenario.batch_size:
        warn(
            f"buckets become full as in a backward pass of batch {launcher.ready.batch_size}: "
            f"{scenario.batch_size} do not fit in this machine's memory"
        )
    return launcher.ready
