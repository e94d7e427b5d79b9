"""Rates, sizes, durations and ratios: text in, SI numbers out, and back.

Rates are bits per second. ``1gbps``, ``1gbit`` and ``1Gbit/s`` are the same 10^9 bit/s in any case; bytes
are accepted only where nobody can mistake them (``125MB/s``). ``1GBps`` and bare numbers are refused:
half of the people who write them mean the other thing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from netsim_ddp.errors import UsageError

_PREFIX = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_NUMBER = r"(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)"
_RATE = re.compile(_NUMBER + r"\s*(?P<unit>(?P<prefix>[kmgt]?)(?:bps|bits?|bits?/s|b/s)|)\s*", re.IGNORECASE)
_DURATION = re.compile(_NUMBER + r"\s*(?P<unit>us|µs|ms|s|min|m|h)\s*", re.IGNORECASE)
_SIZE = re.compile(_NUMBER + r"\s*(?P<prefix>[kmgt]?)(?P<binary>i?)(?P<unit>b)\s*", re.IGNORECASE)
_DURATION_UNITS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_rate(text: str, *, what: str = "bandwidth") -> int:
    """``"1gbps"`` -> ``1_000_000_000`` bit/s.

    Raises:
        UsageError: not a rate, not positive, a bare number, or ``GBps``, which is ambiguous.
    """
    shown = f"{what} {text!r}"
    example = "write for example 100mbps, 1gbps or 125MB/s"
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{shown} is not a rate", hint=example)
    value, unit, prefix = float(match["number"]), match["unit"], match["prefix"]
    if unit == "" and value > 0:
        raise UsageError(f"{shown} has no unit", hint=f"write {match['number']}mbps or {match['number']}gbps")
    if unit == "":
        raise UsageError(f"{shown} must be more than zero", hint=example)
    if re.fullmatch(r".?Bps", unit):
        raise UsageError(
            f"{shown} could mean bits or bytes",
            hint=f"write {match['number']}{prefix.lower()}bps for bits "
            f"or {match['number']}{prefix.upper()}B/s for bytes",
        )
    if re.fullmatch(r".?B/s", unit):
        value *= 8
    rate = value * _PREFIX[prefix.lower()]
    if not 1 <= rate <= 1e15:
        problem = "must be more than zero" if rate < 1 else "is more than any link carries"
        raise UsageError(f"{shown} {problem}", hint=example)
    return round(rate)


def parse_directions(text: str, *, what: str = "bandwidth") -> tuple[int, int]:
    """``"100mbit:20mbit"`` -> (up, down) in bit/s; one rate is both."""
    up, colon, down = text.partition(":")
    if not colon:
        return parse_rate(text, what=what), parse_rate(text, what=what)
    if not up.strip() or not down.strip():
        raise UsageError(f"{what} {text!r} is not UP:DOWN", hint="write for example 100mbps:20mbps")
    return parse_rate(up, what=f"{what} up"), parse_rate(down, what=f"{what} down")


def parse_duration(text: str, *, what: str = "duration") -> float:
    """``"50ms"`` -> ``0.05`` seconds. Zero is allowed, a bare number other than 0 is not."""
    text = text.strip()
    match = _DURATION.fullmatch(text)
    if match is None:
        if text == "0":
            return 0.0
        number = re.fullmatch(_NUMBER, text, re.IGNORECASE)
        raise UsageError(
            f"{what} {text!r} is not a duration",
            hint=f"write {text}ms or {text}s" if number else "write for example 50ms, 1.5s or 10min",
        )
    seconds = float(match["number"]) * _DURATION_UNITS[match["unit"].lower()]
    if not math.isfinite(seconds) or seconds < 0:
        raise UsageError(f"{what} {text!r} must not be negative", hint="write for example 50ms")
    return seconds


def parse_size(text: str, *, what: str = "size") -> int:
    """``"4MB"`` -> ``4_000_000`` bytes, ``"64KiB"`` -> ``65_536`` bytes."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match["unit"] != "B":
        raise UsageError(f"{what} {text!r} is not a size", hint="write for example 4MB, 64KiB or 100kB")
    base = 1024 if match["binary"] else 1000
    size = float(match["number"]) * float(base ** "_kmgt".index(match["prefix"].lower() or "_"))
    if not math.isfinite(size) or size < 0:
        raise UsageError(f"{what} {text!r} must not be negative", hint="write for example 4MB")
    return round(size)


def parse_ratio(text: str | float, *, what: str = "ratio") -> float:
    """The kept fraction k/N in (0, 1]: ``"0.01"``, ``"1%"`` or a number -> ``0.01``."""
    raw = str(text).strip()
    percent = raw.endswith("%")
    try:
        value = float(raw[:-1] if percent else raw)
    except ValueError:
        times = re.fullmatch(_NUMBER + "x", raw, re.IGNORECASE)
        hint = "write the kept fraction, for example 0.01 or 1%"
        if times and float(times["number"]) > 1:
            hint = f"write the kept fraction: {times['number']}x less is {1 / float(times['number']):.3g}"
        raise UsageError(f"{what} {raw!r} is not a fraction", hint=hint) from None
    value = value / 100 if percent else value
    if not 0 < value <= 1:
        hint = "write for example 0.01 or 1%"
        if 1 < value <= 100 and not percent:
            hint = f"for {value:g} percent write {value:g}%"
        raise UsageError(f"{what} {raw!r} must be above 0 and at most 1", hint=hint)
    return value


def counted(number: int | Sequence[object], what: str, many: str = "") -> str:
    """``1 step``, ``2 steps``, and of several counts ``1, 2 ranks``; ``many`` is the plural where it takes more than an
    s."""
    numbers = [number] if isinstance(number, int) else list(number)
    return f"{', '.join(map(str, numbers))} {what if numbers == [1] else many or what + 's'}"


def format_rate(bits_per_second: float) -> str:
    """``1e9`` -> ``"1 Gbit/s"``."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if bits_per_second >= scale:
            return f"{bits_per_second / scale:.4g} {prefix}bit/s"
    return f"{bits_per_second:.4g} bit/s"


def format_bytes(count: float) -> str:
    """``187.4e6`` -> ``"187.4 MB"`` (decimal prefixes)."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= scale:
            return f"{count / scale:.4g} {prefix}B"
    return f"{count:.0f} B"


def format_duration(seconds: float) -> str:
    """``0.0123`` -> ``"12.3 ms"``."""
    if seconds >= 120:
        return f"{seconds / 60:.3g} min"
    if seconds >= 1:
        return f"{seconds:.3g} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} us"
