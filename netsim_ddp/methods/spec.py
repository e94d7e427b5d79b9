"""A method and its options as the command line, a file and Python give them: ``topk,ratio=0.01,values=fp16``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from netsim_ddp.errors import UsageError
from netsim_ddp.methods import METHODS, entry_of
from netsim_ddp.names import is_reference, split_options, suggest, way_in
from netsim_ddp.options import Options, as_written, written


class MethodSpec(BaseModel):
    """One method and its parameters, as ``--method NAME[,key=value...]`` writes them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    params: dict[str, Any] = Field(default_factory=dict)

    @property
    def id(self) -> str:
        """``topk,ratio=0.01``: unique within a scenario, stable between runs."""
        return ",".join(
            [self.name, *(f"{key}={written(value)}" for key, value in sorted(self.params.items()))]
        )


def parse_method(text: str, also: Options | None = None) -> MethodSpec:
    """``"topk,ratio=0.01"`` -> its spec.

    Args:
        also: options that every method takes here beside its own.

    Raises:
        UsageError: unknown method or key, or a bad value.
    """
    name, params = split_options("method", text)
    return _method(name, params, also or {})


def _method(name: str, params: Mapping[str, Any], also: Options) -> MethodSpec:
    if is_reference(name):
        params = {key: value if key in also else as_written(value) for key, value in params.items()}
    return MethodSpec(name=name, params=typed_params(name, params, also))


def typed_params(name: str, params: Mapping[str, Any], also: Options | None = None) -> dict[str, Any]:
    """The options ``params`` of the method ``name``, each of its own type; those left out stay out.

    What the command line, a file and Python hand over all comes through here. A user's own method,
    ``my_module:factory``, takes any options, as they are.

    Args:
        also: options that every method takes here beside its own.

    Raises:
        UsageError: unknown method or option, a bad value, or options that exclude each other. The message names the
            method and the option, and says what to write instead.
    """
    if not isinstance(name, str):
        raise UsageError(f"method {name!r} is not a name", hint=f"choose from {', '.join(METHODS)}")
    if not isinstance(params, Mapping):
        raise UsageError(
            f"method {name!r}: the options {params!r} are not a dict",
            hint='write for example {"ratio": 0.01}',
        )
    entry = entry_of(name)
    options = {**entry.options, **(also or {})}
    if is_reference(name):
        return {
            key: options[key].typed(key, value) if key in options else value for key, value in params.items()
        }
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}", hint=_known_methods(name))
    parsed: dict[str, Any] = {}
    for key, value in params.items():
        if key not in options:
            raise UsageError(f"method {name!r} has no option {key!r}", hint=_known_options(str(key), options))
        parsed[key] = _named(name, options[key].typed, key, value)
    _named(name, entry.check, parsed)
    return parsed


def _named(name: str, check: Callable[..., Any], *arguments: Any) -> Any:
    """What ``check`` returns; its complaint names the method."""
    try:
        return check(*arguments)
    except UsageError as error:
        raise UsageError(f"method {name!r}: {error.message}", hint=error.hint) from None


def _known_methods(name: str) -> str:
    if name.partition(",")[0] in METHODS:
        return f"name {name.partition(',')[0]!r}, and give its options beside it"
    return f"{suggest(name, METHODS)}, {way_in('factory')}"


def _known_options(key: str, options: Options) -> str:
    others = [entry.name for entry in METHODS.values() if key in entry.options]
    return suggest(key, options) + (f"; {key} is an option of {', '.join(others)}" if others else "")


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
    return _method(item["name"], {str(key): value for key, value in params.items()}, also or {})
