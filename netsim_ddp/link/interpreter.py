"""How netsim starts a module of its own in a new process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def module(name: str, *words: str) -> list[str]:
    """The command that runs module ``name`` with ``words``.

    A user's ``types.py`` or ``random.py`` in the current folder is not the standard library's: that folder is left out
    (``-P``), unless it is where netsim itself lies.
    """
    isolated = [] if ROOT.samefile(os.getcwd()) else ["-P"]
    return [sys.executable, *isolated, "-m", name, *words]
