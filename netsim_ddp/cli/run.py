"""``netsim run``: step times of every method on one link."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netsim_ddp.cli import link_flags
from netsim_ddp.cli.output import progress, writable
from netsim_ddp.cli.saving import new_file, point_last

if TYPE_CHECKING:
    from netsim_ddp.results.record import Result

# Numbers are text here too: the scenario checks them, so that flags and files get the same messages.
_Text = str | None


def run(
    bandwidth: link_flags.Bandwidth = None,
    slow_rank: link_flags.SlowRank = None,
    delay: link_flags.Delay = None,
    jitter: link_flags.Jitter = None,
    loss: link_flags.Loss = None,
    queue: link_flags.Queue = None,
    congestion: link_flags.Congestion = None,
    timeline: link_flags.Timeline = None,
    trace: link_flags.Trace = None,
    peak: link_flags.Peak = None,
    credit: link_flags.Credit = None,
    link_profile: link_flags.Profile = None,
    show_commands: link_flags.ShowCommands = False,
    ratio: Annotated[
        _Text,
        typer.Option(metavar="FRACTION", help="Kept fraction for methods that take one: 0.01, 1%. [0.01]"),
    ] = None,
    overlap: Annotated[
        _Text,
        typer.Option(
            metavar="on|off",
            help="Exchange buckets while backward goes on, in methods that do not say; dense runs both ways. "
            "[on with --compute]",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[,KEY=VALUE]",
            help="dense, fp16, bf16, powersgd, topk, topk-allgather, topk-dense, my_module:factory; repeatable. "
            "[dense, topk]",
        ),
    ] = None,
    workers: Annotated[
        _Text, typer.Option("--workers", "-n", "--nproc-per-node", metavar="N", help="Worker processes. [4]")
    ] = None,
    model: Annotated[
        _Text,
        typer.Option(
            metavar="NAME",
            help="simple_cnn, resnet18, resnet50, torchvision:NAME, my_module:build. [simple_cnn]",
        ),
    ] = None,
    dataset: Annotated[
        _Text,
        typer.Option(metavar="NAME", help="digits, synthetic-cifar10, synthetic-imagenet. [fits the model]"),
    ] = None,
    batch_size: Annotated[_Text, typer.Option(metavar="N", help="Images per worker and step. [32]")] = None,
    learning_rate: Annotated[
        _Text, typer.Option("--learning-rate", "--lr", metavar="X", help="SGD's. [0.1]")
    ] = None,
    momentum: Annotated[_Text, typer.Option(metavar="X", help="SGD's. [0]")] = None,
    compute: Annotated[
        _Text,
        typer.Option(
            metavar="TIME",
            help="Take forward, backward and optimizer as this long, as on an accelerator: 50ms.",
        ),
    ] = None,
    steps: Annotated[_Text, typer.Option(metavar="N", help="Measured steps per repeat. [20]")] = None,
    warmup: Annotated[_Text, typer.Option(metavar="N", help="Steps before them. [3]")] = None,
    repeats: Annotated[
        _Text,
        typer.Option("--repeats", "--runs", metavar="N", help="Fresh sets of processes per method. [3]"),
    ] = None,
    seed: Annotated[
        _Text, typer.Option(metavar="N", help="Of parameters, data split and shuffling. [0]")
    ] = None,
    link: link_flags.Mechanism = None,
    backend: Annotated[
        _Text, typer.Option(metavar="NAME", help="gloo, nccl, auto: nccl with a GPU per worker. [auto]")
    ] = None,
    device: Annotated[
        _Text, typer.Option(metavar="NAME", help="cpu, cuda, auto: cuda where there is one. [auto]")
    ] = None,
    execution: Annotated[
        _Text,
        typer.Option(
            metavar="HOW",
            help="concurrent, replayed (local work measured one worker at a time), auto: replayed with more "
            "workers than cores. [auto]",
        ),
    ] = None,
    threads: Annotated[
        _Text, typer.Option(metavar="N", help="Threads per worker. [replayed: cores; else cores / workers]")
    ] = None,
    statistics: Annotated[
        _Text,
        typer.Option(
            metavar="WHAT",
            help="Record what selections keep: total, or layers for every parameter too; none. [none]",
        ),
    ] = None,
    codec_from: Annotated[
        _Text,
        typer.Option(
            metavar="FILE",
            help="Take codec times, a GPU's say, from this file of netsim bench compress --json.",
        ),
    ] = None,
    timeout: Annotated[
        _Text, typer.Option(metavar="TIME", help="Longest time without progress of a rank. [60s]")
    ] = None,
    time_budget: Annotated[
        _Text, typer.Option(metavar="TIME", help="Start no further repeat after this: 5min. [none]")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Scenario in YAML, or a result file to replay; flags win over it."),
    ] = None,
    json: Annotated[
        _Text,
        typer.Option(metavar="PATH|-", help="Write the result there too; - is stdout, and nothing else is."),
    ] = None,
) -> None:
    """Measure a training step: dense beside compressed, on real workers behind a real throttled link."""
    given = {
        "bandwidth": bandwidth,
        "slow_rank": slow_rank,
        "delay": delay,
        "jitter": jitter,
        "loss": loss,
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
        "workers": workers,
        "model": model,
        "dataset": dataset,
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
        "timeout": timeout,
        "time_budget": time_budget,
    }
    from netsim_ddp.link.hosts import place_of
    from netsim_ddp.scenario import build_scenario

    place = place_of(os.environ)
    if place is not None:
        given["workers"] = given["workers"] or str(place.world_size)
    scenario = build_scenario({key: value for key, value in given.items() if value is not None}, config)
    if show_commands:
        link_flags.show_commands(scenario.link_spec(), scenario.link)
        return
    if place is not None:
        from netsim_ddp.bench.hosts import Hub, on_hosts, serve_rank

        scenario = on_hosts(scenario, place)
        if place.rank > 0:
            raise typer.Exit(serve_rank(place, scenario))
    hosts = None if place is None else Hub(place, scenario)
    copy = None if json in (None, "-") else writable(Path(str(json)))

    from rich.console import Console

    from netsim_ddp.bench import runner
    from netsim_ddp.report.selections import render_selections
    from netsim_ddp.report.terminal import render_result
    from netsim_ddp.results.record import save, to_json

    kept = new_file()
    last: list[Result] = []

    def keep(result: Result) -> None:
        last[:] = [result]
        for path in (kept, copy):
            if path is not None:
                save(result, path)

    try:
        with progress() as report:
            result = runner.run(
                scenario, command=["netsim", *sys.argv[1:]], report=report, save=keep, hosts=hosts
            )
    except BaseException:
        if last and runner.measured(last[0]):
            where = " and ".join(str(path) for path in (kept, copy) if path is not None)
            if where:
                print(f"netsim: what was measured is in {where}", file=sys.stderr)
        elif kept is not None:
            kept.unlink(missing_ok=True)
        raise
    finally:
        if kept is not None and kept.exists():
            point_last(kept)
    if json == "-":
        sys.stdout.write(to_json(result))
        return
    console = Console()
    render_result(result, console, warnings=False)
    render_selections(result, console)
    if kept is not None:
        console.print(f"saved {kept}", highlight=False, soft_wrap=True)
        console.print(f"replay: netsim run --config {kept}", highlight=False, soft_wrap=True)
