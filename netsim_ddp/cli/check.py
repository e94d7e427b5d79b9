"""``netsim check``: does a method keep the contract of docs/methods.md?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from netsim_ddp.cli.streams import open_console, say

_STYLES = {"PASS": "green", "FAIL": "red", "NOTE": "cyan", "TIME": "cyan"}


def check(
    method: Annotated[
        str,
        typer.Argument(metavar="METHOD", help="my_module:factory[,key=value...], or one of netsim's own."),
    ],
    link: Annotated[
        str,
        typer.Option(
            metavar="HOW", help="tc, bucket, or auto: tc where it works. [auto]", show_default=False
        ),
    ] = "auto",
    timeout: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="A rank without progress hangs after this. [20s]", show_default=False
        ),
    ] = "20s",
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="CHECK", help="Leave this one out; repeatable.", show_default=False),
    ] = None,
    json_path: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="PATH|-",
            help="Write the findings as one JSON document; - is stdout, the table then goes to stderr.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Test a method on real ranks: same bits, nothing lost or doubled, NaN and inf, state, honest bytes and memory."""
    from netsim_ddp import __version__
    from netsim_ddp.cli.output import check_targets, write_to
    from netsim_ddp.errors import RankError, UsageError
    from netsim_ddp.methods import takes
    from netsim_ddp.methods.spec import parse_method
    from netsim_ddp.tools.check.checks import CHECKS, NOT_SEEN, check_method
    from netsim_ddp.units import parse_duration

    spec = parse_method(method)
    if takes(spec.name, "ratio"):
        spec.params.setdefault("ratio", 0.01)
    if link not in ("auto", "tc", "bucket"):
        raise UsageError(f"--link {link!r} is not known here", hint="choose from auto, tc, bucket")
    for name in without or ():
        if name not in CHECKS:
            raise UsageError(f"unknown check {name!r}", hint=f"the checks are {', '.join(CHECKS)}")
    seconds = parse_duration(timeout, what="--timeout")
    to_stdout = json_path is not None and str(json_path) == "-"
    check_targets({"--json": None if json_path is None else str(json_path)})

    from rich.text import Text

    console = open_console(highlight=False, stderr=to_stdout)
    rows = []
    for finding in check_method(
        spec,
        link=link,
        timeout_s=seconds,
        leave_out=without or (),
        note=say,
    ):
        word = (f"[{finding.word}]", _STYLES[finding.word])
        console.print(Text.assemble(word, f" {finding.name:<13} {finding.found}"), soft_wrap=True)
        rows.append(finding)
    console.print(NOT_SEEN, soft_wrap=True)
    failed = [finding.name for finding in rows if finding.passed is False]
    if json_path is not None:
        document = {
            "netsim_version": __version__,
            "method": spec.id,
            "passed": not failed,
            "checks": [finding.to_json() for finding in rows],
            "not_seen": NOT_SEEN,
        }
        write_to(str(json_path), json.dumps(document, indent=2) + "\n")
    if failed:
        raise RankError(f"{spec.id} fails {len(failed)} of the checks: {', '.join(failed)}")
