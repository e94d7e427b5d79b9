"""Stacked bars: where a step's time goes."""

from __future__ import annotations

from collections.abc import Sequence

from netsim_ddp.report.charts.scales import Scale, around, fitted, width
from netsim_ddp.report.charts.shapes import PHASE_NAMES, Bars
from netsim_ddp.report.charts.style import PHASE_HATCHES, Looks
from netsim_ddp.report.charts.svg.parts import (
    FONT,
    LEFT,
    RIGHT,
    WIDTH,
    axis_below,
    framed,
    legend_places,
    marker,
    segment,
    whisker_across,
    written,
)
from netsim_ddp.report.labels import milliseconds
from netsim_ddp.report.markup import Markup

ROW, BAR = 34.0, 13.0


def draw_bars(plot: Bars, looks: Looks) -> Markup:
    bottom = ROW * len(plot.bars) + 2
    ends = [max(bar.step.median, bar.step.ci_high) * 1e3 for bar in plot.bars]
    scale = Scale(*around(ends, log=False, zero=True), LEFT, WIDTH - RIGHT)
    rows: list[Markup] = []
    for index, bar in enumerate(plot.bars):
        top = index * ROW + 16
        took = f"{milliseconds(bar.step)} ms"
        label = fitted(bar.label, WIDTH - LEFT - 24 - width(took, FONT), FONT)
        rows += [
            marker(looks.of(bar.colour), LEFT + 5, top - 7, hollow=bar.dashed),
            written(LEFT + 14, top - 4, label),
            written(WIDTH - RIGHT, top - 4, took, anchor="end"),
        ]
        at = 0.0
        for phase, value in enumerate(bar.phases):
            x, end = scale(at), scale(at + value)
            at += value
            if end - x >= 0.2:
                words = f"{bar.label}: {PHASE_NAMES[phase]} {value:.3g} ms"
                rows.append(segment(phase, PHASE_HATCHES[phase], x, top, end - x, BAR, words))
        rows.append(whisker_across(scale, bar.step.ci_low * 1e3, bar.step.ci_high * 1e3, top + BAR / 2))
    legend, height = _phase_legend([sum(bar.phases[i] for bar in plot.bars) > 0 for i in range(len(PHASE_NAMES))],
                                   bottom + 34)  # fmt: skip
    return framed(plot, height, axis_below(scale, bottom, plot.x_label), rows, legend)


def _phase_legend(used: Sequence[bool], top: float) -> tuple[list[Markup], float]:
    names = [name for name, shown in zip(PHASE_NAMES, used, strict=True) if shown]
    places, height = legend_places(names, top)
    drawn = []
    for name, (x, y) in zip(names, places, strict=True):
        phase = PHASE_NAMES.index(name)
        drawn += [segment(phase, PHASE_HATCHES[phase], x, y - 9, 13, BAR, name), written(x + 18, y, name)]
    return drawn, height
