"""``netsim compare``: did it get slower, does it send more, does it learn worse?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netsim_ddp.cli.compare_flags import CompareOptions
from netsim_ddp.errors import UsageError

_HINT = "write netsim compare BASE.json NEW.json, or --base A.json --base B.json --head C.json --head D.json"


def compare(
    base: Annotated[
        Path | None, typer.Argument(metavar="BASE.json", help="A result file, or one of pytest-benchmark.")
    ] = None,
    new: Annotated[Path | None, typer.Argument(metavar="NEW.json", help="What is held against it.")] = None,
    bases: Annotated[
        list[Path] | None,
        typer.Option(
            "--base",
            metavar="FILE",
            help="Instead of BASE.json, repeatable: several files of one side are more repeats, and of "
            "pytest-benchmark more processes.",
            show_default=False,
        ),
    ] = None,
    heads: Annotated[
        list[Path] | None,
        typer.Option(
            "--head", metavar="FILE", help="The same for what is held against it.", show_default=False
        ),
    ] = None,
    *,
    how: CompareOptions,
) -> None:
    """Compare two results: faster, slower, no change or not decided; bytes and bits exactly. Exits with 5 on a
    regression and with 6 when nothing is comparable."""
    before, after = _files(base, new, bases or [], heads or [])
    rules = how.rules()
    from netsim_ddp.results.compare import compare as hold
    from netsim_ddp.results.sides import sides_of

    with how.failing_junit():
        how.show(hold(sides_of(before), sides_of(after), rules))


def _files(
    base: Path | None, new: Path | None, bases: list[Path], heads: list[Path]
) -> tuple[list[Path], list[Path]]:
    """The files of both sides.

    Raises:
        UsageError: one side has none, or files are named in both ways.
    """
    named = [path for path in (base, new) if path is not None]
    if named and (bases or heads):
        raise UsageError("files stand both with and without --base and --head", hint=_HINT)
    if base is not None and new is not None:
        return [base], [new]
    if not (bases and heads):
        raise UsageError("two sides are needed to compare", hint=_HINT)
    for path in {*bases, *heads}:
        if max(bases.count(path), heads.count(path)) > 1:
            raise UsageError(f"{path} is given twice on one side", hint="each file is one set of repeats")
    return bases, heads
