"""A method by its name: its options checked, its exchange built, and what the ranks must agree in before it begins."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import netsim_ddp
from netsim_ddp.communication.comparison import OPTIONS, PARAMETERS, Facts
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.parameters import trained
from netsim_ddp.communication.segments import Group, Method
from netsim_ddp.compression.feedback import ErrorFeedbackBuffer
from netsim_ddp.errors import NetsimError, UsageError, describe
from netsim_ddp.methods import METHODS, entry_of, takes
from netsim_ddp.methods.spec import typed_params
from netsim_ddp.names import is_reference, load_reference


def build_method(
    name: str, flat: FlatGradients, group: Group, *, as_ddp: bool = False, **params: Any
) -> Method:
    """The method ``name`` over ``flat``; a user's own is ``my_module:factory``. ``overlap`` is not passed on: whoever
    calls this cuts the gradient into buckets.

    Args:
        as_ddp: dense as DistributedDataParallel sends it, every gradient in its parameter's type: what ``netsim run``
            and ``netsim train`` compare with.

    Raises:
        UsageError: unknown name or option, or a factory that does not give a method.
    """
    options = checked_params(name, params)
    options.pop("overlap", None)
    if is_reference(name):
        return _build_own(name, flat, group, options)
    entry = entry_of(name)
    built: Method = pkgutil.resolve_name((as_ddp and entry.impl_as_ddp) or entry.impl)(flat, group, **options)
    return built


def checked_params(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the method ``name`` with their types, ``error_buffer`` among them, which only Python can give.

    Raises:
        UsageError: as :func:`~netsim_ddp.methods.spec.typed_params`, or an ``error_buffer`` that would not be used.
    """
    given = dict(params) if isinstance(params, Mapping) else params
    if is_reference(name) or not isinstance(given, dict) or "error_buffer" not in given:
        return typed_params(name, given)
    buffer = given.pop("error_buffer")
    typed = typed_params(name, given)
    if buffer is None:
        return typed
    if not isinstance(buffer, ErrorFeedbackBuffer):
        raise UsageError(
            f"error_buffer is a {type(buffer).__name__}", hint="write error_buffer=ErrorFeedbackBuffer()"
        )
    if not takes(name, "feedback") or not typed.get("feedback", True):
        why = "with feedback=off" if takes(name, "feedback") else "which has no feedback"
        raise UsageError(
            f"method {name!r}, {why}, has no use for an error_buffer", hint="leave error_buffer out"
        )
    return {**typed, "error_buffer": buffer}


def _build_own(reference: str, flat: FlatGradients, group: Group, params: Mapping[str, Any]) -> Method:
    """What the user's own ``factory(flat, group, key=value ...)`` returns; the contract is in docs/methods.md.

    Raises:
        UsageError: there is no such factory, or it fails, or what it returns is no :class:`Method`.
    """
    factory = load_reference("method", reference, ", ".join(METHODS))
    if not callable(factory):
        raise UsageError(
            f"method {reference!r} is a {type(factory).__name__}, not a function or class",
            hint="name a factory(flat, group, ...) that returns a Method",
        )
    try:
        method = factory(flat, group, **params)
    except NetsimError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"method {reference!r} failed while building: {describe(error)}",
            hint="it is called as factory(flat, group, key=value ...) with the options given",
        ) from error
    if not isinstance(method, Method):
        raise UsageError(
            f"method {reference!r} returned a {type(method).__name__}, not a Method",
            hint="derive it from netsim_ddp.Method",
        )
    return method


def description(
    name: str,
    params: Mapping[str, Any],
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    methods: Sequence[Method] = (),
    **more: Any,
) -> Facts:
    """What must be the same on all ranks for their messages to mean the same.

    Args:
        name, params: of the method, as it was asked for.
        methods: as they were built, one for each part of the parameters, where they have been.
        more: whatever else the ranks must agree in.

    Raises:
        UnusableParameter: as :func:`~netsim_ddp.communication.parameters.trained`.
    """
    return {
        "netsim": netsim_ddp.__version__,
        **({"torch": torch.__version__} if entry_of(name).same_torch else {}),
        "method": name,
        OPTIONS: resolved(name, params),
        **more,
        PARAMETERS: [
            [name, list(parameter.shape), str(parameter.dtype).removeprefix("torch.")]
            for name, parameter in trained(named_parameters)
        ],
        "exchanges": [[len(each.flat.parameters), each.collective] for each in methods],
    }


def resolved(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method with the defaults of those left out; what cannot be written down is left out too."""
    defaults = {key: option.default for key, option in entry_of(name).options.items()}
    given = {key: value for key, value in params.items() if isinstance(value, str | int | float | None)}
    return dict(sorted({**defaults, **given}.items()))
