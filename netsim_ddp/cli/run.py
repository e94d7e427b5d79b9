"""``netsim run``: step times of every method on one link."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import typer

from netsim_ddp.cli.cluster import hub, scenario_here
from netsim_ddp.cli.expand import given
from netsim_ddp.cli.options import (
    FileOptions,
    LinkOptions,
    ModelOptions,
    ShowCommands,
    StepMethods,
    StepOptions,
)
from netsim_ddp.cli.saving import execute
from netsim_ddp.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from netsim_ddp.link.spec import LinkSpec
    from netsim_ddp.results.record import Result


def run(
    *,
    link: LinkOptions,
    show_commands: ShowCommands = False,
    methods: StepMethods,
    model: ModelOptions,
    how: StepOptions,
    files: FileOptions,
) -> None:
    """Measure a training step: dense beside compressed, on real workers behind a real throttled link."""
    from netsim_ddp.scenario.files import with_loss_function

    flags = with_loss_function(given(link, methods, model, how))
    scenario, cluster = scenario_here(flags, files.config)
    if show_commands:
        _print_commands(scenario.link_spec(), scenario.link)
        return
    scenario, hosts = hub(scenario, cluster)
    from netsim_ddp.steps import runner

    execute(files, "netsim run --config", _render, functools.partial(runner.run, scenario, hosts=hosts))


def _render(result: Result, console: Console) -> None:
    from netsim_ddp.report.terminal.result import render_result
    from netsim_ddp.report.terminal.selections import render_selections

    render_result(result, console, warnings=False)
    render_selections(result, console)


def _print_commands(spec: LinkSpec, mechanism: str) -> None:
    """Print the lines that make a tc link.

    Raises:
        UsageError: the mechanism has none.
    """
    if mechanism not in ("auto", "tc"):
        raise UsageError(f"--link {mechanism} is not made by commands", hint="use --link tc")
    if spec.delay_by == "tun":
        raise UsageError(
            "--delay-by tun is not made by commands: a process of netsim's own carries the packets",
            hint="use --delay-by netem",
        )
    from netsim_ddp.link.tc.plan import script

    for line in script(spec):
        typer.echo(line)
