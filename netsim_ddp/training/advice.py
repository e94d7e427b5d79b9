"""What a training's reader should know before it starts."""

from __future__ import annotations

import os

from netsim_ddp.methods import takes
from netsim_ddp.scenario import TrainScenario, available_cores
from netsim_ddp.steps.runner import BUSY


def warnings(scenario: TrainScenario) -> list[str]:
    """What the times suffer from."""
    workers, threads, cores = scenario.workers, scenario.threads, available_cores()
    found = []
    if workers * threads > cores:
        found.append(
            f"{workers} workers x {threads} thread share {cores} cores: "
            "an epoch takes longer here than on machines of their own"
        )
    load = os.getloadavg()[0]
    if load > max(1.0, 0.5 * cores):
        found.append(f"{BUSY}: load {load:.1f} on {cores} cores")
    return found


def notes(scenario: TrainScenario) -> list[str]:
    """Settings that are known to learn badly together, and what helps (docs/training.md)."""
    if scenario.optimizer == "sgd":
        return []
    for method in scenario.methods:
        helped = {"dense_below", "freeze_after"} & method.params.keys()
        if takes(method.name, "dense_below") and not helped:
            return [
                f"{method.name} under {scenario.optimizer}: entries that come rarely meet a second moment that hardly "
                f"knows them; {method.name},dense_below=20000 sends small parameters whole"
            ]
    return []
