"""What more workers cost: steps, and the share of them in which processors compute, over workers."""

from __future__ import annotations

from collections.abc import Callable

from netsim_ddp.report.charts.shapes import Chart, Point, by_label, panel_title, panels_of, series
from netsim_ddp.report.collection import Collection
from netsim_ddp.results.labels import link_label
from netsim_ddp.results.record import Summary

Value = Callable[[Summary], tuple[float, float, float]]
"""A figure with its interval."""


def steps_over_workers(collection: Collection) -> list[Chart]:
    """The step in milliseconds over workers."""
    return _charts(
        collection,
        "steps-over-workers",
        "step against workers",
        "ms per step",
        lambda summary: (
            1e3 * summary.step_s.median, 1e3 * summary.step_s.ci_low, 1e3 * summary.step_s.ci_high,
        ),
        logarithmic=True,
    )  # fmt: skip


def utilisation_over_workers(collection: Collection) -> list[Chart]:
    """Compute / step in percent over workers."""

    def share(summary: Summary) -> tuple[float, float, float]:
        return (100 * summary.efficiency,) * 3

    return _charts(
        collection, "utilisation-over-workers", "utilisation against workers", "compute / step, %", share
    )


def _charts(
    collection: Collection, key: str, kind: str, y_label: str, value: Value, *, logarithmic: bool = False
) -> list[Chart]:
    charts = []
    for panel in panels_of(collection, without="workers"):
        drawn = []
        for entries in by_label(panel):
            cells = [entry.cell for entry in entries if entry.cell.workers > 1]
            points = [
                Point(float(cell.workers), *value(cell.summary))
                for cell in cells
                if cell.summary and not cell.link.host_limited and value(cell.summary)[0] > 0
            ]
            if len({point.x for point in points}) > 1:
                drawn.append(series(entries[0], points))
        if not drawn:
            continue
        counts = sorted({point.x for one in drawn for point in one.points})
        charts.append(
            Chart(
                key=key,
                kind=kind,
                title=f"{panel_title(panel[0], workers=False)}, {link_label(panel[0].cell)}",
                x_label="workers",
                y_label=y_label,
                series=tuple(drawn),
                x_log=True,
                y_log=logarithmic,
                x_ticks=tuple((count, f"{count:g}") for count in counts),
            )
        )
    return charts
