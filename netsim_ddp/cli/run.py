"""``netsim run``: step times of every method on one link."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from netsim_ddp.cli.expand import given
from netsim_ddp.cli.options import (
    FileOptions,
    LinkOptions,
    ModelOptions,
    ShowCommands,
    StepMethods,
    StepOptions,
)
from netsim_ddp.cli.output import progress, writable
from netsim_ddp.cli.saving import saving, write_steps
from netsim_ddp.cli.streams import open_console, say, write_document
from netsim_ddp.errors import UsageError

if TYPE_CHECKING:
    from netsim_ddp.link.spec import LinkSpec
    from netsim_ddp.results.record import Result
    from netsim_ddp.results.trace import TracedLap


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
    values = given(link, methods, model, how)
    from netsim_ddp.link.hosts import cluster_environment, leftover_warning
    from netsim_ddp.scenario import build_scenario

    place = cluster_environment(os.environ)
    if (note := leftover_warning(os.environ)) is not None:
        say(note)
    if place is not None:
        values.setdefault("workers", str(place.world_size))
    scenario = build_scenario(values, files.config)
    if show_commands:
        _print_commands(scenario.link_spec(), scenario.link)
        return
    if place is not None:
        from netsim_ddp.ranks.hosts import Hub, on_hosts, serve_rank

        scenario = on_hosts(scenario, place)
        if place.rank > 0:
            raise typer.Exit(serve_rank(place, scenario))
    hosts = None if place is None else Hub(place, scenario)
    copy = None if files.json in (None, "-") else writable(Path(str(files.json)))
    trace_file = None if files.trace_steps is None else writable(files.trace_steps)

    from netsim_ddp.report.terminal.result import render_result
    from netsim_ddp.report.terminal.selections import render_selections
    from netsim_ddp.results.files import to_json
    from netsim_ddp.steps import runner

    def show(result: Result) -> None:
        if files.json == "-":
            write_document(to_json(result))
            return
        console = open_console()
        render_result(result, console, warnings=False)
        render_selections(result, console)

    traced: list[TracedLap] = []
    with saving(copy, runner.measured, show) as kept, progress() as report:
        result = runner.run(
            scenario,
            command=["netsim", *sys.argv[1:]],
            report=report,
            save=kept.save,
            hosts=hosts,
            trace=None if trace_file is None else traced.extend,
        )
    show(result)
    kept.tell(None if files.json == "-" else open_console(), "netsim run --config")
    if trace_file is not None:
        write_steps(traced, trace_file)
    kept.finish()


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
