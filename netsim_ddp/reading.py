"""Files that others made: every one is read here, whatever it turns out to be.

No reader of netsim opens a file by itself, so that a folder, a device without end, a pipe that nobody writes to, a
picture or a web page is answered in one line, by what it is.
"""

from __future__ import annotations

import codecs
import itertools
import json
import math
import os
import re
import select
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from netsim_ddp.errors import UsageError, printable

MAX_FILE_BYTES = 64 << 20
PATIENCE_S = 60.0  # for a pipe whose writer takes its time
WRITER_S = 1.0  # for a pipe that nobody writes to yet
CHUNK_BYTES = 1 << 20
MAX_DEPTH = 100

_MAGIC = {
    b"\x1f\x8b": "compressed (gzip)",
    b"PK\x03\x04": "a zip archive",
    b"\xfd7zXZ\x00": "compressed (xz)",
    b"BZh": "compressed (bzip2)",
    b"\x28\xb5\x2f\xfd": "compressed (zstd)",
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"%PDF": "a PDF",
    b"\x7fELF": "a program",
    b"SQLite format": "a database",
    b"\xd4\xc3\xb2\xa1": "a packet capture",
    b"\x0a\x0d\x0d\x0a": "a packet capture",
}
_MARKS = (  # the longer first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def one_line(text: str, limit: int = 120) -> str:
    """``text`` from a file, fit for an error: printable, on one line, cut."""
    shown = printable(text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def read_bytes(
    path: Path, *, limit: int = MAX_FILE_BYTES, wanted: str = "", hint: str | None = None
) -> bytes:
    """The content of ``path``, a file or a pipe; ``wanted`` is what it was expected to be, for the error.

    Raises:
        UsageError: unreadable, larger than ``limit``, or a pipe that nobody writes to.
    """
    shown = one_line(str(path))
    parts, size = [], 0
    try:
        # A pipe must neither be waited for without end nor taken for empty while its writer is at work.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            while chunk := _next(handle, shown, hint):
                parts.append(chunk)
                size += len(chunk)
                if size > limit:  # /dev/zero has no end
                    much = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
                    what = f": not {wanted}" if wanted else ""
                    raise UsageError(f"{shown} is larger than {much}{what}", hint=hint)
        finally:
            os.close(handle)
    except OSError as error:
        raise UsageError(f"cannot read {shown}: {error.strerror or error}", hint=hint) from None
    except ValueError:  # a name from a file can hold what no name of a file does
        raise UsageError(f"cannot read {shown}: no file has such a name", hint=hint) from None
    return b"".join(parts)


def _next(handle: int, shown: str, hint: str | None) -> bytes:
    """What comes next, nothing at the end."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        ready = bool(select.select([handle], [], [], WRITER_S)[0])
        try:
            data = os.read(handle, CHUNK_BYTES)
        except BlockingIOError:
            continue  # somebody holds it open and has not written yet
        if not ready and not data:
            raise UsageError(f"cannot read {shown}: it is a pipe that nobody writes to", hint=hint)
        return data
    raise UsageError(f"cannot read {shown}: nothing came from it for {PATIENCE_S:g} s", hint=hint)


def decode_text(content: bytes, *, source: str, wanted: str = "text", hint: str | None = None) -> str:
    """``content`` as text: UTF-8, or what its byte order mark says, as PowerShell writes it.

    Raises:
        UsageError: not text; the message says what it is instead, where that can be told.
    """
    if (
        content.startswith(b"PK\x03\x04") and content[30:44] == b"recording.json"
    ):  # the name of its first file
        raise UsageError(
            f"{source} is a recording, not {wanted}",
            hint=f"netsim show {source} shows it, netsim run --recording {source} plays it",
        )
    for magic, kind in _MAGIC.items():
        if content.startswith(magic):
            raise UsageError(f"{source} is not {wanted}: it is {kind}", hint=hint)
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        coding = encoding.removesuffix("-sig").upper()
        raise UsageError(
            f"{source} is not {wanted} in {coding}: byte {error.start} is none", hint=hint
        ) from None
    if "\0" in text:
        raise UsageError(f"{source} is not {wanted}: it holds zero bytes", hint=hint)
    return text


def read_text(path: Path, *, wanted: str = "", hint: str | None = None) -> str:
    """:func:`read_bytes` and :func:`decode_text`."""
    return decode_text(read_bytes(path, wanted=wanted, hint=hint), source=one_line(str(path)), hint=hint)


def parse_json(text: str, *, source: str, hint: str | None = None) -> Any:
    """The JSON in ``text``, of ``source``. NaN and Infinity, which JSON has not, and keys that stand twice, of which
    nobody knows which one is meant, are refused.

    Raises:
        UsageError: empty, a web page, or not JSON.
    """
    try:
        return json.loads(text, parse_constant=no_number, parse_float=finite, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{source} is not JSON: {one_line(_instead(text) or str(error))}", hint=hint
        ) from None


def parse_yaml(text: str, *, source: str, hint: str | None = None) -> Any:
    """The YAML in ``text``, of ``source``; keys that stand twice are refused.

    Raises:
        UsageError: a web page, or not YAML.
    """
    problem = _instead(text) if text.strip() else None  # a web page parses, as one long word
    if problem is None and _too_deep(text):  # the parser would take seconds to give up
        problem = "it is nested too deeply"
    if problem is not None:
        raise UsageError(f"{source} is not YAML: {problem}", hint=hint)
    try:
        return yaml.load(text, _Loader)
    except _YAML_FAULTS as error:
        problem = str(getattr(error, "problem", None) or error or type(error).__name__).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}," if mark else ""
        if isinstance(error, RecursionError):
            problem = "it is nested too deeply"
        raise UsageError(f"{source}{line} is not YAML: {one_line(problem)}", hint=hint) from None


def _too_deep(text: str) -> bool:
    brackets = itertools.accumulate(1 if each in "[{" else -1 for each in re.findall(r"[\[\]{}]", text))
    return max(brackets, default=0) > MAX_DEPTH or "- " * MAX_DEPTH in text or "? " * MAX_DEPTH in text


# What the parser lets out of its depths for a date of month 13, or a word that is tagged as a number.
_YAML_FAULTS = (
    yaml.YAMLError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    OverflowError,
    RecursionError,
)


class _Loader(yaml.SafeLoader):
    """A safe loader in which a mapping has each key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {one_line(key.value, 40)!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _without_sixties(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """A number; but what has colons stays as it was written: YAML 1.1 counts ``1:30`` in sixties, as 90, and
    ``10:20`` is two rates here."""
    if ":" in node.value:
        return node.value
    whole = node.tag == "tag:yaml.org,2002:int"
    return loader.construct_yaml_int(node) if whole else loader.construct_yaml_float(node)


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _without_sixties)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {one_line(twice, 40)!r} stands twice")
    return found


def _instead(text: str) -> str | None:
    """What ``text`` is, if that says more than where a parser gave up."""
    if not text.strip():
        return "it is empty"
    return "it is a web page" if is_web_page(text) else None


def is_web_page(text: str) -> bool:
    """Whether somebody saved a page instead of the file that it shows."""
    return text[:1000].lstrip().lower().startswith(("<!doctype html", "<html", "<?xml"))


def no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def finite(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"{word[:20]} is too large")
    return value


def positive(value: Any) -> float | None:
    """``value`` as a number if it is one that is more than zero and finite, else None."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 < value <= sys.float_info.max else None
