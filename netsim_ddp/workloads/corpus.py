"""The bytes of the data set ``text``: what the user names, or the standard library's own sources. Imports no torch."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from netsim_ddp.errors import EnvironmentFault, UsageError
from netsim_ddp.units import format_bytes

DEFAULT_BYTES = 2_000_000
MOST_BYTES = 100_000_000
_HINT = "name a file or a folder with text"


def read_corpus(text: str | Path | None) -> bytes:
    """The whole text: a file, or the files of a folder in the order of their paths.

    Of a folder, what is binary (holds a zero byte) or has a name with a leading dot is left out. By default the text is
    the standard library's: its modules that are one file, in the order of their names, cut to 2 MB. That is the same on
    every machine with the same Python.

    Raises:
        UsageError: there is no such file or folder, it cannot be read, holds no text, or more than 100 MB.
        EnvironmentFault: this Python comes without its sources.
    """
    if text is None:
        return _standard_library()
    path = Path(text).expanduser()
    if not path.is_file() and not path.is_dir():
        raise UsageError(f"text {str(path)!r} is neither a file nor a folder", hint=_HINT)
    found = bytearray()
    try:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if not file.is_file() or any(part.startswith(".") for part in file.relative_to(path).parts):
                continue
            with file.open("rb") as opened:
                content = opened.read(MOST_BYTES + 1)
            if b"\0" not in content:
                found += content
            if len(found) > MOST_BYTES:
                raise UsageError(
                    f"{path} holds more than {format_bytes(MOST_BYTES)} of text", hint="name a part of it"
                )
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or path}: {error.strerror}", hint=_HINT) from error
    if not found:
        raise UsageError(f"{path} holds no text", hint=_HINT)
    return bytes(found)


def _standard_library() -> bytes:
    folder = Path(sysconfig.get_path("stdlib"))
    found = bytearray()
    # By the list that Python has of them: a distribution or a user may have put other files there.
    for name in sorted(sys.stdlib_module_names):
        if len(found) < DEFAULT_BYTES and (file := folder / f"{name}.py").is_file():
            found += file.read_bytes()
    if len(found) < DEFAULT_BYTES:
        raise EnvironmentFault(
            f"the standard library's sources are not in {folder}", hint="name a text of your own with --text"
        )
    return bytes(found[:DEFAULT_BYTES])
