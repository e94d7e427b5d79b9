"""How far the step of another run may be from the one that was measured: what repeats of one run cannot show.

The repeats of a run share an hour, and what the machine does in it. Two runs of one command at different hours do not:
their cells' steps, the later run's over one repeat of the earlier one's, less 1, are the errors of a measured step that
is taken for the step of a run to come.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from statistics import median

from pydantic import ConfigDict

from netsim_ddp.errors import UsageError
from netsim_ddp.results.fields import Count, Finite, Strict
from netsim_ddp.results.identity import line, setting
from netsim_ddp.results.record import Result
from netsim_ddp.results.summary import repeat_medians

SHARE = 0.95
"""Of the differences, how many a range holds."""
OWN = Path(__file__).with_name("repeatability.json")
"""That of netsim's own reports: ``python reports/figures.py --tables`` takes it from their files."""


class Repeatability(Strict):
    """The middle :data:`SHARE` of the differences between two runs, over ``cells`` cells."""

    model_config = ConfigDict(frozen=True)

    source: str
    cells: Count
    low: Finite
    high: Finite


@cache
def own() -> Repeatability:
    """That of netsim's own reports."""
    return Repeatability.model_validate_json(OWN.read_text(encoding="utf-8"))


def repeatability(pairs: Iterable[tuple[Result, Result]], source: str) -> Repeatability:
    """Hold later runs against earlier ones of the same commands. Cells whose pace this host set in either run do not
    count: no such step is published as one of a link.

    Args:
        pairs: the earlier and the later run's results.
        source: where they are from.

    Raises:
        UsageError: they have no cell in common that counts.
    """
    found: list[float] = []
    cells = 0
    for first, later in pairs:
        medians = {
            (setting(cell), line(cell)): median(repeat_medians(cell))
            for cell in later.cells
            if repeat_medians(cell) and not cell.link.host_limited
        }
        for cell in first.cells:
            again = medians.get((setting(cell), line(cell)))
            if again is None or cell.link.host_limited:
                continue
            cells += 1
            found += [again / each - 1 for each in repeat_medians(cell)]
    if not found:
        raise UsageError(f"{source} has no cell twice that counts", hint="name two runs of one command")
    found.sort()
    left = int((1 - SHARE) / 2 * len(found))
    return Repeatability(source=source, cells=cells, low=found[left], high=found[-1 - left])
