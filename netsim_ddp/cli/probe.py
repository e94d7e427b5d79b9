"""``netsim probe``: what a link really delivers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from netsim_ddp.cli import link_flags
from netsim_ddp.cli.output import progress, writable

_Text = str | None


def probe(
    bandwidth: link_flags.Bandwidth = None,
    slow_rank: link_flags.SlowRank = None,
    workers: Annotated[
        _Text, typer.Option("--workers", "-n", "--nproc-per-node", metavar="N", help="Ranks. [4]")
    ] = None,
    link: link_flags.Mechanism = None,
    collectives: Annotated[
        bool,
        typer.Option(
            "--collectives",
            help="Measure all_reduce, all_gather and the split exchange too, as nccl-tests does.",
        ),
    ] = False,
    json: Annotated[
        _Text,
        typer.Option(metavar="PATH|-", help="Write the probe there too; - is stdout, and nothing else is."),
    ] = None,
) -> None:
    """Measure a link before trusting it: bulk, messages after idle, round trip, all ranks at once.

    Exits with 4 when a figure is off its target, and names it.
    """
    from netsim_ddp.scenario import build_scenario

    given = {"bandwidth": bandwidth, "slow_rank": slow_rank, "workers": workers, "link": link}
    scenario = build_scenario({key: value for key, value in given.items() if value is not None})
    copy = None if json in (None, "-") else writable(Path(str(json)))

    from rich.console import Console

    from netsim_ddp.bench.prober import probe_link
    from netsim_ddp.errors import LinkOffTarget
    from netsim_ddp.report.probe import render_probe
    from netsim_ddp.results.record import save, to_json

    with progress(bar=False) as report:
        found = probe_link(
            scenario, collectives=collectives, command=["netsim", *sys.argv[1:]], report=report
        )
    if copy is not None:
        save(found, copy)
    if json == "-":
        sys.stdout.write(to_json(found))
    else:
        render_probe(found, Console(highlight=False))
    if found.off_target:
        raise LinkOffTarget(f"off target: {'; '.join(found.off_target)}")
