"""The flags that describe what is run, for the commands that run a model. Values stay text: the scenario checks them,
so that flags and files get the same messages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Text = str | None

Ratio = Annotated[
    Text, typer.Option(metavar="FRACTION", help="Kept fraction for methods that take one: 0.01, 1%. [0.01]")
]
Method = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[,KEY=VALUE]",
        help="dense, fp16, bf16, powersgd, topk, topk-allgather, topk-dense, my_module:factory; repeatable. "
        "[dense, topk]",
    ),
]
Workers = Annotated[
    Text, typer.Option("--workers", "-n", "--nproc-per-node", metavar="N", help="Worker processes. [4]")
]
Model = Annotated[
    Text,
    typer.Option(
        metavar="NAME",
        help="simple_cnn, resnet18, resnet50, transformer, torchvision:NAME, my_module:build. [simple_cnn]",
    ),
]
Dataset = Annotated[
    Text,
    typer.Option(
        metavar="NAME",
        help="digits, mnist, fashion-mnist, cifar10, text, synthetic-cifar10, synthetic-imagenet, "
        "synthetic-text. [fits the model]",
    ),
]
DataDir = Annotated[
    Text,
    typer.Option(metavar="FOLDER", help="Where the files of a dataset are. [netsim in the user's cache]"),
]
Download = Annotated[bool | None, typer.Option("--download", help="Fetch them where they are missing.")]
TextPath = Annotated[
    Text,
    typer.Option(
        metavar="PATH",
        help="File or folder that dataset text reads. [2 MB of the standard library's sources]",
    ),
]
BatchSize = Annotated[
    Text, typer.Option(metavar="N", help="Images, or texts of 64 characters, per worker and step. [32]")
]
Momentum = Annotated[Text, typer.Option(metavar="X", help="SGD's. [0]")]
Seed = Annotated[Text, typer.Option(metavar="N", help="Of parameters, data split and shuffling. [0]")]
Backend = Annotated[
    Text, typer.Option(metavar="NAME", help="gloo, nccl, auto: nccl with a GPU per worker. [auto]")
]
Device = Annotated[
    Text, typer.Option(metavar="NAME", help="cpu, cuda, auto: cuda where there is one. [auto]")
]
Timeout = Annotated[Text, typer.Option(metavar="TIME", help="Longest time without progress of a rank. [60s]")]
Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Scenario in YAML, or a result file to replay; flags win over it."),
]
Json = Annotated[
    Text,
    typer.Option(metavar="PATH|-", help="Write the result there too; - is stdout, and nothing else is."),
]
TraceSteps = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write a few steps as a trace for ui.perfetto.dev, a row per rank and phase."
    ),
]
