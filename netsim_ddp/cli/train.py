"""``netsim train``: what compression costs in accuracy and saves in time, over whole trainings."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netsim_ddp.cli import link_flags, run_flags
from netsim_ddp.cli.output import progress, writable
from netsim_ddp.cli.run_flags import Text
from netsim_ddp.cli.saving import saving, write_steps
from netsim_ddp.cli.streams import open_console, say, write_document

if TYPE_CHECKING:
    from netsim_ddp.results.record import Result
    from netsim_ddp.results.trace import TracedLap


def train(
    epochs: Annotated[Text, typer.Option(metavar="N", help="Passes over the training data. [10]")] = None,
    ratio: run_flags.Ratio = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[,KEY=VALUE]",
            help="As in netsim run; also lr=X, a learning rate of its own, and with Adam freeze_after=STEPS, which "
            "then compresses the momentum; repeatable. [dense, topk]",
        ),
    ] = None,
    workers: run_flags.Workers = None,
    model: run_flags.Model = None,
    dataset: run_flags.Dataset = None,
    data_dir: run_flags.DataDir = None,
    download: run_flags.Download = None,
    text: run_flags.TextPath = None,
    batch_size: Annotated[
        Text, typer.Option(metavar="N", help="Images, or texts of 64 characters, per worker and step. [16]")
    ] = None,
    accumulate: Annotated[
        Text, typer.Option(metavar="N", help="Batches per step; gradients are exchanged after the last. [1]")
    ] = None,
    steps_per_epoch: Annotated[
        Text, typer.Option(metavar="N", help="At most so many steps per epoch; other data is left out. [all]")
    ] = None,
    optimizer: Annotated[Text, typer.Option(metavar="NAME", help="sgd, adam, adamw. [sgd]")] = None,
    learning_rate: Annotated[
        Text,
        typer.Option(
            "--learning-rate",
            "--lr",
            metavar="X",
            help="Of methods without one of their own. [0.1; Adam 0.001]",
        ),
    ] = None,
    tune_lr: Annotated[
        Text,
        typer.Option(
            metavar="X,X,...",
            help="Try these for every method first, on a seed of their own, and keep the best.",
        ),
    ] = None,
    momentum: Annotated[
        Text,
        typer.Option(
            metavar="X",
            help="Momentum of SGD; sparse methods correct it for their delay, unless they say "
            "momentum=0. [0.9]",
        ),
    ] = None,
    weight_decay: Annotated[
        Text, typer.Option(metavar="X", help="Weight decay; decoupled in AdamW. [0]")
    ] = None,
    schedule: Annotated[Text, typer.Option(metavar="NAME", help="cosine, step, constant. [cosine]")] = None,
    step_epochs: Annotated[
        Text,
        typer.Option(metavar="N", help="With --schedule step: lower the rate every N epochs. [epochs / 3]"),
    ] = None,
    gamma: Annotated[
        Text, typer.Option(metavar="X", help="With --schedule step: by what factor. [0.1]")
    ] = None,
    warmup_epochs: Annotated[
        Text, typer.Option(metavar="N", help="Epochs over which the rate rises. [0]")
    ] = None,
    clip_norm: Annotated[
        Text,
        typer.Option(
            metavar="X", help="Each worker cuts its gradient to this norm before compression. [none]"
        ),
    ] = None,
    precision: Annotated[
        Text, typer.Option(metavar="NAME", help="fp32, bf16, fp16 (with loss scaling). [fp32]")
    ] = None,
    repeats: Annotated[
        Text,
        typer.Option("--repeats", "--seeds", metavar="N", help="Seeds: --seed and the ones after it. [1]"),
    ] = None,
    seed: run_flags.Seed = None,
    target_accuracy: Annotated[
        Text,
        typer.Option(
            metavar="SHARE",
            help="Report the time until this validation accuracy is reached: 95%. "
            "[one point below dense's last]",
        ),
    ] = None,
    bandwidth: Annotated[
        Text,
        typer.Option(
            metavar="RATE", help="Train on an emulated link: 20mbps, 1gbps, UP:DOWN. [the host's loopback]"
        ),
    ] = None,
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
    link: link_flags.Mechanism = None,
    backend: run_flags.Backend = None,
    device: run_flags.Device = None,
    threads: Annotated[Text, typer.Option(metavar="N", help="Per worker. [cores / workers]")] = None,
    checkpoint: Annotated[
        Text, typer.Option(metavar="DIR", help="Save checkpoints there, of every rank. [none]")
    ] = None,
    checkpoint_every: Annotated[
        Text, typer.Option(metavar="INTERVAL", help="2epochs or 50steps. [1epoch]")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Go on with what was saved there; its settings hold, flags win over them."
        ),
    ] = None,
    resume_residuals: Annotated[
        Text,
        typer.Option(
            metavar="RULE", help="With another number of workers: sum keeps what is pending, drop loses it."
        ),
    ] = None,
    log_dir: Annotated[
        Text, typer.Option(metavar="DIR", help="Log scalars: TensorBoard if installed, else JSON lines.")
    ] = None,
    timeout: run_flags.Timeout = None,
    time_budget: Annotated[
        Text, typer.Option(metavar="TIME", help="Start no further seed after this: 30min. [none]")
    ] = None,
    config: run_flags.Config = None,
    json: run_flags.Json = None,
    trace_steps: run_flags.TraceSteps = None,
) -> None:
    """Train a model, compressed beside dense, on real workers: accuracy, and time until it is reached."""
    given: dict[str, Any] = {
        "epochs": epochs,
        "ratio": ratio,
        "methods": method,
        "workers": workers,
        "model": model,
        "dataset": dataset,
        "data_dir": data_dir,
        "download": download,
        "text": text,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "steps_per_epoch": steps_per_epoch,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "tune_lr": tune_lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "step_epochs": step_epochs,
        "gamma": gamma,
        "warmup_epochs": warmup_epochs,
        "clip_norm": clip_norm,
        "precision": precision,
        "repeats": repeats,
        "seed": seed,
        "target_accuracy": target_accuracy,
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
        "link": link,
        "backend": backend,
        "device": device,
        "threads": threads,
        "checkpoint": checkpoint,
        "checkpoint_every": checkpoint_every,
        "resume_residuals": resume_residuals,
        "log_dir": log_dir,
        "timeout": timeout,
        "time_budget": time_budget,
    }
    from netsim_ddp.errors import UsageError
    from netsim_ddp.link.hosts import place_of
    from netsim_ddp.scenario import TrainScenario, build
    from netsim_ddp.training.checkpoint import RUN_FILE, run_file

    if place_of(os.environ) is not None:
        raise UsageError(
            "netsim train starts its own workers on this machine",
            hint="unset RANK and WORLD_SIZE if they are left over; under torchrun or srun, use the library in a "
            "script of your own",
        )
    if resume is not None:
        given |= {"checkpoint": str(resume), "resume": True}
        config = config or run_file(resume)
    scenario = build(TrainScenario, {key: value for key, value in given.items() if value is not None}, config)
    copy = None if json in (None, "-") else writable(Path(str(json)))
    trace_file = None if trace_steps is None else writable(trace_steps)

    from netsim_ddp.report.terminal.training import render_training
    from netsim_ddp.results.record import to_json
    from netsim_ddp.training import runner

    def show(result: Result) -> None:
        if json == "-":
            write_document(to_json(result))
        else:
            render_training(result, open_console(), warnings=False)

    traced: list[TracedLap] = []
    try:
        with saving(copy, runner.trained, show) as kept, progress() as report:
            result = runner.train(
                scenario,
                command=["netsim", *sys.argv[1:]],
                report=report,
                save=kept.save,
                trace=None if trace_file is None else traced.extend,
            )
    except BaseException as error:
        begun = scenario.checkpoint is not None and (Path(scenario.checkpoint) / RUN_FILE).exists()
        if begun and not isinstance(error, UsageError):
            say(f"to go on: netsim train --resume {scenario.checkpoint}")
        raise
    show(result)
    kept.tell(None if json == "-" else open_console(), "netsim train --config")
    if trace_file is not None:
        write_steps(traced, trace_file)
    kept.finish()
