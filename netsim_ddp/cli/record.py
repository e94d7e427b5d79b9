"""``netsim record``: watch a training for some steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netsim_ddp.cli.options import Text
from netsim_ddp.cli.output import writable
from netsim_ddp.cli.streams import say


def record(
    program: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- PROGRAM [ARG]...", help="What trains: python or torchrun.", show_default=False
        ),
    ] = None,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the recording is written.")
    ] = Path("recording.netsim"),
    steps: Annotated[
        Text, typer.Option(metavar="N", help="Steps to watch, and as many that are not watched. [10]")
    ] = None,
    gradients: Annotated[
        Text,
        typer.Option(
            metavar="HOW", help="Gradients of three steps: sampled (50 MB at most), full or none. [sampled]"
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="In place of a program: a trace that torch.profiler wrote of a job on NCCL. Sizes and moments alone; "
            "gradients are synthetic then.",
        ),
    ] = None,
    stop: Annotated[
        bool,
        typer.Option("--stop", help="End the program once the file is written; else it runs to its end."),
    ] = False,
) -> None:
    """Record your own training, unmodified, for netsim run --recording: netsim record -- python train.py

    Any script with a torch.nn.Module, loss.backward() and a torch.optim optimizer, under DDP (torchrun, mp.spawn or
    one process) or without: what each step's time went to, every bucket with its size and the moment it was full,
    and gradients of three steps. The first three steps are left out. The file holds no data and no parameters.

    The program keeps its output, signals and exit code; the summary goes to stderr at its end. In a script of your
    own, with netsim_ddp.record("recording.netsim"): does the same for one process.
    """
    from netsim_ddp.errors import UsageError

    how = gradients or "sampled"
    if how not in ("sampled", "full", "none"):
        raise UsageError(f"--gradients {how!r}", hint="sampled, full or none")
    if not (number := steps or "10").isdecimal() or not 1 <= int(number) <= 1000:
        raise UsageError(f"--steps {number}", hint="a whole number, 1 to 1000")
    target = writable(output)
    if trace is not None:
        _of_trace(trace, program, target)
        return
    if not program:
        raise UsageError("nothing to record", hint="write netsim record -- python train.py, or --trace FILE")

    from netsim_ddp.report.terminal.record import record_lines
    from netsim_ddp.tools.record.command import record_program

    outcome = record_program(program, target, steps=int(number), gradients=how, stop=stop)
    if outcome.recording is not None:
        for line in record_lines(outcome.recording, str(output), target.stat().st_size):
            say(line)
    elif outcome.problem is not None:
        if not outcome.exit_code:
            raise outcome.problem
        say(f"the program failed (exit code {outcome.exit_code}); {outcome.problem}")
    raise typer.Exit(outcome.exit_code)


def _of_trace(trace: Path, program: list[str] | None, target: Path) -> None:
    from netsim_ddp.errors import UsageError
    from netsim_ddp.report.terminal.record import record_lines
    from netsim_ddp.results.recording_file import write
    from netsim_ddp.workloads.recording.profiler_trace import recording_of

    if program:
        raise UsageError("a trace and a program cannot both be recorded", hint="leave one of them away")
    recording = recording_of(trace)
    write(target, recording, [])
    for line in record_lines(recording, str(target), target.stat().st_size):
        say(line)
