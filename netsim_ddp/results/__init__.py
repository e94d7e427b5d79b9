"""Result files and the arithmetic on them. No torch: a report builds anywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netsim_ddp.results.record import Result

__all__ = ["load"]


def load(path: str | os.PathLike[str]) -> Result:
    """Read a result file: of ``netsim run --json PATH``, or what a run saved under ``.netsim``.

    Its attributes are those of the file, in SI units, with the docstrings that ``netsim schema`` prints::

        for cell in load("run.json").cells:
            print(cell.id, cell.summary.step_s.median, cell.summary.speedup)

    Raises:
        UsageError: unreadable, not JSON, of a newer schema, or keys missing or of the wrong type.
    """
    from netsim_ddp.results import files

    return files.load(Path(path))
