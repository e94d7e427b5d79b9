"""The command line: parse, call, render, exit code. Nothing else lives here.

One place prints an error, and gives it its exit code (see :mod:`netsim_ddp.errors`). Commands import what they need
when they run, so that ``netsim --help`` answers at once.
"""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from netsim_ddp import __version__
from netsim_ddp.cli.doctor import doctor
from netsim_ddp.cli.run import run
from netsim_ddp.errors import INTERRUPTED, NetsimError, RankError

app = typer.Typer(
    name="netsim",
    help="Does gradient compression pay on your network? Real workers, real throttled links, measured.",
    epilog="Start with: netsim run --bandwidth 1gbps --ratio 0.01",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)
app.command()(doctor)

# typer carries click inside and does not export the base of its usage errors.
_UsageMistake = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"netsim {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


def main() -> NoReturn:
    """Run the command line and exit."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_call(lambda: typer.main.get_command(app)(standalone_mode=False)))


def _terminate(number: int, _: Any) -> NoReturn:
    """SIGTERM unwinds like Ctrl-C, so that links and workers are taken away on the way out."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _call(command: Any) -> int:
    try:
        code = command()
    except NetsimError as error:
        if isinstance(error, RankError) and error.details:
            _say(error.details.rstrip())
        _say(f"netsim: {error.message}" + (f" ({error.hint})" if error.hint else ""))
        return error.exit_code
    except KeyboardInterrupt:
        _say("netsim: interrupted")
        return INTERRUPTED
    except typer.Abort:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        if isinstance(error, _UsageMistake):
            _say(f"netsim: {error.format_message()} (netsim --help lists the commands and flags)")  # type: ignore[attr-defined]
            return 2
        raise
    return code if isinstance(code, int) else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
