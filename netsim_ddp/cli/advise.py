"""``netsim advise``: which method, for whose training, on which link."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netsim_ddp.cli.expand import given
from netsim_ddp.cli.options import LinkOptions, Mechanism, Optimizer, Text
from netsim_ddp.cli.output import check_targets, progress, write_to
from netsim_ddp.cli.predict import PredictOptions
from netsim_ddp.cli.saving import SavedFiles, new_file, point_last
from netsim_ddp.cli.streams import open_console, say

if TYPE_CHECKING:
    from netsim_ddp.results.record import Result

DEFAULT_TIME = "3min"


@dataclass
class AdviseOptions(PredictOptions):
    """Whose training, among how many workers."""

    workers: Annotated[
        Text, typer.Option("--workers", "-n", metavar="N", help="Workers, up to 65536. [4]")
    ] = None
    repeats: Annotated[
        Text, typer.Option(metavar="N", help="How often each of them is measured, at most. [7]")
    ] = None
    optimizer: Optimizer = None
    link: Mechanism = None


def advise(
    *,
    link: LinkOptions,
    what: AdviseOptions,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[,KEY=VALUE...]",
            help="A candidate; repeatable, with and without overlap where it does not say. [a dozen usual ones]",
        ),
    ] = None,
    time: Annotated[
        Text,
        typer.Option(
            metavar="TIME",
            help=f"Measure the most promising methods here for about so long; 0: predict only. [{DEFAULT_TIME}]",
        ),
    ] = None,
    accuracy: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="What methods cost in accuracy: a result file of netsim train; repeatable."
        ),
    ] = None,
    accuracy_budget: Annotated[
        Text,
        typer.Option(
            metavar="POINTS", help="What a method may lose against dense, in points: 0.5pt; with --accuracy."
        ),
    ] = None,
    html: Annotated[Text, typer.Option(metavar="PATH|-", help="Write a page.")] = None,
    json: Annotated[
        Text,
        typer.Option(
            "--json",
            "-o",
            metavar="PATH|-",
            help="Write the advice as JSON; - is stdout, and nothing else is.",
        ),
    ] = None,
) -> None:
    """Recommend a method for a training on a link: netsim advise --recording job.netsim --workers 16 --bandwidth 1gbps

    Every candidate's step is predicted, the most promising ones are then measured on this machine as long as --time
    allows. The answer says which is which, how sure it is, what is not known, and what to paste.
    """
    from netsim_ddp.errors import UsageError
    from netsim_ddp.methods.spec import parse_method
    from netsim_ddp.predict import message_cost
    from netsim_ddp.results.files import load, to_json
    from netsim_ddp.units import parse_duration

    check_targets({"--html": html, "--json": json})
    seconds = parse_duration(time or DEFAULT_TIME, what="--time")
    points = None if accuracy_budget is None else parse_points(accuracy_budget)
    methods = [parse_method(each) for each in method or ()]
    trainings = {str(path): load(path) for path in accuracy or ()}
    for path, result in trainings.items():
        if result.kind != "training":
            raise UsageError(f"{path} holds no trainings", hint="name a result file of netsim train")
    flags = given(link, what)
    message_cost.measured()  # before this process has threads
    from netsim_ddp.report.export.advice_page import advice_page
    from netsim_ddp.report.terminal.advice import render_advice
    from netsim_ddp.tools.advise import advise as advised

    files: dict[str, SavedFiles] = {}

    def save(result: Result) -> None:
        execution = result.cells[0].execution
        if execution not in files:
            place = new_file()
            name = "-predicted" if execution == "predicted" else ""
            files[execution] = SavedFiles(place and place.with_name(f"{place.stem}{name}.json"), None)
        files[execution].save(result)

    with progress() as report:
        advice = advised(
            flags,
            methods=methods,
            time_s=seconds,
            budget_points=points,
            trainings=trainings,
            command=["netsim", *sys.argv[1:]],
            report=report,
            save=save,
        )
    advice.files = [str(path) for each in files.values() for path in each.paths]
    if json is not None:
        write_to(json, to_json(advice))
    if html is not None:
        write_to(html, advice_page(advice))
    if "-" not in (json, html):
        render_advice(advice, open_console(highlight=False))
    if advice.files:
        point_last(Path(advice.files[-1]))
        say(f"what was predicted and measured is in {' and '.join(advice.files)}")


def parse_points(text: str) -> float:
    """``"0.5pt"``, ``"0.5"`` -> 0.5 percentage points.

    Raises:
        UsageError: not a number that is 0 or more.
    """
    from netsim_ddp.errors import UsageError

    number = text.strip().lower().removesuffix("s").removesuffix("pt").removesuffix("%").strip()
    try:
        points = float(number)
    except ValueError:
        points = -1.0
    if not 0 <= points <= 100:
        raise UsageError(
            f"--accuracy-budget {text!r} is not a number of percentage points", hint="write for example 0.5pt"
        )
    return points
