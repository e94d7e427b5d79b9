"""What the reports draw, as numbers, each plot with the text that says the same.

A plot is made only where the data has one: a curve over bandwidth needs two bandwidths.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import count

from netsim_ddp.report.charts.shapes import Bars, Chart, Differences, Plot, Timeline
from netsim_ddp.report.charts.steps import phase_bars, speedups, utilisation_curves
from netsim_ddp.report.charts.training import differences, training_curves
from netsim_ddp.report.charts.wire import bytes_over_workers
from netsim_ddp.report.charts.workers import steps_over_workers, utilisation_over_workers
from netsim_ddp.report.collection import Collection

__all__ = ["Bars", "Chart", "Differences", "Plot", "Timeline", "all_plots"]


def all_plots(collection: Collection) -> list[Plot]:
    """Every plot that the data has, in reading order; their ``key`` is unique and names a file."""
    plots: list[Plot] = [
        *speedups(collection),
        *utilisation_curves(collection),
        *steps_over_workers(collection),
        *utilisation_over_workers(collection),
        *differences(collection),
        *training_curves(collection),
    ]
    plots += [*phase_bars(collection), *bytes_over_workers(collection)]
    seen = Counter(plot.key for plot in plots)
    numbers = {key: count(1) for key in seen}
    return [
        replace(plot, key=f"{plot.key}-{next(numbers[plot.key])}") if seen[plot.key] > 1 else plot
        for plot in plots
    ]
