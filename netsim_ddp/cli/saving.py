"""Where commands keep what they measured: ``.netsim``, and ``last.json`` in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SAVED = Path(".netsim")


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
