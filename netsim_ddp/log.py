"""What netsim does, by the standard library's ``logging`` under the name ``netsim_ddp``.

WARNING is for people in any case, INFO (``-v``) says what is started, made and ended, DEBUG (``-vv``) adds every
command that makes a link and every process. A program that imports netsim decides itself what it shows.
"""

from __future__ import annotations

import logging
import sys
from collections import deque

NAME = "netsim_ddp"
KEPT = 8
"""So many of the last lines are kept for an error, shown or not."""
LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: deque[str] = deque(maxlen=KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class _Shown(logging.Handler):
    """On stderr as it is now: the command may have put another in its place since."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(f"netsim: {self.format(record)}", file=sys.stderr, flush=True)
        except OSError:
            return  # nobody reads


_kept, _shown = _Kept(), _Shown()


def begin() -> None:
    """Show warnings and keep the last lines: called once, by the command."""
    logger = logging.getLogger(NAME)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.handlers = [_kept, _shown]
    show(0)


def show(verbosity: int) -> None:
    """Show what ``verbosity``, the number of ``-v``, asks for."""
    _shown.setLevel(LEVELS[min(verbosity, len(LEVELS) - 1)])


def shown() -> bool:
    """Whether everything is shown already."""
    return _shown.level <= logging.DEBUG


def last() -> list[str]:
    """The last lines, oldest first."""
    return list(_kept.lines)
