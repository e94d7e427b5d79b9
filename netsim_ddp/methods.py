"""Methods as the command line and a file name them: ``topk,ratio=0.01,values=fp16``. What they do is in
:mod:`netsim_ddp.communication`; this module imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from netsim_ddp.errors import UsageError
from netsim_ddp.names import is_reference, suggest
from netsim_ddp.units import parse_ratio

MAX_RANK = 1024  # of an approximation; far above where it pays


def _switch(text: str) -> bool:
    words = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False}
    try:
        return words[str(text).lower()]
    except KeyError:
        raise UsageError(f"{text!r} is not a switch", hint="write on or off") from None


def _one_of(*names: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in names:
            raise UsageError(f"{text!r} is not known here", hint=f"choose from {', '.join(names)}")
        return text

    return check


def _count(text: str) -> int:
    if not (str(text).isdecimal() and 1 <= int(text) <= MAX_RANK):
        raise UsageError(f"{text!r} is not a whole number from 1 to {MAX_RANK}", hint="write for example 2")
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(str(text))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"{text!r} is not a number above 0", hint="write for example 2")
    return value


def whole(text: str) -> int:
    """A whole number from 0 on."""
    if not str(text).isdecimal():
        raise UsageError(f"{text!r} is not a whole number", hint="write for example 1000")
    return int(text)


def _number(least: float, limit: float, example: str) -> Callable[[str], float]:
    def check(text: str) -> float:
        with suppress(ValueError):
            if least <= (number := float(text)) < limit:
                return number
        raise UsageError(
            f"{text!r} is not a number from {least:g} to below {limit:g}", hint=f"write for example {example}"
        )

    return check


_SPARSE: Mapping[str, Callable[[Any], Any]] = {
    "ratio": parse_ratio,
    "feedback": _switch,
    "overlap": _switch,
    "selector": _one_of("exact", "sampled", "fitted", "random", "block"),
    "scope": _one_of("parameter", "bucket", "model"),
    "dense_below": whole,
    "dense_norms": _switch,
    "warmup_steps": whole,
    "adaptive": _switch,
    "nonfinite": _one_of("raise", "skip"),
}
_CORRECTED: Mapping[str, Callable[[Any], Any]] = {
    "momentum": _number(0, 1, "0.9"),
    "clip": positive,
    "masking": _one_of("auto", "on", "off"),
}
_CODED: Mapping[str, Callable[[Any], Any]] = {
    "values": _one_of("fp32", "fp16", "bf16", "int8", "int8-stochastic"),
    "indices": _one_of("packed", "int32", "int64"),
}
METHODS: Mapping[str, Mapping[str, Callable[[Any], Any]]] = {
    "dense": {"overlap": _switch},
    "fp16": {"overlap": _switch},
    "bf16": {"overlap": _switch},
    "powersgd": {"rank": _count, "min_compression": positive, "feedback": _switch, "overlap": _switch},
    "topk": {
        **_SPARSE,
        **_CORRECTED,
        **_CODED,
        "keep": _switch,
        "collective": _one_of("auto", "split", "allgather"),
    },
    "topk-allgather": {**_SPARSE, **_CORRECTED, **_CODED},
    "topk-dense": _SPARSE,
}
"""Method names and their options; ``netsim_ddp.communication`` holds their implementations."""
WITH_CODEC = tuple(name for name, options in METHODS.items() if "indices" in options)
"""Those whose messages are the codec's."""


def takes(name: str, option: str) -> bool:
    """Whether the method has ``option``; of a user's own only ``overlap`` is known, which netsim itself sees to."""
    return option == "overlap" if is_reference(name) else option in METHODS[name]


def _as_written(value: Any) -> Any:
    """An option of a user's own method: a number or a switch if it reads like one, else text."""
    for kind in (int, float, lambda text: {"on": True, "off": False, "true": True, "false": False}[text]):
        if isinstance(value, str):
            with suppress(ValueError, KeyError):
                value = kind(value)
    return value


class MethodSpec(BaseModel):
    """One method and its parameters, as ``--method NAME[,key=value...]`` writes them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    params: dict[str, Any] = Field(default_factory=dict)

    @property
    def id(self) -> str:
        """``topk,ratio=0.01``: unique within a scenario, stable between runs."""
        return ",".join(
            [self.name, *(f"{key}={_plain(value)}" for key, value in sorted(self.params.items()))]
        )


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


Options = Mapping[str, Callable[[Any], Any]]


def parse_method(text: str, also: Options | None = None) -> MethodSpec:
    """``"topk,ratio=0.01"`` -> its spec.

    Args:
        also: options that every method takes here beside its own.

    Raises:
        UsageError: unknown method or key, or a bad value.
    """
    name, *pairs = (part.strip() for part in text.split(","))
    params: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"method {text!r}: {pair!r} is not key=value", hint=f"write {name},key=value")
        if key in params:
            raise UsageError(f"method {text!r} gives {key!r} twice", hint=f"write {name},{key}={value}")
        params[key] = value
    return _method(name, params, also or {}, shown=text)


def _method(name: str, params: Mapping[str, Any], also: Options, shown: str) -> MethodSpec:
    if is_reference(name):
        options: Options = {**dict.fromkeys(params, _as_written), "overlap": _switch, **also}
    elif name in METHODS:
        options = {**METHODS[name], **also}
    else:
        own = "; your own is named my_module:factory" if ":" in name else ""
        raise UsageError(f"unknown method {name!r}", hint=suggest(name, METHODS) + own)
    parsed: dict[str, Any] = {}
    for key, value in params.items():
        if key not in options:
            known = suggest(key, options) if options else f"{name} takes no options"
            raise UsageError(f"method {name!r} has no option {key!r}", hint=known)
        try:
            parsed[key] = options[key](value)
        except UsageError as error:
            raise UsageError(f"method {shown!r}: {error.message}", hint=error.hint) from None
    try:
        check_together(parsed)
    except UsageError as error:
        raise UsageError(f"method {shown!r}: {error.message}", hint=error.hint) from None
    return MethodSpec(name=name, params=parsed)


def check_together(params: Mapping[str, Any]) -> None:
    """Refuse options that exclude each other.

    Raises:
        UsageError: with the two that do.
    """
    scope = params.get("scope", "parameter")
    for option in ("dense_below", "dense_norms", "adaptive"):
        if scope != "parameter" and params.get(option):
            raise UsageError(
                f"{option} is about single parameters, scope={scope} selects among all of them at once",
                hint=f"leave {option} or scope out",
            )
    for option in ("momentum", "clip"):
        if params.get(option) and not params.get("feedback", True):
            raise UsageError(
                f"{option} is accumulated in the residual, which feedback=off switches off",
                hint=f"leave {option} or feedback out",
            )
    if scope == "model" and params.get("overlap"):
        raise UsageError(
            "scope=model selects when the last gradient is there, so it cannot overlap the backward pass",
            hint="write scope=bucket, or overlap=off",
        )


def method_of(item: Any, also: Options | None = None) -> MethodSpec:
    """A method as a file holds it: ``topk,ratio=0.01``, or ``{name: topk, params: {ratio: 0.01}}``; ``also`` as
    :func:`parse_method` takes it."""
    if isinstance(item, MethodSpec):
        item = item.model_dump()
    if isinstance(item, str):
        return parse_method(item, also)
    params = item.get("params", {}) if isinstance(item, Mapping) else None
    if (
        not isinstance(params, Mapping)
        or not isinstance(item.get("name"), str)
        or set(item) - {"name", "params"}
    ):
        raise UsageError(f"{item!r} is not a method", hint="write for example topk,ratio=0.01")
    params = {str(key): value for key, value in params.items()}
    return _method(item["name"], params, also or {}, shown=item["name"])
