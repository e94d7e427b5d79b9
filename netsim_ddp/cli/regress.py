"""``netsim regress``: did this change make it slower? Both states measured in turns on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netsim_ddp.cli.compare_flags import CompareOptions
from netsim_ddp.cli.output import progress
from netsim_ddp.errors import UsageError

if TYPE_CHECKING:
    from netsim_ddp.results.record import Result


def regress(
    context: typer.Context,
    *,
    base: Annotated[
        str,
        typer.Option("--base", metavar="REF", help="The commit, branch or tag that head is held against."),
    ],
    package: Annotated[
        Path | None,
        typer.Option(
            "--package",
            metavar="PATH",
            help="The folder in a git repository that --method my_module:factory is imported from. [the repository "
            "of this folder: netsim's own, or where the module lies in it]",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", "--runs", metavar="N", min=1, max=200, help="Runs of each state.")
    ] = 7,
    deadline: Annotated[
        str, typer.Option("--deadline", metavar="TIME", help="The longest that one run may take.")
    ] = "10min",
    how: CompareOptions,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", metavar="FOLDER", help="Keep both results: base.json and head.json.", show_default=False
        ),
    ] = None,
) -> None:
    """Measure two states of the code in turns and compare them: REF in a temporary worktree, and the folder as it is.
    All other flags are netsim run's and say what is measured: --config, --method, --workers, --bandwidth ..."""
    from netsim_ddp.names import is_reference
    from netsim_ddp.results.compare import compare
    from netsim_ddp.results.files import to_json as text_of
    from netsim_ddp.results.files import write_whole
    from netsim_ddp.steps.experiment import Event
    from netsim_ddp.tools.regress import measure as bench
    from netsim_ddp.tools.regress.methods import available
    from netsim_ddp.tools.regress.states import two_states
    from netsim_ddp.units import parse_duration

    rules = how.rules()
    seconds = parse_duration(deadline, what="--deadline")
    if seconds <= 0:
        raise UsageError(f"--deadline {deadline} must be more than 0", hint="write for example 10min")
    if save is not None and not save.is_dir():
        raise UsageError(f"--save {save} is no folder", hint=f"mkdir -p {save}")

    def keep(*results: Result | None) -> None:
        for name, each in zip(("base", "head"), results, strict=True):
            if save is not None and each is not None:
                write_whole(text_of(each), save / f"{name}.json")

    with how.failing_junit():
        methods, model = _named(context)
        modules = [
            name.partition(":")[0] for name in (*methods, model or "") if is_reference(name.split(",")[0])
        ]
        with two_states(base, package, modules) as states, progress() as report:
            found = available(states, methods, model, timeout_s=seconds)
            for state, each in zip(states, found, strict=True):
                for note in each.notes:
                    report(Event("warning", f"{state.name} cannot be measured with {note}"))
            results = bench.measure(
                states,
                context.args,
                repeats=repeats,
                timeout_s=seconds,
                report=report,
                save=keep,
                available=found,
            )
        before, after = (
            bench.side_of(result, state, each)
            for result, state, each in zip(results, states, found, strict=True)
        )
        how.show(compare(before, after, rules))


def _named(context: typer.Context) -> tuple[list[str], str | None]:
    """The methods, as ``--method`` takes them, and the model that the flags of ``netsim run`` or their file name.

    Raises:
        UsageError: a flag that netsim run has not, or a file that cannot be read.
    """
    from netsim_ddp.methods.spec import method_of
    from netsim_ddp.scenario.files import as_written

    assert context.parent is not None
    run = context.parent.command.commands["run"]  # type: ignore[attr-defined]  # the group's
    given = run.make_context("run", list(context.args), parent=context.parent).params
    methods, model, config = given["method"], given["model"], given["config"]
    if config is not None:
        methods = methods or as_written(config, "methods")
        model = model or as_written(config, "model")
    items = [methods] if isinstance(methods, str) else methods
    if not isinstance(items, list | tuple):  # nothing, or what the run itself will refuse
        items = []
    return (
        [item.strip() if isinstance(item, str) else method_of(item).id for item in items],
        model if isinstance(model, str) else None,
    )
