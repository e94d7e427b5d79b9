"""``netsim sweep``: a matrix of runs, continued where it was stopped."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netsim_ddp.cli.options import Text
from netsim_ddp.cli.output import writable
from netsim_ddp.cli.saving import SAVED, SavedFiles, new_file, point_last
from netsim_ddp.cli.streams import open_console, say, write_document
from netsim_ddp.units import counted

if TYPE_CHECKING:
    from netsim_ddp.results.record import Cell, Result
    from netsim_ddp.scenario.matrix import Matrix
    from netsim_ddp.sweep.plan import Run
    from netsim_ddp.sweep.runner import Progress, Sweep
    from netsim_ddp.sweep.source import Command


def sweep(
    scenario: Annotated[
        str,
        typer.Argument(
            metavar="SCENARIO",
            help="A file with a matrix, the name of a built-in one (netsim scenarios list), or a sweep's result.",
            show_default=False,
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set a key or an axis of the file, to a value or [A, B]; repeatable.",
        ),
    ] = None,
    recording: Annotated[
        Text,
        typer.Option(
            metavar="FILE", help="Play a recorded training in place of the file's model. [the file's]"
        ),
    ] = None,
    k: Annotated[
        Text,
        typer.Option(
            "-k", metavar="EXPR", help="Only cells whose ids match: 'topk and not (100mbps or fp16)'."
        ),
    ] = None,
    stop: Annotated[
        bool, typer.Option("-x", "--exitfirst", help="Stop at the first cell that fails.")
    ] = False,
    last_failed: Annotated[
        bool,
        typer.Option(
            "--lf", "--last-failed", help="Only cells that failed or are missing in the last result."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be run and how long it would take.")
    ] = False,
    time_budget: Annotated[
        Text, typer.Option(metavar="TIME", help="Start no further repeat after this: 8min. [none]")
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--fresh",
            help="Keep what the last result has, or start over. [keep it if that sweep was stopped or failed]",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        Text,
        typer.Option(
            "--json",
            "-o",
            metavar="PATH|-",
            help="The result, and what a stopped sweep goes on from; - prints it. [.netsim/sweep-NAME.json]",
        ),
    ] = None,
) -> None:
    """Run a matrix of scenarios: over which networks does it pay, with which method, how many workers?

    Saved after every repeat; the same command goes on where it was stopped. Exits with 3 when a cell failed.
    """
    from netsim_ddp.errors import RankError, UsageError
    from netsim_ddp.link.hosts import cluster_environment
    from netsim_ddp.sweep.earlier import measured_again, read_earlier, still_valid
    from netsim_ddp.sweep.estimate import earlier as earlier_times
    from netsim_ddp.sweep.runner import Sweep
    from netsim_ddp.sweep.source import read_plan
    from netsim_ddp.units import parse_duration

    if cluster_environment(os.environ) is not None:
        raise UsageError(
            "netsim sweep starts its own workers, and this is a rank of torchrun or srun",
            hint="netsim run there; or unset RANK and WORLD_SIZE, if they are left over",
        )
    played = [] if recording is None else ["recording='{}'".format(recording.replace("'", "''"))]
    name, matrix, command, runs = read_plan(scenario, [*(set_ or []), *played])
    selected = _selected(runs, k)
    path, explicit = _path(name, json, dry_run=dry_run)
    before = None if path is None else read_earlier(path, unless=resume is False)
    kept: dict[str, Cell] = {}
    if before is not None and resume is not False and (resume or last_failed or before.status != "complete"):
        kept = still_valid(before, runs)
        if path is not None and (again := measured_again(path, before, runs)):
            say(again)
    budget = None if time_budget is None else parse_duration(time_budget, what="--time-budget")
    known = earlier_times(before.cells) if before is not None else {}
    going = Sweep(
        name,
        matrix,
        runs,
        selected=selected,
        kept=kept,
        known=known,
        ready=before.ready if before is not None else {},
        stop_at_failure=stop,
        time_budget_s=runs[0].settings.time_budget_s if budget is None else budget,
    )
    _tell_plan(going, kept, path, len(selected), from_before=bool(known))
    if dry_run:
        _tell_cells(going, selected)
        return
    if before is not None and path is not None and not explicit:
        _put_aside(path, before, kept)
    files = SavedFiles(path, path if explicit else None)
    result = _execute(going, command, files, lambda result: _show(result, json))
    _show(result, json)
    files.tell(None if json == "-" else open_console(), "netsim sweep")
    files.finish()
    if going.failed:
        raise RankError(
            f"{len(going.failed)} of {counted(len(selected), 'cell')} failed"
            + (f"; {going.stopped}" if going.stopped else ""),
            hint="the same command tries them again",
        )
    if going.stopped:
        say(f"{going.stopped}; the same command goes on")


def carry_out(name: str, matrix: Matrix, command: Command, runs: list[Run], json: str | None) -> None:
    """Run the whole matrix anew, show it, and save it where the user asks."""
    from netsim_ddp.errors import RankError
    from netsim_ddp.sweep.runner import Sweep

    path, explicit = _path(name, json, dry_run=False)
    if not explicit:
        path = new_file()  # nothing goes on from it, and the one before stays
    selected = frozenset(cell.id for run in runs for cell in run.cells)
    going = Sweep(name, matrix, runs, selected=selected, kept={}, known={})
    files = SavedFiles(path, path if explicit else None)
    result = _execute(going, command, files, lambda result: _show(result, json))
    _show(result, json)
    files.tell(None if json == "-" else open_console(), "netsim sweep")
    files.finish()
    if going.failed:
        raise RankError(f"{len(going.failed)} of {counted(len(selected), 'cell')} failed")


def _selected(runs: list[Run], expression: str | None) -> frozenset[str]:
    from netsim_ddp.errors import UsageError
    from netsim_ddp.sweep.selection import compile_expression

    ids = [cell.id for run in runs for cell in run.cells]
    if expression is None:
        return frozenset(ids)
    matches = compile_expression(expression)
    found = frozenset(name for name in ids if matches(name))
    if not found:
        raise UsageError(
            f"-k {expression!r} matches none of {counted(len(ids), 'cell')}", hint="--dry-run lists their ids"
        )
    return found


def _path(name: str, json: str | None, *, dry_run: bool) -> tuple[Path | None, bool]:
    """The file of the sweep, and whether the user named it."""
    if json not in (None, "-"):
        return (Path(str(json)) if dry_run else writable(Path(str(json)))), True
    if dry_run:
        return SAVED / f"sweep-{name}.json", False
    place = new_file()
    return (None if place is None else place.with_name(f"sweep-{name}.json")), False


def _put_aside(path: Path, before: Result, kept: dict[str, Cell]) -> None:
    """Rename an earlier result that holds something which the new one will not."""
    if any(cell.repeats and cell.id not in kept for cell in before.cells):
        stamp = "".join(char if char.isalnum() else "-" for char in before.created_utc.partition("+")[0])
        path.replace(path.with_name(f"{path.stem}-{stamp}.json"))


def _tell_plan(
    going: Sweep, kept: dict[str, Cell], path: Path | None, selected: int, *, from_before: bool
) -> None:
    from netsim_ddp.report.terminal.sweep_progress import rough

    cells = sum(len(run.cells) for run in going.runs)
    some = f"{selected} of " if selected != cells else ""
    text = f"{some}{counted(cells, 'cell')} in {counted(len(going.runs), 'place')}"
    text += f", {counted(len(going.units), 'repeat')} to run"
    if going.units:
        basis = "what its repeats took before" if from_before else "bytes / line rate, compute and start-up"
        text += f": about {rough(going.expected_s)}, from {basis}"
    say(text)
    if kept:
        had = counted(sum(len(cell.repeats) for cell in kept.values()), "repeat")
        print(
            f"netsim: kept {had} of {counted(len(kept), 'cell')} from {path}; --fresh starts over",
            file=sys.stderr,
        )


def _tell_cells(going: Sweep, selected: frozenset[str]) -> None:
    """The ids of what would be run; stdout is theirs alone."""
    repeats = Counter(unit.cell.id for unit in going.units for _ in unit.repeats)
    for run in going.runs:
        for cell in run.cells:
            if cell.id in selected:
                count = repeats[cell.id]
                typer.echo(f"{cell.id} x {count}" if count else f"{cell.id} is finished")


def _execute(going: Sweep, command: Command, files: SavedFiles, show: Callable[[Result], None]) -> Result:
    try:
        with _watching(going) as report:
            return going.execute(command, command=["netsim", *sys.argv[1:]], report=report, save=files.save)
    except (KeyboardInterrupt, SystemExit):
        if files.paths:
            say(f"saved {files.paths[0]}; the same command goes on")
        elif files.last is not None:
            show(files.last)
        raise
    finally:
        if files.path is not None and files.path.exists() and files.path.parent.resolve() == SAVED.resolve():
            point_last(files.path)


def _show(result: Result, json: str | None) -> None:
    if json == "-":
        from netsim_ddp.results.files import to_json

        write_document(to_json(result))
        return
    from netsim_ddp.report.terminal.sweep import render_sweep

    render_sweep(result, open_console())


@contextmanager
def _watching(going: Sweep) -> Iterator[Callable[[Progress], None]]:
    """The table on a terminal's stderr, lines elsewhere."""
    from rich.live import Live

    from netsim_ddp.report.terminal.sweep_progress import SweepTable, cell_line, remaining

    console = open_console(stderr=True, highlight=False, soft_wrap=True)

    def say(event: Progress) -> None:
        if event.kind in ("note", "warning"):
            style, prefix = ("yellow", "warning: ") if event.kind == "warning" else ("dim", "")
            console.print(f"netsim: {prefix}{event.text}", markup=False, style=style)
        elif event.kind == "failed":
            console.print(f"netsim: FAILED {event.text}", markup=False, style="red")

    if not console.is_terminal:

        def lines(event: Progress) -> None:
            say(event)
            if event.kind == "done" and event.cell is not None:
                count = f"{event.done:>{len(str(event.total))}}/{event.total}"
                console.print(
                    f"netsim: {count} {event.cell.id}: {cell_line(event.cell)}; {remaining(event.remaining_s)}",
                    markup=False,
                )

        yield lines
        return
    table = SweepTable(list(Counter(unit.run.label for unit in going.units).items()))

    def draw(event: Progress) -> None:
        say(event)
        state = (event.done, event.total, event.remaining_s)
        if event.kind == "start":
            table.start(event.run, event.text, *state)
        elif event.kind in ("done", "failed"):
            table.end(event.run, event.cell, *state, failed=event.kind == "failed")
        live.update(table.render(console.width, console.height))

    with Live(console=console, transient=True, refresh_per_second=4) as live:
        yield draw
