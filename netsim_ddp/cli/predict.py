"""``netsim predict``: step times of every method on links, and among workers, that are not here."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from netsim_ddp.cli.expand import given
from netsim_ddp.cli.mistakes import LISTS
from netsim_ddp.cli.options import LinkOptions, Recording, ScaleCompute, Seed, StepMethods, Text
from netsim_ddp.cli.output import progress, writable
from netsim_ddp.cli.streams import open_console, write_document
from netsim_ddp.cli.sweep import carry_out
from netsim_ddp.errors import UsageError


@dataclass
class PredictOptions:
    """Whose training, among how many workers."""

    workers: Annotated[
        Text, typer.Option("--workers", "-n", metavar="N,N,...", help="Workers, up to 65536: 8,64,1024. [4]")
    ] = None
    model: Annotated[
        Text,
        typer.Option(
            metavar="NAME",
            help="simple_cnn, resnet18, resnet50, transformer, torchvision:NAME, my_module:build. [simple_cnn]",
        ),
    ] = None
    dataset: Annotated[Text, typer.Option(metavar="NAME", help="As in netsim run. [fits the model]")] = None
    data_dir: Annotated[Text, typer.Option(metavar="FOLDER", help="As in netsim run.")] = None
    text: Annotated[Text, typer.Option(metavar="PATH", help="As in netsim run.")] = None
    recording: Recording = None
    scale_compute: ScaleCompute = None
    compute: Annotated[
        Text,
        typer.Option(
            metavar="TIME",
            help="Without a recording: forward, backward and optimizer of one worker's batch, 50ms.",
        ),
    ] = None
    batch_size: Annotated[
        Text, typer.Option(metavar="N", help="Of the passes that show when gradients are ready. [32]")
    ] = None
    threads: Annotated[
        Text, typer.Option(metavar="N", help="Threads of a worker's codec. [this machine's cores]")
    ] = None
    codec_from: Annotated[
        Text,
        typer.Option(
            metavar="FILE",
            help="Times of topk's codec on another device; netsim bench compress --json writes it.",
        ),
    ] = None
    ready_from: Annotated[
        Text,
        typer.Option(
            metavar="FILE",
            help="When gradients are ready: a result file of netsim run --compute. [measured here]",
        ),
    ] = None
    errors: Annotated[
        Text,
        typer.Option(
            metavar="FILE|none",
            help="How far predictions were off, to stand beside each figure; --validate with --json writes it. "
            "[netsim's own validation]",
        ),
    ] = None
    seed: Seed = None
    repeats: Annotated[
        Text, typer.Option(metavar="N", help="How often the local work is measured anew. [1]")
    ] = None


@dataclass
class EpochOptions:
    """What an epoch takes and costs."""

    price_per_hour: Annotated[
        Text,
        typer.Option(metavar="X", help="Of one worker, in any currency: what an epoch costs. [none]"),
    ] = None
    examples_per_epoch: Annotated[
        Text,
        typer.Option(metavar="N", help="How many examples the workers share: what an epoch takes. [none]"),
    ] = None


def predict(
    *,
    link: LinkOptions,
    methods: StepMethods,
    what: PredictOptions,
    epoch: EpochOptions,
    json: Annotated[
        Text,
        typer.Option(
            "--json", "-o", metavar="PATH|-", help="Write the result there; - is stdout, and nothing else is."
        ),
    ] = None,
    validate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Predict what this result file of netsim run --compute, or of a sweep, has measured, and show the "
            "errors; repeatable, without other flags.",
        ),
    ] = None,
) -> None:
    """Predict a training step on links that are not here: netsim predict --compute 50ms --workers 8,64,1024

    One worker's compression is done and timed on this machine, as it would be among all of them; the exchanges pass on
    a clock of the links, in the order of the collectives' own messages, with what a message costs a host (measured
    here between two processes). Nothing is sent: netsim run measures.
    """
    from netsim_ddp.predict import message_cost

    if validate:
        _validate(validate, given(link, methods, what, epoch), json)
        return
    name, matrix = "predict", _matrix(given(link, methods, what, epoch))
    from netsim_ddp.sweep.source import plan_of

    command, runs = plan_of(matrix)
    message_cost.measured()  # before this process has threads
    carry_out(name, matrix, command, runs, json)


def _validate(paths: list[Path], others: dict[str, Any], json: str | None) -> None:
    """Hold predictions against what files have measured."""
    if others:
        flag = f"--{next(iter(others)).replace('_', '-')}"
        raise UsageError(
            f"--validate predicts what its files say, {flag} included", hint=f"leave {flag} away"
        )
    from netsim_ddp.predict import message_cost
    from netsim_ddp.predict.validation import validate
    from netsim_ddp.report.terminal.validation import render_validation
    from netsim_ddp.results.files import load, save, to_json

    results = {str(path): load(path) for path in paths}
    copy = None if json in (None, "-") else writable(Path(str(json)))
    message_cost.measured()
    with progress(bar=False) as report:
        found = validate(results, command=["netsim", *sys.argv[1:]], report=report)
    if json == "-":
        write_document(to_json(found))
    else:
        render_validation(found, open_console())
    if copy is not None:
        save(found, copy)


def _matrix(values: dict[str, Any]) -> Any:
    """The combinations of what was given several times."""
    from netsim_ddp.scenario.matrix import Matrix

    axes = {}
    for key in LISTS["predict"]:
        written = str(values.get(key, ""))
        parts = tuple(part.strip() for part in written.split(",") if part.strip())
        if len(parts) > 1:
            axes[key] = parts
            values.pop(key)
    return Matrix(source="netsim predict", base=values, axes=axes, command="predict")
