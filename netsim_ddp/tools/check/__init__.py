"""``netsim check``: does a method keep what docs/methods.md asks of it?

``checks`` has every check by its name, as the command runs it. What a rank can judge is judged there, in a fresh
process for each check: ``task`` is what such a rank runs, and the other modules hold the checks, functions of a
:class:`~netsim_ddp.tools.check.context.Context`. What needs the link's counters or several runs is judged by the
command.
"""

from __future__ import annotations


class CheckFailed(Exception):
    """A check found the method wrong. Ranks raise it all alike, or one does for which no other waits any more."""


def require(condition: bool, otherwise: str) -> None:
    """Raise :class:`CheckFailed` with the text ``otherwise`` unless ``condition`` holds."""
    if not condition:
        raise CheckFailed(otherwise)
