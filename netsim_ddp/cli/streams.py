"""stdin, stdout and stderr as they may be: closed, ASCII only, on a full disk, a pipe that nobody reads any more.

A document is UTF-8 whatever the terminal's encoding; what a terminal cannot show becomes the nearest ASCII sign. A
reader that leaves early (``| head``) ends neither the work nor changes the command's exit code.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import IO, TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_NEAREST = {"–": "-", "±": "~", "×": "x", "·": ".", "…": ".", "µ": "u", "≥": ">", "≤": "<"}


def prepare() -> None:
    """Have all three streams open, and able to take any text. Called once, before anything is opened or written.

    A stream that the caller closed becomes /dev/null: the next file to be opened would have its number.
    """
    for name in ("COLUMNS", "LINES"):  # rich believes a width of 0
        if os.environ.get(name, "").isdigit() and int(os.environ[name]) < 1:
            del os.environ[name]
    codecs.register_error("netsim.nearest", _nearest)
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
        if descriptor:
            os.set_blocking(descriptor, True)  # a parent that shares it may have said otherwise
        stream = getattr(sys, name)
        if stream is None or (descriptor and stream is getattr(sys, f"__{name}__")):
            setattr(sys, name, _opened(descriptor, getattr(stream, "encoding", "utf-8")))


def _opened(descriptor: int, encoding: str) -> TextIO:
    if descriptor == 0:
        return open(descriptor, encoding="utf-8", closefd=False)
    raw = _Lasting(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="netsim.nearest",
        line_buffering=descriptor == 2 or raw.isatty(),
    )


class _Lasting(io.FileIO):
    """A descriptor that outlives its reader: what comes after that goes to /dev/null."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            discard(self)
            return super().write(data)


def _nearest(error: UnicodeError) -> tuple[str, int]:
    """One sign for one sign, so that columns stay where they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_NEAREST.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


def write_document(text: str) -> None:
    """Write ``text`` to stdout as UTF-8.

    Raises:
        OSError: stdout takes nothing more, a full disk for one.
    """
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


def discard(stream: IO[Any]) -> None:
    """Send what is still written to ``stream`` to /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def say(text: str) -> None:
    """A line of the command's own on stderr."""
    write_error(f"netsim: {text}")


def write_error(text: str) -> None:
    """Lines on stderr; where it takes none there is nobody left to tell."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def open_console(*, stderr: bool = False, **options: Any) -> Console:
    """A rich console on stdout, or stderr. rich is loaded when the first one is opened."""
    from rich.console import Console

    return Console(stderr=stderr, **options)
