"""Where trainings run: a link, and a fork server inside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack

from netsim_ddp.link.base import Link
from netsim_ddp.link.probe.probe import ProbeReport
from netsim_ddp.ranks.launcher import Launcher
from netsim_ddp.ranks.pool import Stage
from netsim_ddp.scenario import TrainScenario
from netsim_ddp.steps.runner import have_data


@dataclasses.dataclass
class Ground:
    """A link that exists, proven, with a fork server inside: several experiments may use it one after the other, as
    long as they agree on model, data, threads, ranks and link."""

    link: Link
    launcher: Launcher
    measured: ProbeReport | None


def ground(
    scenario: TrainScenario, stack: ExitStack, note: Callable[[str], None], warn: Callable[[str], None]
) -> Ground:
    """The ground for a resolved ``scenario``, left when ``stack`` is.

    Raises:
        EnvironmentFault: the link cannot be made, is not what was asked for, or the workers cannot start.
    """
    have_data(scenario, note)
    stage = stack.enter_context(Stage())
    link, measured = stage.link(scenario.link_spec(), scenario.link, note, warn)
    return Ground(link, stage.launcher(link, scenario, note), measured)
