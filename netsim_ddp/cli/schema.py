"""``netsim schema``: what stands in the files."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def schema(
    kind: Annotated[
        str,
        typer.Option("--kind", metavar="KIND", help="result, probe, codec, launch or comparison."),
    ] = "result",
) -> None:
    """Print the JSON Schema of a kind of file that netsim writes."""
    from netsim_ddp.errors import UsageError
    from netsim_ddp.names import suggest
    from netsim_ddp.results.schema import KINDS
    from netsim_ddp.results.schema import schema as of

    if kind not in KINDS:
        raise UsageError(f"--kind {kind!r} is not known here", hint=suggest(kind, KINDS))
    typer.echo(json.dumps(of(kind), indent=1, ensure_ascii=False))
