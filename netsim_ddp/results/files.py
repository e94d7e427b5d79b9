"""Result files and others as JSON: written atomically, read with checks.

The files are strict JSON: a diverged loss is written as the string "NaN", which :func:`load` reads back.
"""

from __future__ import annotations

import datetime
import gc
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from netsim_ddp import reading
from netsim_ddp.errors import UsageError, cannot_write
from netsim_ddp.reading import one_line
from netsim_ddp.results.fields import Strict, validated
from netsim_ddp.results.record import SCHEMA_VERSION, Result

MAX_FILE_BYTES = reading.MAX_FILE_BYTES


def now_utc() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def to_json(result: Strict) -> str:
    return result.model_dump_json(indent=1) + "\n"


def save(result: Strict, path: Path) -> None:
    """Write ``result`` atomically; see :func:`write_whole`."""
    write_whole(to_json(result), path)


def write_whole(text: str, path: Path) -> None:
    """Write ``text`` atomically; see :func:`replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that becomes ``path`` at the end: a reader sees the old file or the new one, never a half.

    Raises:
        UsageError: the folder is missing or cannot be written.
        EnvironmentFault: the disk is full, or a quota.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            mask = os.umask(0o077)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def load(path: Path) -> Result:
    """Read and check a result file.

    Raises:
        UsageError: unreadable, too large, not JSON, a newer schema, or keys missing or of the wrong type.
    """
    return parse_json(read_bytes(path), source=str(path))


def read_bytes(path: Path) -> bytes:
    """The content of a file from anywhere.

    Raises:
        UsageError: unreadable, or larger than ``MAX_FILE_BYTES``.
    """
    return reading.read_bytes(path, limit=MAX_FILE_BYTES, wanted="a result file")


def decode(content: bytes, *, source: str) -> object:
    """The JSON in ``content``, whatever it says.

    Raises:
        UsageError: it is not JSON.
    """
    hint = "name a file that netsim has written"
    text = reading.decode_text(content, source=source, wanted="JSON", hint=hint)
    return reading.parse_json(text, source=source, hint=hint)


def parse_json(content: bytes, *, source: str) -> Result:
    """The result in ``content``.

    Raises:
        UsageError: as :func:`decode` and :func:`parse`.
    """
    # Tens of thousands of records are created and none is freed, and the cycle collector would look through all of them
    # again and again: a file of 200 cells loads five times as fast without it.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return Result.model_validate_json(content)
    except ValidationError:  # an older file, or a wrong one, of which the message says what is wrong
        return parse(decode(content, source=source), source=source)
    finally:
        if collecting:
            gc.enable()


def parse(data: object, *, source: str) -> Result:
    """Check ``data`` (the decoded JSON of ``source``) against the schema.

    Raises:
        UsageError: not a result, a newer schema, or keys missing or of the wrong type.
    """
    known = data if isinstance(data, dict) else {}
    version = known.get("schema_version")
    if version is None:
        raise UsageError(
            f"{source} is not a netsim result file: it has no schema_version",
            hint="name a file that netsim run, train, sweep or predict has written with --json, or last",
        )
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UsageError(
            f"{source} has schema version {one_line(str(version), 40)}; this netsim reads up to {SCHEMA_VERSION}",
            hint="upgrade netsim",
        )
    kind = known.get("kind", "steps")
    if kind not in ("steps", "training"):
        raise UsageError(
            f"{source} is not a netsim result file: it holds a {one_line(str(kind), 40)}",
            hint=f"netsim show {source} shows what netsim wrote",
        )
    return validated(Result, data, source=source)
