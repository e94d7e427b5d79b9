"""At which bandwidth does a method stop to pay? Its break-even with dense, from steps measured at several bandwidths.

With more bandwidth the wire costs less and a codec the same: dense / method falls along the bandwidth (each step is
a constant plus bytes / bandwidth, and such a quotient is monotone). So the measured log(speedup) is first made
non-increasing (pooling neighbours that noise put in the wrong order), then read as straight lines over
log(bandwidth), and where it is zero the method breaks even.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from netsim_ddp.results import stats
from netsim_ddp.results.beyond import Beyond, extrapolated
from netsim_ddp.results.record import Cell
from netsim_ddp.results.summary import METHOD_AXES, baseline, is_dense, repeat_medians
from netsim_ddp.units import format_rate

Kind = Literal["crosses", "always pays in range", "never pays in range"]

_RESAMPLES = 2_000


@dataclass(frozen=True)
class BreakEven:
    """Where one method's step equals dense's.

    ``bps`` is the bandwidth, bit/s, below which the method is faster; None where it is faster, or slower, over the
    whole range that was measured, as ``kind`` says. ``low_bps`` to ``high_bps`` is its 95% interval, cut off at the
    range: an end that equals ``lowest_bps`` means there or below, one that equals ``highest_bps`` there or above.
    They are None where some cell has a single repeat, which shows no noise.
    """

    model: str | None
    workers: int
    place: str
    """What else the cells share, in words: ``replayed, tc, delay 5 ms``."""
    method: str
    """With the parameters that tell it apart: ``topk,ratio=0.01``."""
    params: Mapping[str, Any]
    overlap: bool
    bps: float | None
    low_bps: float | None
    high_bps: float | None
    kind: Kind
    lowest_bps: int
    highest_bps: int
    points: tuple[tuple[int, float], ...]
    """(bandwidth, speedup) as measured, ascending: what the break-even was read from."""
    left_out: tuple[int, ...]
    """Bandwidths where the host, not the link, set dense's pace: there is no speedup."""
    beyond: Beyond | None = None
    """Where a method that always pays in range would break even, if its step and dense's keep their form."""

    @property
    def resolved(self) -> bool:
        """Whether the interval says anything: it leaves at least one end of the range out."""
        if self.low_bps is None or self.high_bps is None:
            return False
        return self.low_bps > self.lowest_bps or self.high_bps < self.highest_bps


def break_evens(cells: Sequence[Cell], *, overlapped: bool) -> list[BreakEven]:
    """The break-even of every method, in the order in which they were run, within each group of cells that share
    everything but the bandwidth.

    Args:
        cells: with their summaries (``netsim_ddp.results.summary.summarise``).
        overlapped: against dense that overlaps its communication with backward; else against dense that does not.

    Methods measured at fewer than two bandwidths with a usable baseline have none.
    """
    shaped = [cell for cell in cells if cell.summary and cell.bandwidth_bps and not cell.link.varies]
    groups: dict[str, list[Cell]] = {}
    for cell in shaped:
        groups.setdefault(_place_key(cell), []).append(cell)
    found = []
    for group in groups.values():
        methods: dict[str, list[Cell]] = {}
        for cell in group:
            if not is_dense(cell):
                methods.setdefault(_method_key(cell), []).append(cell)
        for series in methods.values():
            if (one := _break_even(series, group, overlapped=overlapped)) is not None:
                found.append(one)
    return found


def method_name(cell: Cell) -> str:
    """``topk,ratio=0.01,overlap=on``: the method with all its parameters, whatever the cell's id says beside it."""
    params = {
        key: value for key, value in cell.params.items() if key != "collective" or "collective=" in cell.id
    }
    if cell.overlap:
        params["overlap"] = True
    return ",".join([cell.method, *(f"{key}={_plain(value)}" for key, value in sorted(params.items()))])


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _method_key(cell: Cell) -> str:
    return f"{method_name(cell)} {cell.threads} {cell.substituted}"


def _place_key(cell: Cell) -> str:
    """What cells must share to stand on one curve. The threads may differ: so they may between method and dense."""
    axes = {key: value for key, value in cell.axes.items() if key not in METHOD_AXES | {"bandwidth"}}
    return json.dumps(
        [
            cell.model, cell.dataset, cell.workers, cell.execution, cell.device, cell.backend,
            cell.link.mechanism, cell.link.delay_s, _shape(cell), axes,
        ],
        sort_keys=True,
        default=str,
    )  # fmt: skip


def _shape(cell: Cell) -> str:
    """The link in words, but for the rate that all ranks have."""
    rate = format_rate(cell.bandwidth_bps or 0)
    return (cell.link.shape or rate).removeprefix(rate).lstrip("; ")


def _break_even(series: Sequence[Cell], group: Sequence[Cell], *, overlapped: bool) -> BreakEven | None:
    pairs: dict[int, tuple[Sequence[float], Sequence[float]]] = {}
    left_out: list[int] = []
    for cell in series:
        dense = baseline(cell, group, overlap=overlapped)
        if dense is None or not cell.bandwidth_bps:
            continue
        if dense.link.host_limited:
            left_out.append(cell.bandwidth_bps)
            continue
        pairs[cell.bandwidth_bps] = (repeat_medians(dense), repeat_medians(cell))
    if len(pairs) < 2:
        return None
    rates = sorted(pairs)
    logs = np.log(np.asarray(rates, dtype=np.float64))
    measured = np.asarray([_log_ratio(*pairs[rate]) for rate in rates])
    position = float(_crossing(logs, measured[None, :])[0])
    low, high = _bounds(logs, [pairs[rate] for rate in rates])
    ends = {
        float(logs[0]): float(rates[0]),
        float(logs[-1]): float(rates[-1]),
    }  # exactly, not by way of exp(log)
    kind: Kind = "crosses"
    if not math.isfinite(position):
        kind = "always pays in range" if position > 0 else "never pays in range"
    first = series[0]
    return BreakEven(
        model=first.model,
        workers=first.workers,
        place=", ".join(part for part in (first.execution, first.link.mechanism, _shape(first)) if part),
        method=method_name(first),
        params=dict(first.params),
        overlap=first.overlap,
        bps=math.exp(position) if kind == "crosses" else None,
        low_bps=None if low is None else ends.get(low, math.exp(low)),
        high_bps=None if high is None else ends.get(high, math.exp(high)),
        kind=kind,
        lowest_bps=rates[0],
        highest_bps=rates[-1],
        points=tuple((rate, math.exp(value)) for rate, value in zip(rates, measured.tolist(), strict=True)),
        left_out=tuple(sorted(left_out)),
        beyond=extrapolated(rates, [pairs[rate] for rate in rates])
        if kind == "always pays in range"
        else None,
    )


def _log_ratio(dense: Sequence[float], ours: Sequence[float]) -> float:
    return math.log(stats.median(dense) / stats.median(ours))


def _crossing(logs: np.ndarray, speedups: np.ndarray) -> np.ndarray:
    """Where each row of ``speedups`` ([rows, bandwidths], logarithms) falls through zero, as log(bandwidth).

    Minus infinity where it is never above zero, plus infinity where it never comes down to it.
    """
    curve = _non_increasing(speedups)
    pays = curve > 0
    last = pays.sum(axis=1) - 1  # non-increasing: those that pay come first
    inside = (last >= 0) & (last < curve.shape[1] - 1)
    left = np.clip(last, 0, curve.shape[1] - 2)
    rows = np.arange(len(curve))
    above, below = curve[rows, left], curve[rows, left + 1]
    drop = np.where(inside, above - below, 1.0)
    between = logs[left] + (logs[left + 1] - logs[left]) * above / drop
    return np.where(inside, between, np.where(last < 0, -np.inf, np.inf))


def _non_increasing(values: np.ndarray) -> np.ndarray:
    """The nearest non-increasing row to each row (least squares): min over starts a <= i of max over ends b >= i of
    mean(a..b), Robertson, Wright and Dykstra, "Order Restricted Statistical Inference" (1988), theorem 1.4.4."""
    rows, count = values.shape
    sums = np.concatenate([np.zeros((rows, 1)), np.cumsum(values, axis=1)], axis=1)
    fitted = np.full((rows, count), np.inf)
    for start in range(count):
        means = (sums[:, start + 1 :] - sums[:, [start]]) / np.arange(1, count - start + 1)
        best = np.maximum.accumulate(means[:, ::-1], axis=1)[:, ::-1]  # over ends from each column on
        fitted[:, start:] = np.minimum(fitted[:, start:], best)
    return fitted


def _bounds(
    logs: np.ndarray, pairs: Sequence[tuple[Sequence[float], Sequence[float]]]
) -> tuple[float | None, float | None]:
    """The 95% interval of the break-even, as log(bandwidth) within the range: all cells' repeats resampled."""
    fewest = min(len(samples) for pair in pairs for samples in pair)
    if fewest < 2:
        return None, None
    generator = np.random.default_rng(0)

    def medians(samples: Sequence[float]) -> np.ndarray:
        drawn = generator.choice(np.asarray(samples), size=(_RESAMPLES, len(samples)))
        found: np.ndarray = np.log(np.median(drawn, axis=1))
        return found

    speedups = np.stack([medians(dense) - medians(ours) for dense, ours in pairs], axis=1)
    positions = np.clip(_crossing(logs, speedups), logs[0], logs[-1])
    tail = stats.widened_tail(fewest)
    # Between two resamples lies no break-even that anything was computed for, so none is interpolated.
    low = np.quantile(positions, tail, method="lower")
    high = np.quantile(positions, 1 - tail, method="higher")
    return float(low), float(high)
