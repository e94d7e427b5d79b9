"""``netsim scenarios``: what there is to choose from."""

from __future__ import annotations

import shutil
import textwrap
from typing import Annotated

import typer

from netsim_ddp.cli.expand import command
from netsim_ddp.units import counted

scenarios = typer.Typer(
    help="List what there is to choose from.", invoke_without_command=True, rich_markup_mode=None
)


@scenarios.callback()
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@scenarios.command("list")
@command
def list_() -> None:
    """List the built-in scenarios and how long each takes."""
    from netsim_ddp.report.terminal.sweep_progress import rough
    from netsim_ddp.scenario.files import built_in
    from netsim_ddp.sweep.runner import Sweep
    from netsim_ddp.sweep.source import read_plan

    width = shutil.get_terminal_size().columns
    for name, path in built_in().items():
        _, matrix, _, runs = read_plan(str(path))
        ids = frozenset(cell.id for run in runs for cell in run.cells)
        expected_s = Sweep(name, matrix, runs, selected=ids, kept={}, known={}).expected_s
        about = f"{matrix.question} {counted(len(ids), 'cell')}, about {rough(expected_s)}."
        for i, line in enumerate(textwrap.wrap(about, max(40, width - 18), break_on_hyphens=False)):
            typer.echo(f"{name if i == 0 else '':<17} {line}")
    typer.echo(
        "\nRun one with: netsim sweep NAME. Times are estimates: bytes / line rate, compute and start-up."
    )


@scenarios.command()
@command
def show(name: Annotated[str, typer.Argument(help="Of a built-in scenario, or a file.")]) -> None:
    """A scenario's file, to read or to start one of your own from."""
    from netsim_ddp.link.timeline import read_text
    from netsim_ddp.scenario.files import find

    typer.echo(read_text(find(name), "scenario"), nl=False)


@scenarios.command()
@command
def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only this one.", show_default=False)
    ] = None,
) -> None:
    """List the built-in methods and their options."""
    from netsim_ddp.errors import UsageError
    from netsim_ddp.methods import METHODS
    from netsim_ddp.names import suggest
    from netsim_ddp.report.reference import method_lines

    if name is not None and name not in METHODS:
        raise UsageError(f"unknown method {name!r}", hint=suggest(name, METHODS))
    width = max(40, shutil.get_terminal_size().columns)
    for each in METHODS if name is None else [name]:
        typer.echo("\n".join(method_lines(each, width)))


@scenarios.command()
@command
def links() -> None:
    """List the links that --link-profile knows."""
    from netsim_ddp.link.profiles import PROFILES

    for name, each in PROFILES.items():
        flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in each.values.items())
        typer.echo(f"{name:<12} {flags}")
        typer.echo(f"{'':<12} {each.about}. {each.source}")
