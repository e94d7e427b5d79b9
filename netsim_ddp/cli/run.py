"""``netsim run``: step times of every method on one link."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netsim_ddp.cli import link_flags, run_flags
from netsim_ddp.cli.output import progress, writable
from netsim_ddp.cli.run_flags import Text
from netsim_ddp.cli.saving import saving, write_steps
from netsim_ddp.cli.streams import open_console, say, write_document

if TYPE_CHECKING:
    from netsim_ddp.results.record import Result
    from netsim_ddp.results.trace import TracedLap


def run(
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
    show_commands: link_flags.ShowCommands = False,
    ratio: run_flags.Ratio = None,
    overlap: Annotated[
        Text,
        typer.Option(
            metavar="on|off",
            help="Exchange buckets while backward goes on, in methods that do not say; dense runs both ways. "
            "[on with --compute]",
        ),
    ] = None,
    method: run_flags.Method = None,
    baseline: Annotated[
        Text,
        typer.Option(
            metavar="NAME",
            help="Dense in 16 bits, overlapped as DDP's hook does it, that the methods are held against: fp16, bf16, "
            "none. [fp16; bf16 on NCCL]",
        ),
    ] = None,
    workers: run_flags.Workers = None,
    model: run_flags.Model = None,
    dataset: run_flags.Dataset = None,
    data_dir: run_flags.DataDir = None,
    download: run_flags.Download = None,
    text: run_flags.TextPath = None,
    batch_size: run_flags.BatchSize = None,
    learning_rate: Annotated[
        Text, typer.Option("--learning-rate", "--lr", metavar="X", help="Learning rate of SGD. [0.1]")
    ] = None,
    momentum: run_flags.Momentum = None,
    compute: Annotated[
        Text,
        typer.Option(
            metavar="TIME",
            help="Take forward, backward and optimizer as this long, as on an accelerator: 50ms.",
        ),
    ] = None,
    steps: Annotated[Text, typer.Option(metavar="N", help="Measured steps per repeat. [20]")] = None,
    warmup: Annotated[
        Text, typer.Option(metavar="N", help="Steps before the measured ones, not counted. [3]")
    ] = None,
    repeats: Annotated[
        Text,
        typer.Option("--repeats", "--runs", metavar="N", help="Fresh sets of processes per method. [3]"),
    ] = None,
    seed: run_flags.Seed = None,
    link: link_flags.Mechanism = None,
    backend: run_flags.Backend = None,
    device: run_flags.Device = None,
    execution: Annotated[
        Text,
        typer.Option(
            metavar="HOW",
            help="concurrent, replayed (local work measured with cores of its own), auto: replayed with more "
            "workers than cores. [auto]",
        ),
    ] = None,
    threads: Annotated[
        Text, typer.Option(metavar="N", help="Threads per worker. [replayed: cores; else cores / workers]")
    ] = None,
    statistics: Annotated[
        Text,
        typer.Option(
            metavar="WHAT",
            help="Record what selections keep: total, or layers for every parameter too; none. [none]",
        ),
    ] = None,
    codec_from: Annotated[
        Text,
        typer.Option(
            metavar="FILE",
            help="Use the codec times in this file, of a GPU for example, in place of this machine's; "
            "netsim bench compress --json writes it.",
        ),
    ] = None,
    ready_from: Annotated[
        Text,
        typer.Option(
            metavar="FILE",
            help="With --compute: buckets become full as in the backward pass of this result file, or file of ready "
            "times, of a GPU for example. [measured here]",
        ),
    ] = None,
    timeout: run_flags.Timeout = None,
    time_budget: Annotated[
        Text, typer.Option(metavar="TIME", help="Start no further repeat after this: 5min. [none]")
    ] = None,
    config: run_flags.Config = None,
    json: run_flags.Json = None,
    trace_steps: run_flags.TraceSteps = None,
) -> None:
    """Measure a training step: dense beside compressed, on real workers behind a real throttled link."""
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
        "ratio": ratio,
        "overlap": overlap,
        "methods": method,
        "baseline": baseline,
        "workers": workers,
        "model": model,
        "dataset": dataset,
        "data_dir": data_dir,
        "download": download,
        "text": text,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "compute": compute,
        "steps": steps,
        "warmup": warmup,
        "repeats": repeats,
        "seed": seed,
        "link": link,
        "backend": backend,
        "device": device,
        "execution": execution,
        "threads": threads,
        "statistics": statistics,
        "codec_from": codec_from,
        "ready_from": ready_from,
        "timeout": timeout,
        "time_budget": time_budget,
    }
    from netsim_ddp.link.hosts import place_of, told
    from netsim_ddp.scenario import build_scenario

    place = place_of(os.environ)
    if (note := told(os.environ)) is not None:
        say(note)
    if place is not None:
        given["workers"] = given["workers"] or str(place.world_size)
    scenario = build_scenario({key: value for key, value in given.items() if value is not None}, config)
    if show_commands:
        link_flags.show_commands(scenario.link_spec(), scenario.link)
        return
    if place is not None:
        from netsim_ddp.ranks.hosts import Hub, on_hosts, serve_rank

        scenario = on_hosts(scenario, place)
        if place.rank > 0:
            raise typer.Exit(serve_rank(place, scenario))
    hosts = None if place is None else Hub(place, scenario)
    copy = None if json in (None, "-") else writable(Path(str(json)))
    trace_file = None if trace_steps is None else writable(trace_steps)

    from netsim_ddp.report.terminal.result import render_result
    from netsim_ddp.report.terminal.selections import render_selections
    from netsim_ddp.results.record import to_json
    from netsim_ddp.steps import runner

    def show(result: Result) -> None:
        if json == "-":
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
    kept.tell(None if json == "-" else open_console(), "netsim run --config")
    if trace_file is not None:
        write_steps(traced, trace_file)
    kept.finish()
