"""``netsim train``: what compression costs in accuracy and saves in time, over whole trainings."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netsim_ddp.cli.expand import given
from netsim_ddp.cli.options import (
    FileOptions,
    ModelOptions,
    TrainLink,
    TrainMethods,
    TrainOptions,
    TrainPlace,
)
from netsim_ddp.cli.output import progress, writable
from netsim_ddp.cli.saving import saving, write_steps
from netsim_ddp.cli.streams import open_console, say, write_document

if TYPE_CHECKING:
    from netsim_ddp.results.record import Result
    from netsim_ddp.results.trace import TracedLap


def train(
    *,
    methods: TrainMethods,
    model: ModelOptions,
    how: TrainOptions,
    link: TrainLink,
    place: TrainPlace,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Go on with what was saved there; its settings hold, flags win over them."
        ),
    ] = None,
    files: FileOptions,
) -> None:
    """Train a model, compressed beside dense, on real workers: accuracy, and time until it is reached."""
    values = given(methods, model, how, link, place)
    config = files.config
    from netsim_ddp.errors import UsageError
    from netsim_ddp.link.hosts import cluster_environment
    from netsim_ddp.scenario import TrainScenario, build
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
    scenario = build(TrainScenario, values, config)
    copy = None if files.json in (None, "-") else writable(Path(str(files.json)))
    trace_file = None if files.trace_steps is None else writable(files.trace_steps)

    from netsim_ddp.report.terminal.training import render_training
    from netsim_ddp.results.files import to_json
    from netsim_ddp.training import runner

    def show(result: Result) -> None:
        if files.json == "-":
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
    kept.tell(None if files.json == "-" else open_console(), "netsim train --config")
    if trace_file is not None:
        write_steps(traced, trace_file)
    kept.finish()
