"""What commands share on their way out: files that can be written, and progress on stderr."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from netsim_ddp.cli.streams import open_console, write_document
from netsim_ddp.errors import UsageError

if TYPE_CHECKING:
    from netsim_ddp.steps.experiment import Event, Report


def writable(path: Path) -> Path:
    """Fail before the measuring, not after it. Results replace the file whole, so it is the folder that counts."""
    import tempfile

    hint = "name a file in a folder you can write to"
    target = Path(os.path.realpath(path))  # a link keeps pointing where it points
    if os.path.isdir(target):
        raise UsageError(f"cannot write {path}: it is a folder", hint=hint)
    if os.path.exists(target) and not os.path.isfile(target):
        raise UsageError(f"cannot write {path}: it is not a file", hint="write --json - for stdout")
    if not os.path.isdir(target.parent):
        raise UsageError(f"cannot write {path}: no folder {path.parent}", hint=hint)
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            return target
    except OSError:
        raise UsageError(f"cannot write {path}: no file can be made in {path.parent}", hint=hint) from None


def check_targets(wanted: Mapping[str, str | None]) -> None:
    """Refuse what could not be written before anything is read or measured.

    Args:
        wanted: by flag its PATH or ``-`` for stdout, None where it was not given.

    Raises:
        UsageError: two documents for stdout, or a file that cannot be made.
    """
    if len(to_stdout := [flag for flag, target in wanted.items() if target == "-"]) > 1:
        raise UsageError(
            f"{to_stdout[0]} - and {to_stdout[1]} - both want stdout", hint="name a file for one of them"
        )
    for target in wanted.values():
        if target not in (None, "-"):
            writable(Path(str(target)))


def write_to(target: str, text: str) -> None:
    """Write ``text`` to the file ``target``, or to stdout where that is ``-``."""
    from netsim_ddp.results.files import write_whole

    if target == "-":
        write_document(text)
    else:
        write_whole(text, writable(Path(target)))


@contextmanager
def progress(*, bar: bool = True) -> Iterator[Report]:
    """Notes and warnings as lines on stderr; with ``bar`` a bar below them while that is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = open_console(stderr=True, highlight=False, soft_wrap=True)

    def say(event: Event) -> None:
        if event.kind == "line":
            console.print(event.text, markup=False)
            return
        prefix = "warning: " if event.kind == "warning" else ""
        console.print(f"netsim: {prefix}{event.text}", markup=False, style="dim" if not prefix else "yellow")

    if not (bar and console.is_terminal):
        yield lambda event: say(event) if event.kind != "progress" else None
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as shown:
        task = shown.add_task("starting", total=None)

        def show(event: Event) -> None:
            if event.kind == "progress":
                shown.update(task, description=event.text, completed=event.done, total=event.total)
            else:
                say(event)

        yield show
