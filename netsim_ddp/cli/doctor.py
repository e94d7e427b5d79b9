"""``netsim doctor``: what this machine can do, and what stands in the way."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from netsim_ddp.cli.streams import open_console
from netsim_ddp.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

    from netsim_ddp.tools.doctor import Check

_STYLES = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}
_INDENT = 7  # len("[PASS] ")


def doctor(
    checks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHECK", help="Run only these, by the names it prints. [all]", show_default=False
        ),
    ] = None,
    json: Annotated[
        str | None,
        typer.Option(metavar="PATH|-", help="Write the checks there too; - is stdout, and nothing else is."),
    ] = None,
) -> None:
    """Check this machine: imports, kernel, tc, namespaces, netem, TUN, Gloo, NCCL, cores, /dev/shm, a step."""
    from netsim_ddp.cli.output import check_targets, write_to
    from netsim_ddp.errors import EnvironmentFault, UsageError
    from netsim_ddp.tools.doctor import CHECKS, run_check

    for name in checks or ():
        if name not in CHECKS:
            raise UsageError(f"unknown check {name!r}", hint=f"the checks are {', '.join(CHECKS)}")
    check_targets({"--json": json})
    console, progress = open_console(highlight=False), open_console(stderr=True)
    done: list[Check] = []
    for name in checks or CHECKS:
        with progress.status(f"checking {name}"):  # shows itself on a terminal only
            done.append(run_check(name))
        if json != "-":
            _print(done[-1], console)
    if json is not None:
        write_to(json, _document(done))
    failed = [check.name for check in done if check.status == "FAIL"]
    if failed:
        raise EnvironmentFault(f"{len(failed)} of {len(done)} checks failed: {', '.join(failed)}")


def _document(checks: list[Check]) -> str:
    """One JSON document; ``status`` is the worst of the checks'."""
    from dataclasses import asdict
    from json import dumps

    from netsim_ddp import __version__
    from netsim_ddp.results.files import now_utc

    document = {
        "schema_version": 1,
        "tool": {"name": "netsim", "version": __version__},
        "created_utc": now_utc(),
        "status": min((check.status for check in checks), key=("FAIL", "WARN", "PASS").index),
        "checks": [asdict(check) for check in checks],
    }
    return dumps(document, indent=1) + "\n"


def _print(check: Check, console: Console) -> None:
    from rich.text import Text

    head = f"[{check.status}] {check.name:<11} {check.seconds * 1e3:6.0f} ms  "
    line = Text(_lines(head + _plain(check.found, console), console, len(head)))
    line.stylize(_STYLES[check.status], 0, _INDENT - 1)
    console.print(line, soft_wrap=True)
    if check.remedy:
        console.print(
            Text(_lines(" " * _INDENT + _plain(check.remedy, console), console, _INDENT)), soft_wrap=True
        )


def _lines(text: str, console: Console, indent: int) -> str:
    return textwrap.fill(
        text,
        max(console.width, indent + 20),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _plain(text: str, console: Console) -> str:
    """``text`` on one line, in signs that the output can carry."""
    return printable(text).encode(console.encoding, "replace").decode(console.encoding)
