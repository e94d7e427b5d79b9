"""Links that change: a timeline in YAML, or a packet trace as mahimahi records them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from netsim_ddp.errors import UsageError
from netsim_ddp.link.spec import SEGMENT_WIRE
from netsim_ddp.units import parse_directions, parse_duration

TRACE_BIN_S = 0.5
MAX_CHANGES = 10_000
MAX_TRACE_BYTES = 64 * 1024 * 1024
_EXAMPLE = "write a list of entries such as '- {at: 10s, bandwidth: 20mbps}', or 'up:down' for two directions"

Changes = list[dict[str, float]]


def read_text(path: Path, what: str) -> str:
    """The text of a file that the user named; every failure is one line about it."""
    try:
        if path.stat().st_size > MAX_TRACE_BYTES:
            raise UsageError(f"{what} {path} is larger than {MAX_TRACE_BYTES >> 20} MiB", hint="cut it")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {what} {path}: {error.strerror}", hint="name a file") from None
    except UnicodeDecodeError:
        raise UsageError(f"{what} {path} is not text in UTF-8", hint="name a text file") from None


def read_yaml(path: Path, what: str) -> Any:
    try:
        return yaml.safe_load(read_text(path, what))
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}," if mark else ""
        raise UsageError(f"{what} {path}{line} is not YAML", hint=_EXAMPLE) from None


def timeline(value: Any, *, what: str) -> tuple[Changes, float | None]:
    """The changes of a timeline, and after how long it begins anew (None: it stays at the last).

    Args:
        value: a list of ``{at, bandwidth}``, a mapping ``{changes: [...], repeat: 60s}``, or the file of either.

    Raises:
        UsageError: unreadable, an entry of another form, times that do not ascend.
    """
    if isinstance(value, str | Path):
        what, value = f"{what} {value}", read_yaml(Path(value), what)
    period = None
    if isinstance(value, dict):
        if unknown := sorted(map(str, value.keys() - {"changes", "repeat"})):
            raise UsageError(f"{what}: unknown key {unknown[0]!r}", hint="it takes changes and repeat")
        if "repeat" in value:
            period = parse_duration(str(value["repeat"]), what=f"{what}: repeat")
        value = value.get("changes")
    if not isinstance(value, list) or not value:
        raise UsageError(f"{what} holds no changes", hint=_EXAMPLE)
    changes = [_change(entry, f"{what}, entry {number}") for number, entry in enumerate(value, 1)]
    _check(changes, period, what)
    return changes, period


def _change(entry: Any, what: str) -> dict[str, float]:
    if not isinstance(entry, dict) or set(entry) != {"at", "bandwidth"}:
        raise UsageError(f"{what} is not {{at, bandwidth}}", hint=_EXAMPLE)
    up, down = parse_directions(str(entry["bandwidth"]), what=f"{what}: bandwidth")
    return {"at_s": parse_duration(str(entry["at"]), what=f"{what}: at"), "up_bps": up, "down_bps": down}


def _check(changes: Changes, period: float | None, what: str) -> None:
    times = [change["at_s"] for change in changes]
    for number, (before, after) in enumerate(itertools.pairwise(times), 2):
        if after <= before:
            raise UsageError(
                f"{what}, entry {number}: {after:g}s does not come after {before:g}s",
                hint="put the earlier first",
            )
    if period is not None and period <= times[-1]:
        raise UsageError(f"{what} repeats after {period:g}s, before its last change", hint="repeat later")
    if len(changes) > MAX_CHANGES:
        raise UsageError(f"{what} has {len(changes)} changes", hint=f"{MAX_CHANGES} at most")


def trace(value: Any, *, what: str) -> tuple[Changes, float | None]:
    """The rates of a mahimahi trace: each line is the millisecond in which the link can carry one packet.

    They are counted in stretches of half a second; the trace begins anew when it ends, as mahimahi's does.

    Args:
        value: one file for both directions, or ``UP:DOWN``.

    Raises:
        UsageError: unreadable, a line that is no number, times that go back, a trace shorter than a stretch.
    """
    up, colon, down = str(value).partition(":")
    files = [_deliveries(Path(name), what) for name in ([up, down] if colon else [up])]
    period = min(times[-1] for times in files) / 1e3
    count = int(period / TRACE_BIN_S)
    if count < 1:
        raise UsageError(f"{what} {value} lasts {period:g}s", hint=f"a trace lasts {TRACE_BIN_S:g}s at least")
    if count > MAX_CHANGES:
        raise UsageError(f"{what} {value} lasts {period:g}s", hint=f"{MAX_CHANGES * TRACE_BIN_S:g}s at most")
    rates = [_rates(times, count) for times in files]
    changes = [
        {"at_s": i * TRACE_BIN_S, "up_bps": rates[0][i], "down_bps": rates[-1][i]} for i in range(count)
    ]
    return changes, count * TRACE_BIN_S


def _deliveries(path: Path, what: str) -> list[int]:
    times: list[int] = []
    for number, line in enumerate(read_text(path, what).splitlines(), 1):
        text = line.strip()
        if not text:
            continue
        if not text.isascii() or not text.isdecimal() or len(text) > 12:
            raise UsageError(
                f"{what} {path}, line {number}: {text[:20]!r} is not a time in whole milliseconds",
                hint="a mahimahi trace has one number on a line",
            )
        if times and int(text) < times[-1]:
            raise UsageError(
                f"{what} {path}, line {number}: {text} comes after {times[-1]}", hint="times must not go back"
            )
        times.append(int(text))
    if not times:
        raise UsageError(f"{what} {path} is empty", hint="a mahimahi trace has one number on a line")
    return times


def _rates(times: Sequence[int], count: int) -> list[int]:
    """Bits per second in each stretch. A stretch without any packet has the rate of one: no link shaper can stop."""
    packets = [0] * count
    for time in times:
        # A packet due at the end of a stretch belongs to it: the last line is the trace's length.
        index = max(0, -(-time // round(TRACE_BIN_S * 1e3)) - 1)
        if index < count:
            packets[index] += 1
    return [round(max(1, each) * SEGMENT_WIRE * 8 / TRACE_BIN_S) for each in packets]
