"""``netsim probe``: what a link really delivers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from netsim_ddp.cli.cluster import hub, scenario_here
from netsim_ddp.cli.expand import given
from netsim_ddp.cli.options import LinkOptions, Mechanism, Recording, Text
from netsim_ddp.cli.output import progress, writable
from netsim_ddp.cli.streams import open_console, write_document


def probe(
    *,
    options: LinkOptions,
    workers: Annotated[
        Text, typer.Option("--workers", "-n", "--nproc-per-node", metavar="N", help="Ranks. [4]")
    ] = None,
    link: Mechanism = None,
    recording: Recording = None,
    collectives: Annotated[
        bool,
        typer.Option(
            "--collectives",
            help="Measure all_reduce, all_gather and the split exchange too, as nccl-tests does.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write what was measured as a link, for --link-profile FILE.",
        ),
    ] = None,
    measurement: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Measure nothing: take the output of iperf3 -J, nccl-tests or netsim probe --json; needs -o.",
        ),
    ] = None,
    json: Annotated[
        Text,
        typer.Option(metavar="PATH|-", help="Write the probe there too; - is stdout, and nothing else is."),
    ] = None,
) -> None:
    """Measure a link before trusting it: bulk, messages after idle, round trip, all ranks at once.

    Exits with 4 when a figure is off its target, and names it.
    """
    from netsim_ddp.errors import UsageError
    from netsim_ddp.link.measured.profile import from_probe, read_measurement, write_profile

    profile = None if output is None else writable(output)
    if measurement is not None:
        if profile is None:
            raise UsageError("--from needs a file to write", hint="add -o mylink.yaml")
        write_profile(read_measurement(measurement), profile)
        typer.echo(f"wrote {output}: netsim run --link-profile {output}")
        return
    chosen = {"workers": workers, "link": link, "recording": recording}
    more = {key: value for key, value in chosen.items() if value}
    scenario, hosts = hub(*scenario_here(given(options) | more))
    copy = None if json in (None, "-") else writable(Path(str(json)))

    from netsim_ddp.errors import LinkOffTarget
    from netsim_ddp.report.terminal.probe import render_probe
    from netsim_ddp.results.files import save, to_json
    from netsim_ddp.tools.probe import probe_link

    with progress(bar=False) as report:
        found = probe_link(
            scenario,
            collectives=collectives,
            command=["netsim", *sys.argv[1:]],
            report=report,
            hosts=hosts,
        )
    if json == "-":
        write_document(to_json(found))
    else:
        render_probe(found, open_console(highlight=False))
    if copy is not None:
        save(found, copy)
    if profile is not None:
        write_profile(from_probe(found), profile)
    if found.off_target:
        raise LinkOffTarget(f"off target: {'; '.join(found.off_target)}")
