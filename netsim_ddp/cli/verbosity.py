"""``-v`` and ``-vv``, which every command takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from netsim_ddp import log

_OPTION = Annotated[
    int,
    typer.Option(
        "-v",
        "--verbose",
        count=True,
        show_default=False,
        help="Show what netsim does; with -vv also each command that it runs, and each process.",
    ),
]


def verbose(command: Callable[..., Any]) -> Callable[..., Any]:
    """``command`` with the option ``-v``, which it need not know of."""

    @functools.wraps(command)
    def with_option(*args: Any, verbosity: int = 0, **kwargs: Any) -> Any:
        log.show(verbosity)
        return command(*args, **kwargs)

    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("verbosity", inspect.Parameter.KEYWORD_ONLY, default=0, annotation=_OPTION)
    with_option.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), option]
    )
    with_option.__annotations__ = {
        each.name: each.annotation for each in (*signature.parameters.values(), option)
    }
    return with_option
