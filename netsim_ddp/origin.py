"""Where a scenario's values came from, so that an error names each as its user wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError, ValidationInfo

from netsim_ddp.errors import UsageError
from netsim_ddp.reading import one_line

_PROBLEMS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "finite_number": "must be a number, neither infinite nor NaN",
    "int_parsing": "is not a whole number",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "int_parsing_size": "is too large",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "string_type": "is not a name",
    "literal_error": "is not known here",
}


@dataclass(frozen=True)
class Origin:
    """The values as they were given, which of them were flags or came with ``--set``, and the file of the others.

    ``quantities`` maps the keys that people write to those that they resolve to (``bandwidth`` to
    ``bandwidth_bps``); ``examples`` holds a value that would do for each key.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()
    source: str | None = None
    quantities: Mapping[str, str] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)
    sets: frozenset[str] = frozenset()

    @classmethod
    def of(cls, info: ValidationInfo) -> Origin:
        return info.context if isinstance(info.context, Origin) else cls()

    def label(self, key: str) -> str:
        """``--batch-size`` for a flag, ``batch_size`` for a file's key."""
        return "--" + key.replace("_", "-") if key in self.flags else key

    def example(self, key: str) -> str | None:
        if key not in self.examples:
            return None
        if key in self.sets:
            return f"write for example --set {key}={self.examples[key]}"
        return f"write for example {self.label(key)}{' ' if key in self.flags else ': '}{self.examples[key]}"

    def prefix(self, key: str) -> str:
        """``file.yaml: `` for what the file says, nothing for a flag."""
        if key in self.sets:
            return "--set: "
        return "" if self.source is None or key in self.flags else f"{self.source}: "

    @contextmanager
    def naming(self, key: str) -> Iterator[None]:
        """Errors inside are about ``key``."""
        try:
            yield
        except UsageError as error:
            raise UsageError(self.prefix(key) + error.message, hint=error.hint) from None

    def explain(self, error: ValidationError) -> UsageError:
        """pydantic's first complaint, as a person would say it."""
        first = error.errors()[0]
        if not first["loc"]:  # about several values at once
            return UsageError(f"{self.prefix('')}{one_line(first['msg'])}")
        key = str(first["loc"][0])
        key = next((name for name, to in self.quantities.items() if to == key and name in self.given), key)
        value, limits = self.given.get(key, first["input"]), first.get("ctx", {})
        problem = _PROBLEMS.get(first["type"], first["msg"].lower())
        tidy = {
            name: f"{limit:.15g}" if isinstance(limit, float) else limit for name, limit in limits.items()
        }
        problem = problem.format(**tidy)
        choices = str(limits.get("expected", "")).replace("'", "")
        hint = f"choose from {choices}" if choices else self.example(key)
        return UsageError(f"{self.prefix(key)}{self.label(key)} {_shown(value)} {problem}", hint=hint)


def _shown(value: Any) -> str:
    """A number as it is, also when it is a flag's text; everything else in quotes."""
    try:
        float(value)
    except (TypeError, ValueError):
        return one_line(repr(value))
    except OverflowError:
        return "so large a number"
    return one_line(str(value))
