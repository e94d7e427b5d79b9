"""Every flag that describes what is run, once, in groups that commands take (:mod:`netsim_ddp.cli.expand`).

Values stay text: the scenario checks them, so that flags and files get the same messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from netsim_ddp.methods import BASELINE, DEFAULT, METHODS, SIXTEEN_BIT

Text = str | None

Mechanism = Annotated[
    str | None,
    typer.Option(
        "--link",
        metavar="HOW",
        help="tc (namespaces), bucket (user space), none (unshaped), auto: tc where it works. [auto]",
    ),
]
ShowCommands = Annotated[
    bool, typer.Option("--show-commands", help="Print the ip and tc lines that make the link, and stop.")
]
Ratio = Annotated[
    Text, typer.Option(metavar="FRACTION", help="Kept fraction of netsim's Top-K methods: 0.01, 1%. [0.01]")
]
Seed = Annotated[Text, typer.Option(metavar="N", help="Of parameters, data split and shuffling. [0]")]
Backend = Annotated[
    Text, typer.Option(metavar="NAME", help="gloo, nccl, auto: nccl with a GPU per worker. [auto]")
]
Device = Annotated[
    Text, typer.Option(metavar="NAME", help="cpu, cuda, auto: cuda where there is one. [auto]")
]
Recording = Annotated[
    Text,
    typer.Option(
        metavar="FILE",
        help="Play a training that netsim record has watched, in place of a model and its data. [none]",
    ),
]
ScaleCompute = Annotated[
    Text,
    typer.Option(
        metavar="X",
        help="With --recording: forward, backward and optimizer take X times as long; 0.2 stands for a machine "
        "five times as fast. [1]",
    ),
]
Optimizer = Annotated[Text, typer.Option(metavar="NAME", help="sgd, adam, adamw. [sgd]")]
WeightDecay = Annotated[Text, typer.Option(metavar="X", help="Weight decay; decoupled in AdamW. [0]")]
Timeout = Annotated[Text, typer.Option(metavar="TIME", help="Longest time without progress of a rank. [60s]")]


@dataclass
class LinkOptions:
    """A link."""

    bandwidth: Annotated[
        str | None,
        typer.Option(
            "--bandwidth",
            metavar="RATE",
            help="Rate of every rank's link: 100mbps, 1gbps, or UP:DOWN for two directions, 100mbps:20mbps. [1gbps]",
        ),
    ] = None
    slow_rank: Annotated[
        list[str] | None,
        typer.Option(
            "--slow-rank",
            metavar="RANK=RATE",
            help="A rank whose link has another rate: 3=100mbps, 0=1gbps:10mbps; repeatable.",
        ),
    ] = None
    delay: Annotated[
        str | None,
        typer.Option(
            "--delay", metavar="TIME", help="One way between two ranks, half a round trip: 20ms. [none]"
        ),
    ] = None
    jitter: Annotated[
        str | None,
        typer.Option(
            "--jitter", metavar="TIME", help="Delays are uniform, up to so much around --delay: 2ms. [none]"
        ),
    ] = None
    loss: Annotated[
        str | None,
        typer.Option("--loss", metavar="SHARE", help="Packets that vanish: 0.1%; needs tc. [none]"),
    ] = None
    delay_by: Annotated[
        str | None,
        typer.Option(
            "--delay-by",
            metavar="HOW",
            help="What delays and drops a tc link's packets: netem (kernel), tun (user space), auto: netem where it "
            "is. [auto]",
        ),
    ] = None
    tcp: Annotated[
        str | None,
        typer.Option(
            "--tcp",
            metavar="MODEL",
            help="How a bucket link with a delay computes a message's time: linux (TCP's window), ideal (bytes / rate "
            "+ delay). [linux]",
        ),
    ] = None
    reorder: Annotated[
        bool | None,
        typer.Option("--reorder", help="Let packets overtake each other under --jitter; needs tc."),
    ] = None
    queue: Annotated[
        str | None,
        typer.Option(
            "--queue",
            metavar="TIME",
            help="Longest wait in the link's queue before it drops: 100ms; needs tc. [200ms, 2 MB at least]",
        ),
    ] = None
    congestion: Annotated[
        str | None,
        typer.Option(
            "--congestion", metavar="NAME", help="TCP's control: cubic, bbr, reno; needs tc. [cubic]"
        ),
    ] = None
    timeline: Annotated[
        str | None,
        typer.Option(
            "--timeline",
            metavar="FILE",
            help="Rates over time, in YAML: - {at: 10s, bandwidth: 20mbps}. [none]",
        ),
    ] = None
    trace: Annotated[
        str | None,
        typer.Option(
            "--trace", metavar="FILE", help="A mahimahi trace, or UP:DOWN for two directions. [none]"
        ),
    ] = None
    peak: Annotated[
        str | None,
        typer.Option(
            "--peak", metavar="RATE", help="A cloud's token bucket: this rate while there is credit. [none]"
        ),
    ] = None
    credit: Annotated[
        str | None,
        typer.Option("--credit", metavar="SIZE", help="Bytes that --peak lasts for: 4GB. [none]"),
    ] = None
    link_profile: Annotated[
        str | None,
        typer.Option(
            "--link-profile",
            metavar="NAME|FILE",
            help="A link with a name (netsim scenarios links) or in a file; other flags override it. [none]",
        ),
    ] = None


@dataclass
class ModelOptions:
    """Ranks, the model, and its data."""

    workers: Annotated[
        Text, typer.Option("--workers", "-n", "--nproc-per-node", metavar="N", help="Worker processes. [4]")
    ] = None
    model: Annotated[
        Text,
        typer.Option(
            metavar="NAME",
            help="simple_cnn, resnet18, resnet50, transformer, torchvision:NAME, my_module:build[,KEY=VALUE]. "
            "[simple_cnn]",
        ),
    ] = None
    dataset: Annotated[
        Text,
        typer.Option(
            metavar="NAME",
            help="digits, mnist, fashion-mnist, cifar10, text, synthetic-cifar10, synthetic-imagenet, "
            "synthetic-text, my_module:data[,KEY=VALUE]: a torch Dataset, or a function that returns one, two "
            "(training, validation), or two loaders. [fits the model]",
        ),
    ] = None
    loss_function: Annotated[
        Text,
        typer.Option(
            metavar="NAME",
            help="cross-entropy, mse, torch.nn:NAME, my_module:loss[,KEY=VALUE], called as loss(outputs, targets); "
            "--loss NAME is the same. [cross-entropy]",
        ),
    ] = None
    data_dir: Annotated[
        Text,
        typer.Option(metavar="FOLDER", help="Where the files of a dataset are. [netsim in the user's cache]"),
    ] = None
    download: Annotated[
        bool | None, typer.Option("--download", help="Fetch them where they are missing.")
    ] = None
    text: Annotated[
        Text,
        typer.Option(
            metavar="PATH",
            help="File or folder that dataset text reads. [2 MB of the standard library's sources]",
        ),
    ] = None


@dataclass
class FileOptions:
    """Where settings come from, and where the result goes."""

    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Scenario in YAML, or a result file to replay; flags win over it."),
    ] = None
    json: Annotated[
        Text,
        typer.Option(metavar="PATH|-", help="Write the result there too; - is stdout, and nothing else is."),
    ] = None
    trace_steps: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a few steps as a trace for ui.perfetto.dev, a row per rank and phase."
        ),
    ] = None


@dataclass
class StepMethods:
    """The methods of ``netsim run``."""

    ratio: Ratio = None
    overlap: Annotated[
        Text,
        typer.Option(
            metavar="on|off",
            help="Exchange buckets while backward goes on: the default of methods given without overlap=; dense "
            "runs both ways. [on with --compute]",
        ),
    ] = None
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[,KEY=VALUE]",
            help=f"{', '.join(METHODS)}, my_module:factory; repeatable. [{BASELINE.name}, {DEFAULT.name}]",
        ),
    ] = None
    baseline: Annotated[
        Text,
        typer.Option(
            metavar="NAME",
            help="Dense in 16 bits, overlapped as DDP's hook does it, that the methods are held against: "
            f"{', '.join(SIXTEEN_BIT.values())}, none. [{SIXTEEN_BIT['gloo']}; {SIXTEEN_BIT['nccl']} on NCCL]",
        ),
    ] = None


@dataclass
class StepOptions:
    """How ``netsim run`` measures."""

    batch_size: Annotated[
        Text, typer.Option(metavar="N", help="Images, or texts of 64 characters, per worker and step. [32]")
    ] = None
    optimizer: Optimizer = None
    learning_rate: Annotated[
        Text, typer.Option("--learning-rate", "--lr", metavar="X", help="Learning rate. [0.1; Adam 0.001]")
    ] = None
    weight_decay: WeightDecay = None
    momentum: Annotated[Text, typer.Option(metavar="X", help="Momentum of SGD. [0]")] = None
    compute: Annotated[
        Text,
        typer.Option(
            metavar="TIME",
            help="Take forward, backward and optimizer as this long, as on an accelerator: 50ms.",
        ),
    ] = None
    steps: Annotated[Text, typer.Option(metavar="N", help="Measured steps per repeat. [20]")] = None
    warmup: Annotated[
        Text, typer.Option(metavar="N", help="Steps before the measured ones, not counted. [3]")
    ] = None
    repeats: Annotated[
        Text,
        typer.Option("--repeats", "--runs", metavar="N", help="Fresh sets of processes per method. [3]"),
    ] = None
    seed: Seed = None
    link: Mechanism = None
    backend: Backend = None
    device: Device = None
    execution: Annotated[
        Text,
        typer.Option(
            metavar="HOW",
            help="concurrent, replayed (local work measured with cores of its own), auto: replayed with more "
            "workers than cores. [auto]",
        ),
    ] = None
    threads: Annotated[
        Text, typer.Option(metavar="N", help="Threads per worker. [replayed: cores; else cores / workers]")
    ] = None
    statistics: Annotated[
        Text,
        typer.Option(
            metavar="WHAT",
            help="Record how many entries and how much energy (sum of squares) selections keep: total, or layers, "
            "for every parameter too; none. [none]",
        ),
    ] = None
    codec_from: Annotated[
        Text,
        typer.Option(
            metavar="FILE",
            help="Use the times of topk's codec in this file, of a GPU for example, in place of this machine's; "
            "netsim bench compress --json writes it.",
        ),
    ] = None
    ready_from: Annotated[
        Text,
        typer.Option(
            metavar="FILE",
            help="With --compute: buckets become full as in the backward pass of this result file, or file of ready "
            "times, of a GPU for example. [measured here]",
        ),
    ] = None
    recording: Recording = None
    scale_compute: ScaleCompute = None
    timeout: Timeout = None
    time_budget: Annotated[
        Text, typer.Option(metavar="TIME", help="Start no further repeat after this: 5min. [none]")
    ] = None
