"""What a user names as ``my_module:name,key=value``: found by import, and called with options of the right types."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal, Union, get_args, get_origin

from netsim_ddp.errors import NetsimError, UsageError, describe
from netsim_ddp.names import did_you_mean, load_reference, split_options
from netsim_ddp.options import as_written, switch

PLAIN = (bool, int, float, str)
"""The types that an option is given as; others, and no type at all, take what it reads like."""
Parameters = Mapping[str, inspect.Parameter]


def found(what: str, text: str, choices: str) -> tuple[Any, dict[str, str]]:
    """What ``text`` names, and its options as they are written.

    Args:
        what: the kind of thing, for messages: ``model``. choices: what else could have been named.

    Raises:
        UsageError: as :func:`~netsim_ddp.names.load_reference`.
    """
    name, options = split_options(what, text)
    return load_reference(what, name, choices), options


def called(
    what: str, text: str, function: Callable[..., Any], options: Mapping[str, str], **offered: Any
) -> Any:
    """``function`` called with ``options``, and with those of ``offered`` that it has a parameter of the name for.

    An option has the type that its parameter is annotated with, or that of its default; else it is a number or a switch
    if it reads like one, or text. An option wins over what is offered.

    Raises:
        UsageError: an option that it does not take, or not so, one that is missing, or whatever it raises.
    """
    typed = typed_options(what, text, function, options)
    arguments = {key: value for key, value in offered.items() if accepts(function, key)} | typed
    known = parameters(function)
    missing = [
        name
        for name, each in (known or {}).items()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if name not in arguments
    ]
    if missing:
        more = ",".join(f"{name}=VALUE" for name in missing)
        raise UsageError(
            f"{what} {text!r} wants a value for {', '.join(missing)}", hint=f"write {text},{more}"
        )
    try:
        return function(**arguments)
    except NetsimError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's function raises
        shown = ", ".join(f"{key}=..." if key in offered else f"{key}={typed[key]!r}" for key in arguments)
        raise UsageError(
            f"{what} {text!r} failed while building: {describe(error)}",
            hint=f"it is called as {text.partition(',')[0].partition(':')[2]}({shown})",
        ) from error


def typed_options(
    what: str, text: str, function: Callable[..., Any], options: Mapping[str, str]
) -> dict[str, Any]:
    """``options`` with the types that ``function`` wants; see :func:`called`.

    Raises:
        UsageError: one that it does not take, or not so.
    """
    known = parameters(function)
    if known is None:
        return {key: as_written(value) for key, value in options.items()}
    open_ended = any(each.kind is each.VAR_KEYWORD for each in known.values())
    takes = {
        name: each
        for name, each in known.items()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }
    typed = {}
    for key, value in options.items():
        if key not in takes and not open_ended:
            listing = ", ".join(
                name if each.default is each.empty else f"{name}={each.default}"
                for name, each in takes.items()
            )
            raise UsageError(
                f"{what} {text!r} has no option {key!r}",
                hint=f"{did_you_mean(key, takes)}it takes {listing or 'none'}",
            )
        try:
            typed[key] = _typed(value, _kind(takes[key])) if key in takes else as_written(value)
        except (ValueError, UsageError):
            wanted = getattr(_kind(takes[key]), "__name__", str(_kind(takes[key])))
            raise UsageError(
                f"{what} {text!r}: {key}={value} is not of the type {wanted}",
                hint=f"write a value of that type, {key}={_EXAMPLES.get(wanted, 'VALUE')}",
            ) from None
    return typed


_EXAMPLES = {"int": "2", "float": "0.5", "bool": "on", "str": "NAME"}


def parameters(function: Callable[..., Any]) -> Parameters | None:
    """The parameters of ``function`` by name; None where nothing tells them, as of some builtins and C extensions."""
    for evaluated in (True, False):  # an annotation that is text may name what is not there
        with suppress(TypeError, ValueError, NameError, AttributeError, SyntaxError):
            return inspect.signature(function, eval_str=evaluated).parameters
    return None


def accepts(function: Callable[..., Any], keyword: str) -> bool:
    """Whether ``function`` can be called with an argument of this name, by a parameter or by ``**kwargs``."""
    known = parameters(function) or {}
    return keyword in known or any(each.kind is each.VAR_KEYWORD for each in known.values())


def _kind(parameter: inspect.Parameter) -> Any:
    if parameter.annotation not in (parameter.empty, Any):
        return parameter.annotation
    return type(parameter.default) if type(parameter.default) in PLAIN else None


def _typed(text: str, kind: Any) -> Any:
    """``text`` as a value of the annotation ``kind``.

    Raises:
        ValueError, UsageError: it is none.
    """
    if kind is bool:
        return switch(False, "").read(text)
    if kind in (int, float, str):
        return kind(text)
    if get_origin(kind) is Literal:
        return next((value for value in get_args(kind) if str(value) == text), None) or _refused(text)
    if get_origin(kind) in (Union, types.UnionType):
        parts = get_args(kind)
        if type(None) in parts and text.lower() == "none":
            return None
        for part in sorted((each for each in parts if each in PLAIN), key=PLAIN.index):
            try:
                return _typed(text, part)
            except (ValueError, UsageError):
                continue
        if set(parts) <= {*PLAIN, type(None)}:
            return _refused(text)
    return as_written(text)


def _refused(text: str) -> Any:
    raise ValueError(text)
