"""Damages a file as the world does: a byte flips, a line is lost, a number is none, a key stands twice."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence

WORDS: Sequence[bytes] = (
    b"nan", b"NaN", b"inf", b"Infinity", b"-Infinity", b"-1", b"0", b"-0.0", b"1e400", b"1e-400", b"1e30", b"1e18",
    b"1e-9", b'""', b"null", b"true", b"false", b"[]", b"{}", b"~", b"9" * 400, b"9" * 5000, b"0x10", b"1_000",
    b"1,5", b"3.0.1", b'"1"', b"-", b"#", b"*", b"&a", b"!!bool x", b"2001-99-99", b"=", b"<<", b"1:30",
    b"\xc2\xb5s", b"\xff\xfe", b"\x00", b"\xef\xbb\xbf", b'"\\ud800"', b'"\\u0000"', b"../x", b"/dev/null",
    b"1s", b"5gbps", b"100%", b"-5ms", b"1e99h",
)  # fmt: skip
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_TOKEN = re.compile(rb'"[^"\n]*"|[\w.+-]+')
_PAIR = re.compile(rb'"[^"\n]*"\s*:\s*(?:"[^"\n]*"|-?[\d.]+|true|false|null|\[[^][{}]*\])')


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _excise(data: bytearray, rng: random.Random) -> None:
    begin = rng.randrange(len(data))
    del data[begin : begin + rng.choice((1, 5, 40, 400))]


def _lines(data: bytearray, rng: random.Random) -> None:
    lines = bytes(data).split(b"\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    what = rng.randrange(4)
    if what == 0:
        lines[one], lines[other] = lines[other], lines[one]
    elif what == 1:
        lines.insert(one, lines[other])
    elif what == 2:
        del lines[one]
    else:
        lines[one] += lines[other]
    data[:] = b"\n".join(lines)


def _replace(pattern: re.Pattern[bytes]) -> Callable[[bytearray, random.Random], None]:
    def change(data: bytearray, rng: random.Random) -> None:
        if found := list(pattern.finditer(bytes(data))):
            match = rng.choice(found)
            others = (*WORDS, rng.choice(found)[0])
            data[match.start() : match.end()] = rng.choice(others)

    return change


def _repeat_key(data: bytearray, rng: random.Random) -> None:
    if found := list(_PAIR.finditer(bytes(data))):
        match = rng.choice(found)
        key = match[0].partition(b":")[0]
        data[match.end() : match.end()] = b", " + key + b": " + rng.choice(WORDS)


def _nest(data: bytearray, rng: random.Random) -> None:
    depth = rng.choice((3, 100, 1200))
    if found := list(_NUMBER.finditer(bytes(data))):
        match = rng.choice(found)
        opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"- ", b"")))
        data[match.start() : match.end()] = opening * depth + match[0] + closing * depth


def _values(data: bytearray, rng: random.Random) -> None:
    """Of JSON: some value, large or small, becomes another of the file's."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return _excise(data, rng)
    places: list[tuple[dict[str, object] | list[object], object]] = []
    stack: list[object] = [document]
    while stack:
        here = stack.pop()
        if isinstance(here, dict):
            places += [(here, key) for key in here]
            stack += here.values()
        elif isinstance(here, list):
            places += [(here, at) for at in range(len(here))]
            stack += here
    if places:
        (holder, key), (source, other) = rng.choice(places), rng.choice(places)
        value = json.loads(json.dumps(source[other]))  # type: ignore[index, call-overload]
        holder[key] = rng.choice((value, [], {}, None, -1, 0, 10**20, "", value))  # type: ignore[index, call-overload]
    data[:] = json.dumps(document).encode()


_CHANGES = (
    _flip,
    _cut,
    _excise,
    _lines,
    _replace(_NUMBER),
    _replace(_NUMBER),
    _replace(_TOKEN),
    _repeat_key,
    _nest,
    _values,
)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """``content`` with one to three faults."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if data:
            rng.choice(_CHANGES)(data, rng)
    return bytes(data)
