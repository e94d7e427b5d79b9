"""A user's own method, ``--method my_module:factory,key=value``. The contract is in docs/methods.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Group, Method
from netsim_ddp.errors import NetsimError, UsageError, describe
from netsim_ddp.names import load_reference


def build_user_method(
    reference: str, flat: FlatGradients, group: Group, known: Sequence[str], **params: Any
) -> Method:
    """What ``factory(flat, group, key=value ...)`` returns.

    Args:
        reference: ``my_module:factory``. known: the methods that could have been named instead.

    Raises:
        UsageError: there is no such factory, or it fails, or what it returns is no :class:`Method`.
    """
    factory = load_reference("method", reference, ", ".join(known))
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
            hint="derive it from netsim_ddp.communication.segments.Method",
        )
    return method
