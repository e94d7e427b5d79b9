"""Where a run's result goes while it runs: a file of its own under ``.netsim``, and a copy where the user asked."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from netsim_ddp.results.record import Result
    from netsim_ddp.results.trace import TracedLap

SAVED = Path(".netsim")


class Kept:
    """The files that every save goes to."""

    def __init__(self, path: Path | None, copy: Path | None) -> None:
        self.path, self._copy = path, copy
        self.last: Result | None = None

    def save(self, result: Result) -> None:
        """Called by a runner after every repeat."""
        from netsim_ddp.results.record import save

        self.last = result
        for path in self.paths:
            save(result, path)

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.path, self._copy) if path is not None]

    def tell(self, console: Console, command: str) -> None:
        """Say where the result is, and how to repeat it."""
        if self.path is not None:
            console.print(f"saved {self.path}", highlight=False, soft_wrap=True)
            console.print(f"replay: {command} --config {self.path}", highlight=False, soft_wrap=True)


@contextmanager
def saving(copy: Path | None, measured: Callable[[Result], bool]) -> Iterator[Kept]:
    """Files for what runs inside; if that fails, what was ``measured`` stays, and stderr says where."""
    kept = Kept(new_file(), copy)
    try:
        yield kept
    except BaseException:
        if kept.last is not None and measured(kept.last):
            if where := " and ".join(map(str, kept.paths)):
                print(f"netsim: what was measured is in {where}", file=sys.stderr)
        elif kept.path is not None:
            kept.path.unlink(missing_ok=True)
        raise
    finally:
        if kept.path is not None and kept.path.exists():
            point_last(kept.path)


def write_steps(laps: Sequence[TracedLap], path: Path) -> None:
    """Write a trace and say so on stderr."""
    from netsim_ddp.report.trace import write_trace

    write_trace(laps, path)
    print(f"netsim: trace in {path}, for https://ui.perfetto.dev", file=sys.stderr)


def new_file(prefix: str = "") -> Path | None:
    """A new file under ``.netsim``; None, with a warning, where that folder cannot be made."""
    import datetime
    import tempfile

    try:
        SAVED.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=SAVED):
            pass
    except OSError as error:
        reason = f"cannot write to {SAVED} ({error.strerror})"
        print(f"netsim: warning: the run is not saved: {reason}", file=sys.stderr)
        return None
    stem = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    return SAVED / f"{prefix}{stem}-{os.getpid()}.json"


def point_last(path: Path) -> None:
    """``.netsim/last.json`` names the newest run."""
    link = SAVED / "last.json"
    temporary = SAVED / f".last-{os.getpid()}"
    temporary.symlink_to(path.name)
    temporary.replace(link)
