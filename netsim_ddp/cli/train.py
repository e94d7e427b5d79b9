"""``netsim train``: what compression costs in accuracy and saves in time, over whole trainings."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netsim_ddp.cli.expand import given
from netsim_ddp.cli.options import FileOptions, ModelOptions
from netsim_ddp.cli.saving import execute
from netsim_ddp.cli.streams import say
from netsim_ddp.cli.train_options import TrainLink, TrainMethods, TrainOptions, TrainRuntime

if TYPE_CHECKING:
    from rich.console import Console

    from netsim_ddp.results.record import Result


def train(
    *,
    methods: TrainMethods,
    model: ModelOptions,
    how: TrainOptions,
    link: TrainLink,
    runtime: TrainRuntime,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Go on with what was saved there; its settings hold, flags win over them."
        ),
    ] = None,
    files: FileOptions,
) -> None:
    """Train a model, compressed beside dense, on real workers: accuracy, and time until it is reached."""
    values = given(methods, model, how, link, runtime)
    config = files.config
    from netsim_ddp.errors import UsageError
    from netsim_ddp.link.hosts import cluster_environment
    from netsim_ddp.scenario import TrainScenario, build
    from netsim_ddp.scenario.files import with_loss_function
    from netsim_ddp.training.checkpoint import RUN_FILE, run_file

    if cluster_environment(os.environ) is not None:
        raise UsageError(
            "netsim train starts its own workers on this machine",
            hint="unset RANK and WORLD_SIZE if they are left over; under torchrun or srun, use the library in a "
            "script of your own",
        )
    if resume is not None:
        values |= {"checkpoint": str(resume), "resume": True}
        config = config or run_file(resume)
    scenario = build(TrainScenario, with_loss_function(values), config)
    from netsim_ddp.training import runner

    try:
        execute(files, "netsim train --config", _render, functools.partial(runner.train, scenario))
    except BaseException as error:
        begun = scenario.checkpoint is not None and (Path(scenario.checkpoint) / RUN_FILE).exists()
        if begun and not isinstance(error, UsageError):
            say(f"to go on: netsim train --resume {scenario.checkpoint}")
        raise


def _render(result: Result, console: Console) -> None:
    from netsim_ddp.report.terminal.training import render_training

    render_training(result, console, warnings=False)
