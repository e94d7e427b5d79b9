"""The flags that are ``netsim train``'s alone, as :mod:`netsim_ddp.cli.options`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from netsim_ddp.cli.options import (
    Backend,
    Device,
    LinkOptions,
    Mechanism,
    Optimizer,
    Ratio,
    Seed,
    Text,
    Timeout,
    WeightDecay,
)
from netsim_ddp.methods import BASELINE, DEFAULT


@dataclass
class TrainMethods:
    """Length and methods of ``netsim train``."""

    epochs: Annotated[Text, typer.Option(metavar="N", help="Passes over the training data. [10]")] = None
    ratio: Ratio = None
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[,KEY=VALUE]",
            help="As in netsim run; also lr=X, a learning rate of its own, and with Adam freeze_after=STEPS, which "
            f"then compresses the momentum; repeatable. [{BASELINE.name}, {DEFAULT.name}]",
        ),
    ] = None


@dataclass
class TrainOptions:
    """How ``netsim train`` trains."""

    batch_size: Annotated[
        Text, typer.Option(metavar="N", help="Images, or texts of 64 characters, per worker and step. [16]")
    ] = None
    accumulate: Annotated[
        Text, typer.Option(metavar="N", help="Batches per step; gradients are exchanged after the last. [1]")
    ] = None
    steps_per_epoch: Annotated[
        Text, typer.Option(metavar="N", help="At most so many steps per epoch; other data is left out. [all]")
    ] = None
    optimizer: Optimizer = None
    learning_rate: Annotated[
        Text,
        typer.Option(
            "--learning-rate",
            "--lr",
            metavar="X",
            help="Of methods without one of their own. [0.1; Adam 0.001]",
        ),
    ] = None
    tune_lr: Annotated[
        Text,
        typer.Option(
            metavar="X,X,...",
            help="Try these for every method first, on a seed of their own, and keep the best.",
        ),
    ] = None
    momentum: Annotated[
        Text,
        typer.Option(
            metavar="X",
            help="Momentum of SGD; sparse methods correct it for their delay, unless they say "
            "momentum=0. [0.9]",
        ),
    ] = None
    weight_decay: WeightDecay = None
    schedule: Annotated[Text, typer.Option(metavar="NAME", help="cosine, step, constant. [cosine]")] = None
    step_epochs: Annotated[
        Text,
        typer.Option(metavar="N", help="With --schedule step: lower the rate every N epochs. [epochs / 3]"),
    ] = None
    gamma: Annotated[Text, typer.Option(metavar="X", help="With --schedule step: by what factor. [0.1]")] = (
        None
    )
    warmup_epochs: Annotated[
        Text, typer.Option(metavar="N", help="Epochs over which the rate rises. [0]")
    ] = None
    clip_norm: Annotated[
        Text,
        typer.Option(
            metavar="X", help="Each worker cuts its gradient to this norm before compression. [none]"
        ),
    ] = None
    precision: Annotated[
        Text, typer.Option(metavar="NAME", help="fp32, bf16, fp16 (with loss scaling). [fp32]")
    ] = None
    repeats: Annotated[
        Text,
        typer.Option("--repeats", "--seeds", metavar="N", help="Seeds: --seed and the ones after it. [1]"),
    ] = None
    seed: Seed = None
    target_accuracy: Annotated[
        Text,
        typer.Option(
            metavar="SHARE",
            help="Report the time until this validation accuracy is reached: 95%. "
            "[one point below dense's last]",
        ),
    ] = None


@dataclass
class TrainLink(LinkOptions):
    """The link of ``netsim train``, which may be none."""

    bandwidth: Annotated[
        Text,
        typer.Option(
            metavar="RATE", help="Train on an emulated link: 20mbps, 1gbps, UP:DOWN. [the host's loopback]"
        ),
    ] = None


@dataclass
class TrainRuntime:
    """Where ``netsim train`` runs, and what it keeps."""

    link: Mechanism = None
    backend: Backend = None
    device: Device = None
    threads: Annotated[Text, typer.Option(metavar="N", help="Per worker. [cores / workers]")] = None
    checkpoint: Annotated[
        Text, typer.Option(metavar="DIR", help="Save checkpoints there, of every rank. [none]")
    ] = None
    checkpoint_every: Annotated[
        Text, typer.Option(metavar="INTERVAL", help="2epochs or 50steps. [1epoch]")
    ] = None
    resume_residuals: Annotated[
        Text,
        typer.Option(
            metavar="RULE", help="With another number of workers: sum keeps what is pending, drop loses it."
        ),
    ] = None
    log_dir: Annotated[
        Text, typer.Option(metavar="DIR", help="Log scalars: TensorBoard if installed, else JSON lines.")
    ] = None
    timeout: Timeout = None
    time_budget: Annotated[
        Text, typer.Option(metavar="TIME", help="Start no further seed after this: 30min. [none]")
    ] = None
