"""``netsim launch``: any program on the emulated link."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from netsim_ddp.cli.expand import given
from netsim_ddp.cli.options import LinkOptions, Text
from netsim_ddp.cli.output import progress, writable
from netsim_ddp.cli.streams import open_console, say
from netsim_ddp.errors import UsageError


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
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Record the program's steps too, as netsim record does, and say where they went.",
        ),
    ] = None,
    record_steps: Annotated[
        Text, typer.Option(metavar="N", help="Of --record: steps to watch, and as many that are not. [10]")
    ] = None,
    record_gradients: Annotated[
        Text, typer.Option(metavar="HOW", help="Of --record: sampled, full or none. [sampled]")
    ] = None,
) -> None:
    """Run any program on the link, one rank per network namespace: netsim launch -n 4 -- python train.py

    Needs tc (Linux, iproute2; netsim doctor tells), and ranks have NO ROUTE TO THE INTERNET: download before.

    Sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT and the interface for Gloo, NCCL and
    TensorPipe, as torchrun's workers have them. Rank R's host is called netsim-R, a name that all ranks resolve to
    its address: with --one-per-node, torchrun --rdzv_backend c10d --rdzv_endpoint $MASTER_ADDR:29500 works as on hosts
    of their own. Output lines carry their rank; what each rank sent goes to stderr at the end. Exits with the first
    failing rank's code, after ending the others. With --record the summary says of the program's own steps what was
    compute, wait for the slowest rank and exposed communication, and of which buckets.
    """
    from netsim_ddp.scenario import build_scenario
    from netsim_ddp.units import parse_duration

    scenario = build_scenario(given(link) | ({} if workers is None else {"workers": workers}))
    timeout_s = None if timeout is None else parse_duration(timeout, what="--timeout")
    if str(json) == "-":
        raise UsageError("--json - would mix with the program's own output", hint="name a file")
    copy = None if json is None else writable(json)
    target, steps, gradients = _recording(record, record_steps, record_gradients)

    from netsim_ddp.link.launch import timeout_error
    from netsim_ddp.report.terminal.launch import render_launch
    from netsim_ddp.results.files import save
    from netsim_ddp.tools.launch import launch_program

    problem = None
    with progress(bar=False) as report:
        run = partial(
            launch_program,
            scenario,
            program,
            sys.stdout.buffer,
            sys.stderr.buffer,
            one_per_node=one_per_node,
            timeout_s=timeout_s,
            command=["netsim", *sys.argv[1:]],
            report=report,
        )
        if target is None:
            launched, outcome = run()
        else:
            from netsim_ddp.tools.record.launched import launch_recorded

            launched, outcome, problem = launch_recorded(
                lambda added: run(added=added), program, target, steps=steps, gradients=gradients
            )
    render_launch(launched, open_console(stderr=True, highlight=False))
    if copy is not None:
        save(launched, copy)
    if launched.recorded is not None:
        say(
            f"recorded {record}, for netsim show {record} and netsim run --recording {record} --bandwidth 1gbps"
        )
    elif problem is not None:
        if not launched.exit_code:
            raise problem
        say(str(problem))
    if outcome.timed_out and timeout_s is not None:
        raise timeout_error(outcome, timeout_s)
    if outcome.interrupted:
        raise KeyboardInterrupt
    if (failed := outcome.first_failure) is not None:
        say(f"rank {failed.rank} failed first: {failed.exit}")
    raise typer.Exit(launched.exit_code)


def _recording(record: Path | None, steps: str | None, gradients: str | None) -> tuple[Path | None, int, str]:
    """Where the recording goes, how many steps and which gradients it has.

    Raises:
        UsageError: one of them is none, or given without --record.
    """
    if record is None:
        if flag := "--record-steps" if steps else "--record-gradients" if gradients else "":
            raise UsageError(f"{flag} is of a recording, and none is made", hint="add --record FILE")
        return None, 0, ""
    if str(record).startswith("-"):  # --record -- python train.py
        raise UsageError("--record needs a file", hint="write --record r.netsim -- python train.py")
    if steps is not None and not (steps.isascii() and steps.isdigit() and 1 <= int(steps) <= 1000):
        raise UsageError(f"--record-steps {steps!r}", hint="a number from 1 to 1000")
    if gradients not in (None, "sampled", "full", "none"):
        raise UsageError(f"--record-gradients {gradients!r}", hint="sampled, full or none")
    return writable(record), int(steps or 10), gradients or "sampled"
