"""``netsim compare``: did it get slower, does it send more, does it learn worse?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netsim_ddp.cli import compare_flags as flags


def compare(
    base: Annotated[
        Path, typer.Argument(metavar="BASE.json", help="A result file, or one of pytest-benchmark.")
    ],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="What is held against it.")],
    fail_above: flags.FailAbove = None,
    fail_on: flags.FailOn = None,
    only: flags.Only = None,
    alpha: flags.Alpha = 0.01,
    json: flags.Json = None,
    markdown: flags.Markdown = None,
    junit: flags.JUnit = None,
) -> None:
    """Compare two results: faster, slower, no change or not decided; bytes and bits exactly. Exits with 5 on a
    regression and with 6 when nothing is comparable."""
    rules = flags.rules_of(fail_above, fail_on, only, alpha)
    flags.outputs(json, markdown, junit)
    from netsim_ddp.results.compare import compare as hold
    from netsim_ddp.results.sides import side_of

    with flags.red_where_it_fails(junit):
        found = hold(side_of(base), side_of(new), rules)
        flags.show(found, json=json, markdown=markdown, junit=junit)
