"""Plots as files: SVG of our own, and PDF or PNG for a paper by matplotlib, which only these two need."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netsim_ddp.errors import EnvironmentFault, UsageError, cannot_write
from netsim_ddp.report.charts import Bars, Chart, Differences, Plot, all_plots, svg
from netsim_ddp.report.charts.scales import tick_text, ticks
from netsim_ddp.report.charts.shapes import PHASE_NAMES
from netsim_ddp.report.charts.style import LIGHT, PHASE_HATCHES, Hatch, Looks, Marker
from netsim_ddp.report.collection import Collection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("svg", "pdf", "png")
_MARKERS: dict[Marker, str] = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "down": "v"}
_HATCHES: dict[Hatch, str] = {
    "none": "",
    "up": "////",
    "down": "\\\\\\\\",
    "across": "--",
    "upright": "||",
    "dots": "..",
}


def needs(formats: Sequence[str]) -> None:
    """Refuse ``formats`` that cannot be made here, before anything is written.

    Raises:
        UsageError: one that is none. EnvironmentFault: matplotlib is not installed.
    """
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"format {name!r} is not known here", hint=f"choose from {', '.join(FORMATS)}")
    if set(formats) - {"svg"} and importlib.util.find_spec("matplotlib") is None:
        raise EnvironmentFault(
            "figures as pdf or png need matplotlib, which is not installed",
            hint="pip install 'netsim-ddp[report]', or take --format svg",
        )


def write(collection: Collection, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Every plot in every format, named by what it shows: ``speedup.pdf``, ``phases-3.png``.

    Raises:
        UsageError: the folder cannot be made or written to; and as :func:`needs`.
    """
    needs(formats)
    plots = all_plots(collection)
    looks = Looks(collection.colours, [entry.colour for entry in collection.entries if entry.dense])
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for plot in plots:
            for name in dict.fromkeys(formats):
                path = folder / f"{plot.key}.{name}"
                if name == "svg":
                    path.write_text(svg.standalone(plot, looks), encoding="utf-8")
                else:
                    _save(plot, looks, path)
                written.append(path)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return written


def _save(plot: Plot, looks: Looks, path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # A dollar sign in a method's name is no formula; letters stay letters in a PDF.
    with mpl.rc_context(
        {"text.parse_math": False, "pdf.fonttype": 42, "hatch.linewidth": 0.6, "font.size": 8}
    ):
        rows = (
            len(plot.bars)
            if isinstance(plot, Bars)
            else len(plot.rows)
            if isinstance(plot, Differences)
            else 6
        )
        size = (4.6, 0.36 * rows + 1.2)
        figure = Figure(figsize=size)
        axes = figure.subplots()
        if isinstance(plot, Bars):
            _draw_bars(axes, plot)
        elif isinstance(plot, Differences):
            _draw_differences(axes, plot, looks)
        else:
            _draw_chart(axes, plot, looks)
        axes.set_title("\n".join(textwrap.wrap(plot.title, 60)), loc="left")
        # Cut to what is drawn: labels and legends stand outside of the axes.
        figure.savefig(path, dpi=200, bbox_inches="tight")


def _draw_bars(axes: Axes, plot: Bars) -> None:
    rows = range(len(plot.bars))
    left = [0.0] * len(plot.bars)
    for phase, name in enumerate(PHASE_NAMES):
        values = [bar.phases[phase] for bar in plot.bars]
        if not any(values):
            continue
        axes.barh(
            rows, values, left=left, height=0.6, label=name, color=LIGHT.phases[phase],
            hatch=_HATCHES[PHASE_HATCHES[phase]], edgecolor="white", linewidth=0.3,
        )  # fmt: skip
        left = [before + value for before, value in zip(left, values, strict=True)]
    for row, bar in enumerate(plot.bars):
        low, high = bar.step.ci_low * 1e3, bar.step.ci_high * 1e3
        if low < high:
            axes.errorbar(
                bar.total, row, xerr=[[bar.total - low], [high - bar.total]], color="black", capsize=2
            )
    axes.set_yticks(list(rows), [bar.label for bar in plot.bars])
    axes.invert_yaxis()
    axes.set_xlabel(plot.x_label)
    _legend(axes, 4)


def _draw_differences(axes: Axes, plot: Differences, looks: Looks) -> None:
    for number, row in enumerate(plot.rows):
        look = looks.of(row.colour)
        error = [[row.value - row.low], [row.high - row.value]]
        axes.errorbar(
            row.value, number, xerr=error, color=LIGHT.methods[look.colour], marker=_MARKERS[look.marker], capsize=2
        )  # fmt: skip
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.axvline(plot.limit, color="black", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(plot.rows)), [row.label for row in plot.rows])
    axes.invert_yaxis()
    axes.set_xlabel(plot.x_label)
    axes.grid(axis="x", alpha=0.3)


def _draw_chart(axes: Axes, plot: Chart, looks: Looks) -> None:
    for one in plot.series:
        look = looks.of(one.colour)
        colour = LIGHT.methods[look.colour]
        x, y = [point.x for point in one.points], [point.y for point in one.points]
        style: dict[str, Any] = {
            "color": colour,
            "marker": _MARKERS[look.marker],
            "markersize": 4,
            "linewidth": 1.2,
        }
        if one.dashed:
            style |= {"linestyle": "--", "markerfacecolor": "white"}
        if one.curve:
            axes.plot(*zip(*one.curve, strict=True), **{**style, "marker": None})
        axes.plot(x, y, label=one.label, **{**style, **({"linestyle": "none"} if one.curve else {})})
        below = [point.y - point.low for point in one.points]
        above = [point.high - point.y for point in one.points]
        if any(above) or any(below):
            axes.errorbar(x, y, yerr=[below, above], fmt="none", ecolor=colour, elinewidth=0.8)
        for beyond in filter(None, (one.formula, one.model)):
            axes.plot(*zip(*beyond, strict=True), color=colour, linestyle=":", linewidth=1.2)
    if plot.x_log:
        axes.set_xscale("log")
    if plot.y_log:
        axes.set_yscale("log")
        values = ticks(*axes.get_ylim(), log=True)
        axes.set_yticks(values, [tick_text(value) for value in values])
    # Named in full, since matplotlib's own of a logarithmic axis are formulas.
    x_ticks = plot.x_ticks or [(x, tick_text(x)) for x in ticks(*axes.get_xlim(), log=plot.x_log)]
    axes.set_xticks([value for value, _ in x_ticks], [text for _, text in x_ticks])
    axes.minorticks_off()
    if plot.reference is not None:
        axes.axhline(plot.reference, color="black", linewidth=0.8)
    for mark in plot.marks:
        colour = LIGHT.methods[looks.of(mark.colour).colour]
        axes.axvline(mark.x, color=colour, linestyle="--", linewidth=0.8)
        if mark.low is not None and mark.high is not None:
            axes.axvspan(mark.low, mark.high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(alpha=0.3)
    _legend(axes, 3)


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, frameon=False)
