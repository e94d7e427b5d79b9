"""Links that change: a timeline in YAML, or a packet trace as mahimahi records them."""

from __future__ import annotations

import itertools
import operator
import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from netsim_ddp import reading
from netsim_ddp.errors import UsageError
from netsim_ddp.link.spec import SEGMENT_WIRE
from netsim_ddp.units import parse_directions, parse_duration

TRACE_BIN_S = 0.5
MAX_CHANGES = 10_000
_EXAMPLE = "write a list of entries such as '- {at: 10s, bandwidth: 20mbps}', or 'up:down' for two directions"

Changes = list[dict[str, float]]


def read_text(path: Path, what: str) -> str:
    """The text of a file that the user named as ``what``; every failure is one line about it."""
    try:
        return reading.read_text(path, hint="name a text file")
    except UsageError as error:
        raise UsageError(f"{what}: {error.message}", hint=error.hint) from None


def read_yaml(path: Path, what: str, hint: str) -> Any:
    """What a file of YAML that the user named as ``what`` holds; ``hint`` says how such a file is written."""
    return reading.parse_yaml(read_text(path, what), source=f"{what} {path}", hint=hint)


def timeline(value: Any, *, what: str) -> tuple[Changes, float | None]:
    """The changes of a timeline, and after how long it begins anew (None: it stays at the last).

    Args:
        value: a list of ``{at, bandwidth}``, a mapping ``{changes: [...], repeat: 60s}``, or the file of either.

    Raises:
        UsageError: unreadable, an entry of another form, times that do not ascend.
    """
    if isinstance(value, str | Path):
        what, value = f"{what} {value}", read_yaml(Path(value), what, _EXAMPLE)
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
    return changes, period


def _change(entry: Any, what: str) -> dict[str, float]:
    if not isinstance(entry, dict) or set(entry) != {"at", "bandwidth"}:
        raise UsageError(f"{what} is not {{at, bandwidth}}", hint=_EXAMPLE)
    up, down = parse_directions(str(entry["bandwidth"]), what=f"{what}: bandwidth")
    return {"at_s": parse_duration(str(entry["at"]), what=f"{what}: at"), "up_bps": up, "down_bps": down}


def trace(value: Any, *, what: str) -> tuple[Changes, float | None]:
    """The rates of a mahimahi trace: each line is the millisecond in which the link can carry one packet.

    They are counted in stretches of about half a second. A trace begins anew when it ends, as mahimahi's does: one
    that is shorter than a stretch is a link of one rate, and the shorter of two is repeated beside the longer.

    Args:
        value: one file for both directions, or ``UP:DOWN``.

    Raises:
        UsageError: unreadable, a line that is no number, times that go back, a trace that ends at 0.
    """
    files = [_deliveries(Path(name), what) for name in _names(str(value), what)]
    period = max(times[-1] for times in files)
    count = max(1, round(period / 1e3 / TRACE_BIN_S))
    if count > MAX_CHANGES:
        raise UsageError(
            f"{what} {value} lasts {period / 1e3:g}s", hint=f"{MAX_CHANGES * TRACE_BIN_S:g}s at most: cut it"
        )
    ends = [period * i // count for i in range(count + 1)]
    rates = [_rates(times, ends) for times in files]
    changes = [{"at_s": ends[i] / 1e3, "up_bps": rates[0][i], "down_bps": rates[-1][i]} for i in range(count)]
    return changes, period / 1e3 if count > 1 else None


def _names(value: str, what: str) -> list[str]:
    """The file of both directions, or one for each. A name may hold colons, as that of a time of day does."""
    cuts = [at for at, char in enumerate(value) if char == ":"]
    if os.path.exists(value) or not cuts:
        return [value]
    pairs = [(value[:at], value[at + 1 :]) for at in cuts]
    there = [pair for pair in pairs if all(name and os.path.exists(name) for name in pair)]
    if len(there) == 1:
        return list(there[0])
    if there:
        raise UsageError(f"{what} {value} can be cut at several colons", hint="rename the files")
    if len(pairs) == 1 and all(pairs[0]):
        missing = next(name for name in pairs[0] if not os.path.exists(name))
        raise UsageError(
            f"cannot read {what} {missing}: no such file, nor one named {value}", hint="name a file"
        )
    raise UsageError(f"cannot read {what} {value}: no such file", hint="name one file, or UP:DOWN for two")


def _deliveries(path: Path, what: str) -> list[int]:
    times: list[int] = []
    for number, text in filter(
        operator.itemgetter(1), enumerate(map(str.strip, read_text(path, what).splitlines()), 1)
    ):
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
    if not times or times[-1] == 0:
        raise UsageError(
            f"{what} {path} {'lasts 0s' if times else 'is empty'}",
            hint="a mahimahi trace has one number on a line",
        )
    return times


def _rates(times: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Bits per second between each two of ``ends``, milliseconds, of a trace that begins anew whenever it ends. A
    stretch without any packet has the rate of one: no link shaper can stop."""

    def packets(until: int) -> int:
        laps, rest = divmod(until, times[-1])
        return laps * len(times) + bisect_right(times, rest)

    return [
        round(max(1, packets(end) - packets(begin)) * SEGMENT_WIRE * 8 * 1e3 / (end - begin))
        for begin, end in itertools.pairwise(ends)
    ]
