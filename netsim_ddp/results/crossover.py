"""At which bandwidth does a method stop to pay? Its break-even with dense, from steps measured at several bandwidths.

Cells that share everything but the bandwidth stand on one curve; :mod:`netsim_ddp.results.break_even` has the
arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from netsim_ddp.results.break_even import FEWEST_RATES, Pair, Steps, crossing, extrapolated, interval
from netsim_ddp.results.identity import curve_setting, line
from netsim_ddp.results.limits import bound
from netsim_ddp.results.record import Cell
from netsim_ddp.results.summary import Rival, held_against, is_dense, repeat_medians

Kind = Literal["crosses", "always pays in range", "never pays in range"]


@dataclass(frozen=True)
class BreakEven:
    """Where one method's step equals dense's.

    ``bps`` is the bandwidth, bit/s, below which the method is faster; None where it is faster, or slower, over the
    whole range that was measured, as ``kind`` says. ``low_bps`` to ``high_bps`` is its 95% interval, cut off at the
    range: an end that equals ``lowest_bps`` means there or below, one that equals ``highest_bps`` there or above.
    They are None where some cell has a single repeat, which shows no noise, or a step overlaps and two rates alone were
    measured. The interval holds the noise of this
    machine's repeats and the error of the model between rates; another machine's codec takes another time, see
    :meth:`at_codec`.
    """

    cell: Cell
    """One of the method's cells, which tells what all of them share."""
    bps: float | None
    low_bps: float | None
    high_bps: float | None
    kind: Kind
    lowest_bps: int
    highest_bps: int
    points: tuple[tuple[int, float], ...]
    """(bandwidth, speedup) as measured, ascending: what the break-even was read from."""
    left_out: tuple[int, ...]
    """Bandwidths where the host, not the link, set the pace of the method or of dense: a speedup there is a bound."""
    model_bps: float | None
    """Where a method that always pays in range would break even if its step and dense's stay a constant + bytes / rate:
    the model's word, without an interval. Infinite where it costs no more than dense on any link."""
    codec_s: float
    """What the method compresses and decompresses per step beyond what dense does, seconds: median over the rates."""
    steps: Steps = field(repr=False, compare=False)

    def at_codec(self, seconds: float) -> tuple[float | None, bool]:
        """The break-even, bit/s, if the codec took ``seconds`` instead of ``codec_s``, all of it exposed; and whether
        it lies within the rates measured. 0 where the method would pay at none of them, None where it would at all
        and the model says nothing of what lies beyond."""
        slower = seconds - self.codec_s
        found = crossing(self.steps, slower)
        if math.isinf(found):
            return extrapolated(self.steps, slower), False
        return found, found > 0


def break_evens(cells: Sequence[Cell], rival: Rival) -> list[BreakEven]:
    """The break-even of every method, in the order in which they were run, within each group of cells that share
    everything but the bandwidth.

    Args:
        cells: with their summaries (``netsim_ddp.results.summary.summarise``).
        rival: the dense cells that they break even with.

    Methods measured at fewer than two bandwidths with a usable baseline have none.
    """
    found = []
    for lines in curves(cells):
        group = [cell for each in lines for cell in each]
        found += [_break_even(each, group, rival) for each in lines if not is_dense(each[0])]
    return [one for one in found if one is not None]


def curves(cells: Sequence[Cell]) -> list[list[list[Cell]]]:
    """Every method's cells over bandwidth, as lines of the plots that they may stand on together.

    Cells without a summary, or on a link that varies or has no rate, are on none.
    """
    plots: dict[object, dict[object, list[Cell]]] = {}
    for cell in cells:
        if cell.summary and cell.bandwidth_bps and not cell.link.varies:
            plots.setdefault(curve_setting(cell, "bandwidth"), {}).setdefault(line(cell), []).append(cell)
    return [list(lines.values()) for lines in plots.values()]


def _break_even(series: Sequence[Cell], group: Sequence[Cell], rival: Rival) -> BreakEven | None:
    pairs: dict[int, Pair] = {}
    codec: list[float] = []
    left_out: list[int] = []
    for cell in series:
        dense = held_against(cell, group, rival)
        if dense is None or dense is cell or not cell.bandwidth_bps:
            continue
        if bound(cell, dense):
            left_out.append(cell.bandwidth_bps)
            continue
        pairs[cell.bandwidth_bps] = (repeat_medians(dense), repeat_medians(cell))
        codec.append(_codec_s(cell) - _codec_s(dense))
    if len(pairs) < 2:
        return None
    steps = Steps(sorted(pairs), [pairs[rate] for rate in sorted(pairs)])
    # Two rates cannot show that a step bends, as one that overlaps does (reports/coverage.md).
    bends = series[0].overlap or rival != "plain"
    bps, ends = crossing(steps), None if bends and len(pairs) < FEWEST_RATES else interval(steps)
    kind: Kind = "crosses"
    if not 0 < bps < math.inf:
        kind = "always pays in range" if bps else "never pays in range"
    base, ours = steps.medians
    return BreakEven(
        cell=series[0],
        bps=bps if kind == "crosses" else None,
        low_bps=ends[0] if ends else None,
        high_bps=ends[1] if ends else None,
        kind=kind,
        lowest_bps=steps.rates[0],
        highest_bps=steps.rates[-1],
        points=tuple(zip(steps.rates, (base / ours).tolist(), strict=True)),
        left_out=tuple(sorted(left_out)),
        model_bps=extrapolated(steps) if kind == "always pays in range" else None,
        codec_s=median(codec),
        steps=steps,
    )


def _codec_s(cell: Cell) -> float:
    return cell.summary.compress_s + cell.summary.decompress_s if cell.summary else 0.0
