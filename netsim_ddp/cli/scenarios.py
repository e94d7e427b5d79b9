"""``netsim scenarios``: what there is to choose from."""

from __future__ import annotations

import typer

scenarios = typer.Typer(
    help="List what there is to choose from.", invoke_without_command=True, rich_markup_mode=None
)


@scenarios.callback()
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@scenarios.command()
def links() -> None:
    """The links that --link-profile knows, each with where its numbers come from."""
    from netsim_ddp.link.profiles import PROFILES

    for name, each in PROFILES.items():
        flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in each.values.items())
        typer.echo(f"{name:<12} {flags}")
        typer.echo(f"{'':<12} {each.about}. {each.source}")
