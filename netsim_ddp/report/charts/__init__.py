"""What the reports draw, as numbers, each plot with the text that says the same.

A plot is made only where the data has one: a curve over bandwidth needs two bandwidths.
"""

from __future__ import annotations

from dataclasses import replace

from netsim_ddp.report.charts.shapes import Bars, Chart, Differences, Plot
from netsim_ddp.report.charts.steps import phase_bars, speedups, utilisation_curves
from netsim_ddp.report.charts.training import differences, training_curves
from netsim_ddp.report.charts.wire import bytes_over_workers
from netsim_ddp.report.collection import Collection

__all__ = ["Bars", "Chart", "Differences", "Plot", "all_plots"]


def all_plots(collection: Collection) -> list[Plot]:
    """Every plot that the data has, in reading order; their ``key`` is unique and names a file."""
    plots: list[Plot] = [
        *speedups(collection),
        *utilisation_curves(collection),
        *differences(collection),
        *training_curves(collection),
    ]
    plots += [*phase_bars(collection), *bytes_over_workers(collection)]
    seen: dict[str, int] = {}
    for plot in plots:
        seen[plot.key] = seen.get(plot.key, 0) + 1
    counts = dict.fromkeys(seen, 0)
    unique: list[Plot] = []
    for plot in plots:
        counts[plot.key] += 1
        number = f"-{counts[plot.key]}" if seen[plot.key] > 1 else ""
        unique.append(replace(plot, key=plot.key + number))
    return unique
