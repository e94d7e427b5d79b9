"""The program that a user names behind ``--``, before it is started."""

from __future__ import annotations

import shutil
from pathlib import Path

from netsim_ddp.errors import UsageError
from netsim_ddp.reading import one_line
from netsim_ddp.results.recording_file import is_recording


def check_program(name: str) -> None:
    """Refuse a program that is not there.

    Raises:
        UsageError: with what to type instead where ``name`` is a script or a recording.
    """
    if shutil.which(name) is not None:
        return
    shown, path = one_line(name), Path(name)
    hint = "write its path, or check PATH"
    if is_recording(path):
        hint = f"netsim show {shown} shows a recording, netsim run --recording {shown} plays it"
    elif path.suffix == ".py" and path.is_file():
        hint = f"write -- python {shown}"
    raise UsageError(f"cannot run {name!r}: no such program", hint=hint)
