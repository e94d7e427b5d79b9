"""Which bandwidth keeps the processors busy: the rate that a method needs for 50, 80, 90, 95, 99% of compute.

Utilisation is compute / step (Douillard et al. 2025, "Streaming DiLoCo", Sec. 3: compute utilisation). Under the model
of :mod:`netsim_ddp.results.break_even`, step = constant + bytes / rate, its inverse is a straight line over 1 / rate:
it is read so between two rates that were measured, and beyond them, where asked for, by one line through all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from netsim_ddp.results.break_even import F64, model, non_increasing, zero
from netsim_ddp.results.crossover import curves
from netsim_ddp.results.record import Cell

LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Needed:
    """The bandwidth for one level of utilisation.

    ``bps`` is None where no bandwidth gives it (``how`` is ``"none"``: the codec alone takes more), or where the model
    does not hold (``"over"``: more than the highest rate measured). ``"under"``: the lowest rate measured gives it
    already, and ``bps`` is that rate. ``"model"``: beyond the rates measured, by the model, without an interval.
    """

    level: float
    bps: float | None
    how: str


@dataclass(frozen=True)
class Utilisation:
    """One method over bandwidth. ``points``: (bit/s, compute / step) as measured, ascending; ``needed``: one of
    ``LEVELS`` each."""

    cell: Cell
    points: tuple[tuple[int, float], ...]
    needed: tuple[Needed, ...]


def utilisations(cells: Sequence[Cell], levels: Sequence[float] = LEVELS) -> list[Utilisation]:
    """Every method that was measured at two bandwidths or more, in the order in which they were run.

    Args:
        cells: with their summaries (``netsim_ddp.results.summary.summarise``).
    """
    found = []
    for lines in curves(cells):
        for curve in lines:
            used = {
                cell.bandwidth_bps: cell.summary.efficiency
                for cell in curve
                if cell.summary
                and cell.bandwidth_bps
                and cell.summary.efficiency
                and not cell.link.host_limited
            }
            if len(used) < 2:
                continue
            rates = sorted(used)
            found.append(
                Utilisation(
                    cell=curve[0],
                    points=tuple((rate, used[rate]) for rate in rates),
                    needed=tuple(_needed(rates, [used[rate] for rate in rates], level) for level in levels),
                )
            )
    return found


def _needed(rates: Sequence[int], utilisation: Sequence[float], level: float) -> Needed:
    x = 1 / np.asarray(rates, dtype=np.float64)
    # Steps per compute: never longer with more bandwidth, but for noise.
    length: F64 = non_increasing(1 / np.asarray(utilisation, dtype=np.float64))
    allowed = 1 / level
    enough = length <= allowed
    if enough[0]:
        return Needed(level, float(rates[0]), "under")
    if enough[-1]:
        return Needed(level, zero(x, int(np.argmax(enough)) - 1, length - allowed), "measured")
    if (line := model(x, length)) is None:
        return Needed(level, None, "over")
    constant, slope = line
    if constant >= allowed:
        return Needed(level, None, "none")
    bps = slope / (allowed - constant)
    return (
        Needed(level, bps, "model") if bps > rates[-1] and math.isfinite(bps) else Needed(level, None, "over")
    )
