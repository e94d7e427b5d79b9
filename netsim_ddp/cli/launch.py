"""``netsim launch``: any program on the emulated link."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from netsim_ddp.cli.expand import given
from netsim_ddp.cli.options import LinkOptions, Text
from netsim_ddp.cli.output import progress, writable
from netsim_ddp.cli.streams import open_console, say


def launch(
    program: Annotated[
        list[str],
        typer.Argument(metavar="-- PROGRAM [ARG]...", help="What every rank runs.", show_default=False),
    ],
    *,
    link: LinkOptions,
    workers: Annotated[
        Text, typer.Option("--workers", "-n", "--nproc-per-node", metavar="N", help="Ranks. [4]")
    ] = None,
    one_per_node: Annotated[
        bool,
        typer.Option(
            "--one-per-node", help="Every rank is alone on its node: LOCAL_RANK=0, LOCAL_WORLD_SIZE=1."
        ),
    ] = False,
    timeout: Annotated[
        Text,
        typer.Option(metavar="TIME", help="End the ranks when they take longer than this: 10min. [none]"),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write what every rank sent and how it ended there.")
    ] = None,
) -> None:
    """Run any program on the link, one rank per network namespace: netsim launch -n 4 -- python train.py

    Needs tc (Linux, iproute2; netsim doctor tells), and ranks have NO ROUTE TO THE INTERNET: download before.

    Sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT and the interface for Gloo, NCCL and
    TensorPipe, as torchrun's workers have them. Rank R's host is called netsim-R, a name that all ranks resolve to
    its address: with --one-per-node, torchrun --rdzv_backend c10d --rdzv_endpoint $MASTER_ADDR:29500 works as on hosts
    of their own. Output lines carry their rank; what each rank sent goes to stderr at the end. Exits with the first
    failing rank's code, after ending the others.
    """
    from netsim_ddp.errors import UsageError
    from netsim_ddp.scenario import build_scenario
    from netsim_ddp.units import parse_duration

    scenario = build_scenario(given(link) | ({} if workers is None else {"workers": workers}))
    timeout_s = None if timeout is None else parse_duration(timeout, what="--timeout")
    if str(json) == "-":
        raise UsageError("--json - would mix with the program's own output", hint="name a file")
    copy = None if json is None else writable(json)

    from netsim_ddp.link.launch import timeout_error
    from netsim_ddp.report.terminal.launch import render_launch
    from netsim_ddp.results.files import save
    from netsim_ddp.tools.launch import launch_program

    with progress(bar=False) as report:
        record, outcome = launch_program(
            scenario,
            program,
            sys.stdout.buffer,
            sys.stderr.buffer,
            one_per_node=one_per_node,
            timeout_s=timeout_s,
            command=["netsim", *sys.argv[1:]],
            report=report,
        )
    render_launch(record, open_console(stderr=True, highlight=False))
    if copy is not None:
        save(record, copy)
    if outcome.timed_out and timeout_s is not None:
        raise timeout_error(outcome, timeout_s)
    if outcome.interrupted:
        raise KeyboardInterrupt
    if (failed := outcome.first_failure) is not None:
        say(f"rank {failed.rank} failed first: {failed.exit}")
    raise typer.Exit(record.exit_code)
