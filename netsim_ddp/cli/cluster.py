"""The commands that run on this machine alone, or as one of several ranks that torchrun or srun started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from netsim_ddp.cli.streams import say

if TYPE_CHECKING:
    from netsim_ddp.link.hosts import ClusterEnvironment
    from netsim_ddp.ranks.hosts import Hub
    from netsim_ddp.scenario import Scenario


def scenario_here(
    values: Mapping[str, Any], config: Path | None = None
) -> tuple[Scenario, ClusterEnvironment | None]:
    """Returns the scenario of ``values``, with as many workers as ranks were started, and which of them this is; None
    where netsim was started by itself."""
    from netsim_ddp.link.hosts import cluster_environment, leftover_warning
    from netsim_ddp.scenario import build_scenario

    cluster = cluster_environment(os.environ)
    if (note := leftover_warning(os.environ)) is not None:
        say(note)
    started = {} if cluster is None else {"workers": str(cluster.world_size)}
    return build_scenario({**started, **values}, config), cluster


def hub(scenario: Scenario, cluster: ClusterEnvironment | None) -> tuple[Scenario, Hub | None]:
    """Returns the scenario as it runs here, and on rank 0 of several what starts the ranks of all hosts.

    Raises:
        typer.Exit: this was another rank's command, and it has done its part.
    """
    if cluster is None:
        return scenario, None
    from netsim_ddp.ranks.hosts import Hub, on_hosts, serve_rank

    scenario = on_hosts(scenario, cluster)
    if cluster.rank > 0:
        raise typer.Exit(serve_rank(cluster, scenario))
    return scenario, Hub(cluster, scenario)
