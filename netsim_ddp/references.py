"""``my_module:name``: a user's own model or method, found by import. Imports nothing but what the user names."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from netsim_ddp.errors import UsageError
from netsim_ddp.names import did_you_mean


def load_reference(what: str, reference: str, choices: str) -> Any:
    """What ``reference`` names.

    The current directory is put first on ``sys.path`` and stays there, since the module may import its neighbours
    later.

    Args:
        what: the kind of thing, for messages: ``model``. choices: what else could have been named.

    Raises:
        UsageError: no such module or attribute, or the module fails when it is imported.
    """
    module_name, _, attribute_path = reference.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        value: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script may end itself
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"{what} {reference!r}: there is no module {error.name!r}",
                hint=f"looked in {here} and on PYTHONPATH; or choose from {choices}",
            ) from error
        raise UsageError(
            f"{what} {reference!r}: importing {module_name!r} failed: {one_line(error)}",
            hint=f"try it alone: python -c 'import {module_name}'",
        ) from error
    for attribute in attribute_path.split("."):
        if not hasattr(value, attribute):
            offered = [name for name, item in vars(value).items() if callable(item) and name[0] != "_"]
            near = did_you_mean(attribute, offered)
            listing = f"it has {', '.join(sorted(offered)[:8])}" if offered else "it defines no function"
            raise UsageError(
                f"{what} {reference!r}: {module_name!r} has no {attribute!r}", hint=f"{near}{listing}"
            )
        value = getattr(value, attribute)
    return value


def one_line(error: BaseException) -> str:
    """``ValueError: its message`` without line breaks."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
