"""Options as dataclasses: a command takes groups of them, and typer sees the fields as its flags."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from netsim_ddp import log

_VERBOSITY = Annotated[
    int,
    typer.Option(
        "-v",
        "--verbose",
        count=True,
        show_default=False,
        help="Show what netsim does; with -vv also each command that it runs, and each process.",
    ),
]


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as typer takes it: a parameter whose type is a dataclass stands for the flags that are its fields,
    in their order; and every command has ``-v``."""
    parameters = inspect.signature(function, eval_str=True).parameters
    groups: dict[str, Any] = {
        name: each.annotation for name, each in parameters.items() if is_dataclass(each.annotation)
    }

    @functools.wraps(function)
    def with_flags(*, verbosity: int = 0, **given: Any) -> Any:
        log.show(verbosity)
        # All first: a group may have the name of another one's field.
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        return function(**given, **made)

    flags = [*_flags(parameters, groups), _flag("verbosity", 0, _VERBOSITY)]
    with_flags.__signature__ = inspect.Signature(flags)  # type: ignore[attr-defined]
    with_flags.__annotations__ = {each.name: each.annotation for each in flags}
    return with_flags


def _flags(parameters: Any, groups: dict[str, Any]) -> Iterator[inspect.Parameter]:
    for name, each in parameters.items():
        if name not in groups:
            yield each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            continue
        hints = get_type_hints(groups[name], include_extras=True)
        for field in fields(groups[name]):
            yield _flag(field.name, field.default, hints[field.name])


def _flag(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def given(*groups: Any) -> dict[str, Any]:
    """What the user has written of ``groups``, by the keys of a scenario."""
    found = {field.name: getattr(group, field.name) for group in groups for field in fields(group)}
    if "method" in found:
        found["methods"] = found.pop("method")
    return {key: value for key, value in found.items() if value is not None}
