"""Where a run's result goes while it runs: a file of its own under ``.netsim``, and a copy where the user asked."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from netsim_ddp.cli.output import progress, writable
from netsim_ddp.cli.streams import open_console, say, write_document
from netsim_ddp.errors import NetsimError

if TYPE_CHECKING:
    from rich.console import Console

    from netsim_ddp.cli.options import FileOptions
    from netsim_ddp.results.record import Result
    from netsim_ddp.results.trace import TracedLap

SAVED = Path(".netsim")


class SavedFiles:
    """The files that every save goes to. One that cannot be written does not end the run: stderr says so once, later
    saves try again, and :meth:`finish` fails if the user asked for that file by name."""

    def __init__(self, path: Path | None, copy: Path | None) -> None:
        self.path, self._copy = path, copy
        self.last: Result | None = None
        self._saved: set[Path] = set()
        self._faults: dict[Path, NetsimError] = {}

    def save(self, result: Result) -> None:
        """Called by a runner after every repeat."""
        from netsim_ddp.results.files import to_json

        self.last = result
        self.write(to_json(result))

    def write(self, document: str) -> None:
        """Write ``document`` to all files."""
        from netsim_ddp.results.files import write_whole

        for path in self._all():
            try:
                write_whole(document, path)
            except NetsimError as error:
                if path not in self._faults:
                    say(f"warning: {error.message}: the run goes on without it")
                self._faults[path] = error
            else:
                self._saved.add(path)
                self._faults.pop(path, None)

    @property
    def paths(self) -> list[Path]:
        """The files that hold all that was measured."""
        return [path for path in self._all() if path in self._saved and path not in self._faults]

    def _all(self) -> list[Path]:
        return list(dict.fromkeys(path for path in (self.path, self._copy) if path is not None))

    def tell(self, console: Console | None, replay: str = "") -> None:
        """Say on ``console`` where the result is and how to ``replay`` it; on stderr which files hold less."""
        if console is not None and self.path is not None and self.path in self.paths:
            console.print(f"saved {self.path}", highlight=False, soft_wrap=True)
            console.print(f"replay: {replay} {self.path}", highlight=False, soft_wrap=True)
        for path, error in self._faults.items():
            if path in self._saved:
                say(f"warning: {path} holds the earlier repeats only: {error.message}")
            elif path == self.path:
                say("warning: this run is not saved")

    def finish(self) -> None:
        """Called when everything has been shown.

        Raises:
            NetsimError: the file that the user named could not be written.
        """
        if self._copy is not None and self._copy in self._faults:
            raise self._faults[self._copy]


def execute(
    files: FileOptions, replay: str, render: Callable[[Result, Console], None], run: Callable[..., Result]
) -> None:
    """Carry an experiment out, with its progress on stderr; show its result and say where it is.

    If it fails, what was measured stays, and stderr says where. Where no file holds it, stdout shows it.

    Args:
        replay: the command that repeats a run of a result file.
        run: takes ``command``, ``report``, ``save`` and ``trace``, as :func:`netsim_ddp.steps.runner.run`.
    """
    copy = None if files.json in (None, "-") else writable(Path(str(files.json)))
    trace_file = None if files.trace_steps is None else writable(files.trace_steps)
    from netsim_ddp.results.files import to_json
    from netsim_ddp.steps.experiment import measured

    def show(result: Result) -> None:
        if files.json == "-":
            write_document(to_json(result))
        else:
            render(result, open_console())

    saved = SavedFiles(new_file(), copy)
    traced: list[TracedLap] = []
    try:
        with progress() as report:
            result = run(
                command=["netsim", *sys.argv[1:]],
                report=report,
                save=saved.save,
                trace=None if trace_file is None else traced.extend,
            )
    except BaseException:
        if saved.last is not None and measured(saved.last):
            if where := " and ".join(map(str, saved.paths)):
                say(f"what was measured is in {where}")
            else:
                show(saved.last)
                saved.tell(None)
        elif saved.path is not None:
            saved.path.unlink(missing_ok=True)
        raise
    finally:
        if saved.path is not None and saved.path.exists():
            point_last(saved.path)
    show(result)
    saved.tell(None if files.json == "-" else open_console(), replay)
    if trace_file is not None:
        from netsim_ddp.report.export.trace import trace_json
        from netsim_ddp.results.files import write_whole

        write_whole(trace_json(traced), trace_file)
        say(f"trace in {trace_file}, for https://ui.perfetto.dev")
    saved.finish()


def new_file() -> Path | None:
    """Returns a new file under ``.netsim``; None, with a warning, where that folder cannot be made."""
    import datetime
    import tempfile

    try:
        SAVED.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=SAVED).close()
    except OSError as error:
        say(f"warning: the run is not saved: cannot write to {SAVED} ({error.strerror})")
        return None
    return SAVED / f"{datetime.datetime.now():%Y-%m-%dT%H-%M-%S}-{os.getpid()}.json"


def point_last(path: Path) -> None:
    """``.netsim/last.json`` names the newest run; where no file can be made any more it goes on naming the one
    before."""
    link = SAVED / "last.json"
    temporary = SAVED / f".last-{os.getpid()}"
    try:
        temporary.symlink_to(path.name)
        temporary.replace(link)
    except OSError as error:
        say(f"warning: {link} does not name this run: {error.strerror}")
