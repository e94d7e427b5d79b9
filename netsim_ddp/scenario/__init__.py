"""What to run: frozen, validated settings from flags, a YAML file or a result file. Imports no torch."""

from netsim_ddp.scenario.files import build, build_scenario, validate
from netsim_ddp.scenario.settings import Settings, available_cores, ranks_at_once
from netsim_ddp.scenario.steps import Scenario
from netsim_ddp.scenario.train import TrainScenario

__all__ = [
    "Scenario",
    "Settings",
    "TrainScenario",
    "available_cores",
    "build",
    "build_scenario",
    "ranks_at_once",
    "validate",
]
