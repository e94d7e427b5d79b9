"""The command line: parse, call, render, exit code. Nothing else is done here.

One place prints an error, and gives it its exit code (see :mod:`netsim_ddp.errors`). Commands import what they need
when they run, so that ``netsim --help`` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from netsim_ddp import __version__, log
from netsim_ddp.cli import bench, streams
from netsim_ddp.cli.advise import advise
from netsim_ddp.cli.check import check
from netsim_ddp.cli.compare import compare
from netsim_ddp.cli.doctor import doctor
from netsim_ddp.cli.expand import command
from netsim_ddp.cli.launch import launch
from netsim_ddp.cli.mistakes import check_words, describe
from netsim_ddp.cli.predict import predict
from netsim_ddp.cli.probe import probe
from netsim_ddp.cli.record import record
from netsim_ddp.cli.regress import regress
from netsim_ddp.cli.report import report
from netsim_ddp.cli.run import run
from netsim_ddp.cli.scenarios import scenarios
from netsim_ddp.cli.schema import schema
from netsim_ddp.cli.show import show
from netsim_ddp.cli.streams import say
from netsim_ddp.cli.sweep import sweep
from netsim_ddp.cli.train import train
from netsim_ddp.errors import (
    EXHAUSTED,
    INTERRUPTED,
    EnvironmentFault,
    LinkLost,
    NetsimError,
    RankError,
    UsageError,
)

app = typer.Typer(
    name="netsim",
    help="Does gradient compression pay on your network? Real workers, real throttled links, measured.",
    epilog="Start with: netsim run --bandwidth 1gbps --ratio 0.01",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,  # it reads [auto] as markup and drops it
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
# The short help is a line of the list of commands; 80 columns cut anything longer.
_COMMANDS: tuple[tuple[Callable[..., Any], str, dict[str, bool]], ...] = (
    (run, "Measure a training step, compressed beside dense.", {}),
    (train, "Train a model, compressed beside dense.", {}),
    (sweep, "Run a grid of configurations: where is it faster?", {}),
    (predict, "Compute steps of many workers, on links not here.", {}),
    (advise, "Recommend a method for your training and link.", {}),
    (probe, "Measure a link before trusting it.", {}),
    (launch, "Run any program on the link, a network per rank.", {"allow_interspersed_args": False}),
    (record, "Record your own training, to run it on any link.", {"allow_interspersed_args": False}),
    (check, "Test a method of your own on real ranks.", {}),
    (compare, "Compare two results; exits 5 when slower.", {}),
    (
        regress,
        "Compare two commits: measure them in turns.",
        {"allow_extra_args": True, "ignore_unknown_options": True},
    ),
    (show, "Show what a recording, or any netsim file, holds.", {}),
    (report, "Show results again: HTML, Markdown, CSV, figures, CI.", {}),
    (doctor, "See what this machine can do.", {}),
    (schema, "Print the JSON Schema of result files.", {}),
)
for _function, _short_help, _settings in _COMMANDS:
    app.command(short_help=_short_help, context_settings=_settings)(command(_function))
app.add_typer(scenarios, name="scenarios")
app.add_typer(bench.app, name="bench")

# typer carries click inside and does not export the base of its usage errors.
_UsageMistake = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"netsim {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> NoReturn:
    """Run the command line and exit."""
    streams.prepare()
    log.begin()
    signal.signal(signal.SIGTERM, _terminate)
    command = typer.main.get_command(app)
    check_words(command)
    code = _call(_check_folder) or _call(lambda: command(prog_name="netsim", standalone_mode=False))
    # What was printed leaves this process here, and not when the interpreter ends, which could say nothing.
    sys.exit(_call(sys.stdout.flush) or code)


def _check_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise EnvironmentFault("the current folder has been removed", hint="cd to another one") from None


def _terminate(number: int, _: Any) -> NoReturn:
    """SIGTERM unwinds like Ctrl-C, so that links and workers are taken away on the way out."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _call(command: Any) -> int:
    try:
        code = command()
    except NetsimError as error:
        if isinstance(error, RankError) and error.details:
            streams.write_error(error.details.rstrip())
        _show_last(error)
        say(str(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):  # typer makes the second of the first
        say("interrupted")
        return INTERRUPTED
    except OSError as error:
        if error.errno not in EXHAUSTED:
            raise
        where = f"{error.filename}: " if error.filename else ""
        say(f"{where}{error.strerror} ({EXHAUSTED[error.errno]})")
        streams.discard(sys.stdout)  # which may be what is full
        return EnvironmentFault.exit_code
    except Exception as error:
        if not isinstance(error, _UsageMistake):
            raise
        say(describe(error))
        return UsageError.exit_code
    return code if isinstance(code, int) else 0


def _show_last(error: NetsimError) -> None:
    """What netsim did before a rank or a link failed, where it was not shown as it came."""
    if isinstance(error, RankError | LinkLost) and not log.shown() and (lines := log.last()):
        say("the last things it did (-vv shows all of them):")
        for line in lines:
            streams.write_error(f"  {line}")
