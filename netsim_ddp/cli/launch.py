"""``netsim launch``: any program on the emulated link."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from netsim_ddp.cli import link_flags
from netsim_ddp.cli.output import progress, writable
from netsim_ddp.cli.streams import open_console, say

_Text = str | None


def launch(
    program: Annotated[
        list[str],
        typer.Argument(metavar="-- PROGRAM [ARG]...", help="What every rank runs.", show_default=False),
    ],
    bandwidth: link_flags.Bandwidth = None,
    slow_rank: link_flags.SlowRank = None,
    delay: link_flags.Delay = None,
    jitter: link_flags.Jitter = None,
    loss: link_flags.Loss = None,
    delay_by: link_flags.DelayBy = None,
    tcp: link_flags.Tcp = None,
    reorder: link_flags.Reorder = None,
    queue: link_flags.Queue = None,
    congestion: link_flags.Congestion = None,
    timeline: link_flags.Timeline = None,
    trace: link_flags.Trace = None,
    peak: link_flags.Peak = None,
    credit: link_flags.Credit = None,
    link_profile: link_flags.Profile = None,
    workers: Annotated[
        _Text, typer.Option("--workers", "-n", "--nproc-per-node", metavar="N", help="Ranks. [4]")
    ] = None,
    one_per_node: Annotated[
        bool,
        typer.Option(
            "--one-per-node", help="Every rank is alone on its node: LOCAL_RANK=0, LOCAL_WORLD_SIZE=1."
        ),
    ] = False,
    timeout: Annotated[
        _Text,
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

    given = {
        "bandwidth": bandwidth,
        "slow_rank": slow_rank,
        "delay": delay,
        "jitter": jitter,
        "loss": loss,
        "delay_by": delay_by,
        "tcp": tcp,
        "reorder": reorder,
        "queue": queue,
        "congestion": congestion,
        "timeline": timeline,
        "trace": trace,
        "peak": peak,
        "credit": credit,
        "link_profile": link_profile,
        "workers": workers,
    }
    scenario = build_scenario({key: value for key, value in given.items() if value is not None})
    timeout_s = None if timeout is None else parse_duration(timeout, what="--timeout")
    if str(json) == "-":
        raise UsageError("--json - would mix with the program's own output", hint="name a file")
    copy = None if json is None else writable(json)

    from netsim_ddp.link.launch import timeout_error
    from netsim_ddp.report.terminal.launch import render_launch
    from netsim_ddp.results.record import save
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
    if outcome.first_failure is not None:
        failed = outcome.first_failure
        say(f"rank {failed.rank} failed first: {failed.exit}")
    raise typer.Exit(record.exit_code)
