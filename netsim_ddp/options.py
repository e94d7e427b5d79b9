"""Options as a user writes them, on the command line, in a file or in Python: what each takes, and what it means.

The value that comes out has the option's type; what is none is refused in one sentence that holds the choices. Words,
numbers and numpy's or torch's scalars are the same here, so that every way in gives the same answer.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from netsim_ddp.errors import UsageError
from netsim_ddp.units import parse_ratio

SHOWN = 60
"""Characters of a wrong value that a message repeats."""


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        default: what holds where it is left out.
        takes: in words, to follow "is not": ``a whole number from 0 on``.
        example: a value as it is written.
        read: a value's typed form.
        choices: where only these words may stand.

    ``read`` raises ValueError for what is no such value.
    """

    meaning: str
    default: Any
    takes: str
    example: str
    read: Callable[[Any], Any]
    choices: tuple[str, ...] = ()

    def typed(self, name: str, value: Any) -> Any:
        """``value`` of the option ``name``.

        Raises:
            UsageError: with what it takes.
        """
        item = getattr(value, "item", None)
        if callable(item) and getattr(value, "ndim", None) == 0:  # a scalar of numpy's or torch's
            value = item()
        if self.default is None and (value is None or str(value).lower() == "none"):
            return None
        try:
            return self.read(value)
        except UsageError:
            raise
        except (ValueError, OverflowError):
            close = difflib.get_close_matches(str(value).lower(), self.choices, n=1)
            raise UsageError(
                f"{name}={_shown(value)} is not {self.takes}",
                hint=f"did you mean {name}={close[0]}?"
                if close
                else f"write for example {name}={self.example}",
            ) from None


Options = Mapping[str, Option]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | numbers.Real):
        raise ValueError(value)
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = _real(value)
    if not number.is_integer():
        raise ValueError(value)
    return int(number)


def written(value: Any) -> str:
    """An option's value as the command line has it: ``on``, ``0.01``, ``none``."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def as_written(value: Any) -> Any:
    """An option of which nothing says what it takes: a number or a switch if it reads like one, else text."""
    for kind in (int, float, lambda text: {"on": True, "off": False, "true": True, "false": False}[text]):
        if isinstance(value, str):
            with suppress(ValueError, KeyError):
                value = kind(value)
    return value


def _within(convert: Callable[[Any], float], holds: Callable[[float], bool]) -> Callable[[Any], float]:
    """Reads a value by ``convert``, and refuses one of which ``holds`` is not true."""

    def read(value: Any) -> float:
        if not holds(found := convert(value)):
            raise ValueError(value)
        return found

    return read


_SWITCH = {"on": True, "true": True, "yes": True, "1": True}
_SWITCH |= {"off": False, "false": False, "no": False, "0": False}


def switch(default: bool, meaning: str) -> Option:
    """``on`` or ``off``, True or False."""

    def read(value: Any) -> bool:
        if isinstance(value, bool | int | str) and str(value).lower() in _SWITCH:
            return _SWITCH[str(value).lower()]
        raise ValueError(value)

    return Option(meaning, default, "on or off", "on", read)


def one_of(*choices: str, meaning: str) -> Option:
    """One of some words; the first one by default."""

    def read(value: Any) -> str:
        if str(value) in ("True", "False") and {"on", "off"} <= set(choices):  # as Python and YAML write them
            return "on" if str(value) == "True" else "off"
        if not isinstance(value, str) or value not in choices:
            raise ValueError(value)
        return value

    return Option(meaning, choices[0], f"one of {', '.join(choices)}", choices[0], read, choices)


def whole(
    default: int, meaning: str, *, least: int = 0, most: int | None = None, example: int = 1000
) -> Option:
    """A whole number from ``least`` to ``most``."""
    span = f"from {least} on" if most is None else f"from {least} to {most}"
    read = _within(_whole, lambda found: least <= found <= (math.inf if most is None else most))
    return Option(meaning, default, f"a whole number {span}", str(example), read)


def above_zero(default: float | None, meaning: str, *, example: str = "2") -> Option:
    """A finite number above 0."""
    return Option(
        meaning, default, "a number above 0", example, _within(_real, lambda found: 0 < found < math.inf)
    )


def number(default: float, meaning: str, *, least: float, below: float, example: str) -> Option:
    """A number from ``least`` to below ``below``."""
    takes = f"a number from {least:g} to below {below:g}"
    return Option(meaning, default, takes, example, _within(_real, lambda found: least <= found < below))


def fraction(default: float, meaning: str) -> Option:
    """A fraction in (0, 1], also as a percentage: ``0.01``, ``1%``."""
    return Option(meaning, default, "a fraction above 0 and at most 1", "0.01", parse_ratio)
