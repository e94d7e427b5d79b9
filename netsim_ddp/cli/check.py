"""``netsim check``: does a method keep the contract of docs/methods.md?"""

from __future__ import annotations

from typing import Annotated

import typer

from netsim_ddp.cli.streams import open_console, say

_WORDS = {True: "PASS", False: "FAIL", None: "TIME"}
_STYLES = {True: "green", False: "red", None: "cyan"}


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
) -> None:
    """Test a method on real ranks: same bits, nothing lost, buckets, state, NaN, honest bytes; and time it."""
    from netsim_ddp.bench.method_check import CHECKS, check_method
    from netsim_ddp.errors import RankError, UsageError
    from netsim_ddp.methods import parse_method, takes
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

    from rich.text import Text

    console = open_console(highlight=False)
    failed = []
    for finding in check_method(
        spec,
        link=link,
        timeout_s=seconds,
        leave_out=without or (),
        note=say,
    ):
        line = Text(f"[{_WORDS[finding.passed]}] {finding.name:<13} {finding.found}")
        line.stylize(_STYLES[finding.passed], 0, 6)
        console.print(line, soft_wrap=True)
        if finding.passed is False:
            failed.append(finding.name)
    if failed:
        raise RankError(f"{spec.id} fails {len(failed)} of the checks: {', '.join(failed)}")
