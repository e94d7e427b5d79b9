"""What a result of step times claims: each method against the one named rival, all of them one family.

The rival is what a reader would otherwise run: dense in 16 bits, overlapped with backward; where that was not measured
overlapped dense, else dense. Against other cells a report gives factors and claims nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from netsim_ddp.results.record import Cell
from netsim_ddp.results.summary import RIVALS, held_against, is_dense, repeat_medians
from netsim_ddp.results.verdicts import Judgement, Times, fastest_of, judge


@dataclass(frozen=True)
class Claim:
    """``cell`` against ``rival``: ``judgement.change`` is the cell's step over the rival's."""

    cell: Cell
    rival: Cell
    judgement: Judgement


def named_rival(cell: Cell, cells: Iterable[Cell]) -> Cell | None:
    """The cell of ``cell``'s setting that it is held against; None with one worker, or where no dense was measured."""
    found = (held_against(cell, cells, rival) for rival in RIVALS)
    return next((other for other in found if other is not None), None)


def claims(cells: Sequence[Cell]) -> dict[int, Claim]:
    """By ``id()`` of the cell: every measured method of ``cells`` against its named rival, judged as one family.

    fp32 dense is a baseline, not a method; a rival is not held against itself.
    """
    rivals = [(cell, named_rival(cell, cells)) for cell in cells if cell.summary and not is_dense(cell)]
    found = [(cell, rival) for cell, rival in rivals if rival is not None and rival is not cell]
    judged = judge([Times(repeat_medians(rival), repeat_medians(cell)) for cell, rival in found])
    return {
        id(cell): Claim(cell, rival, judgement)
        for (cell, rival), judgement in zip(found, judged, strict=True)
    }


def fastest(group: Sequence[Cell], family: int) -> Cell | None:
    """The measured cell of ``group`` that is claimed to be faster than each of the others, if there is one.

    Args:
        family: how many comparisons are printed with it.

    Where a slower cell is host-limited the link might have made it the faster one: then nothing is claimed.
    """
    measured = [cell for cell in group if cell.summary]
    if not measured:
        return None
    first = fastest_of([repeat_medians(cell) for cell in measured], family)
    if first is None or any(cell.link.host_limited for i, cell in enumerate(measured) if i != first):
        return None
    return measured[first]
