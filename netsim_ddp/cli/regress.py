"""``netsim regress``: did this change make it slower? Both states measured in turns on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netsim_ddp.cli import compare_flags as flags
from netsim_ddp.cli.output import progress
from netsim_ddp.errors import UsageError


def regress(
    context: typer.Context,
    base: Annotated[
        str,
        typer.Option("--base", metavar="REF", help="The commit, branch or tag that head is held against."),
    ],
    package: Annotated[
        Path | None,
        typer.Option(
            "--package",
            metavar="PATH",
            help="Your own package: the folder in a git repository that --method my_module:factory is imported "
            "from. [this checkout of netsim]",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", "--runs", metavar="N", min=1, max=200, help="Runs of each state.")
    ] = 7,
    deadline: Annotated[
        str, typer.Option("--deadline", metavar="TIME", help="The longest that one run may take.")
    ] = "10min",
    fail_above: flags.FailAbove = None,
    fail_on: flags.FailOn = None,
    only: flags.Only = None,
    alpha: flags.Alpha = 0.01,
    json: flags.Json = None,
    markdown: flags.Markdown = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", metavar="FOLDER", help="Keep both results: base.json and head.json.", show_default=False
        ),
    ] = None,
) -> None:
    """Measure two states of the code in turns and compare them: REF in a temporary worktree, and the folder as it is.
    All other flags are netsim run's and say what is measured: --config, --method, --workers, --bandwidth ..."""
    from netsim_ddp.bench import regress as bench
    from netsim_ddp.results.compare import compare
    from netsim_ddp.results.record import Result, write_whole
    from netsim_ddp.results.record import to_json as text_of
    from netsim_ddp.results.sides import side
    from netsim_ddp.units import parse_duration

    rules = flags.rules_of(fail_above, fail_on, only, alpha)
    flags.outputs(json, markdown)
    seconds = parse_duration(deadline, what="--deadline")
    if seconds <= 0:
        raise UsageError(f"--deadline {deadline} must be more than 0", hint="write for example 10min")
    if save is not None and not save.is_dir():
        raise UsageError(f"--save {save} is no folder", hint=f"mkdir -p {save}")

    def keep(base_result: Result, head_result: Result) -> None:
        for name, each in (("base", base_result), ("head", head_result)):
            if save is not None:
                write_whole(text_of(each), save / f"{name}.json")

    with bench.two_states(base, package) as states, progress() as report:
        measured = bench.measure(
            states, context.args, repeats=repeats, timeout_s=seconds, report=report, save=keep
        )
    before, after = (side(result, state.name) for result, state in zip(measured, states, strict=True))
    flags.show(compare(before, after, rules), json=json, markdown=markdown)
