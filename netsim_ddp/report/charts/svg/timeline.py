"""One step as lanes over time: its passes, and each bucket from the moment it was full."""

from __future__ import annotations

from netsim_ddp.report.charts.scales import Scale, around, width
from netsim_ddp.report.charts.shapes import Timeline
from netsim_ddp.report.charts.style import Hatch
from netsim_ddp.report.charts.svg.parts import (
    FONT,
    LEFT,
    RIGHT,
    WIDTH,
    axis_below,
    framed,
    legend_places,
    segment,
    shape,
    written,
)
from netsim_ddp.report.markup import Markup, tag

ROW, BAR = 18.0, 12.0
LOOKS: dict[str, tuple[int, Hatch]] = {
    "data": (6, "dots"),
    "forward": (0, "none"),
    "backward": (2, "none"),
    "wait": (4, "down"),
    "exchange": (3, "upright"),
    "other": (1, "up"),
    "optimizer": (5, "across"),
}
"""Of each part of a step the number of its colour among ``Theme.phases``, and what tells it apart without colour."""


def draw_timeline(plot: Timeline) -> Markup:
    bottom = ROW * len(plot.lanes) + 2
    left = LEFT + max(width(lane.label, FONT) for lane in plot.lanes) + 6
    ends = [stretch.end for lane in plot.lanes for stretch in lane.stretches]
    scale = Scale(*around([*ends, 1e-3], log=False, zero=True), left, WIDTH - RIGHT)
    rows: list[Markup] = []
    for index, lane in enumerate(plot.lanes):
        top = index * ROW + 3
        rows.append(written(left - 6, top + BAR - 2, lane.label, anchor="end"))
        if lane.mark is not None:  # below what begins there, which may be short
            rows.append(shape("diamond", scale(lane.mark), top + BAR / 2, hollow=False))
        for one in lane.stretches:
            long = max(scale(one.end) - scale(one.begin), 0.3)
            rows.append(segment(*LOOKS[one.part], scale(one.begin), top, long, BAR, one.words))
    places, height = legend_places([name for _, name in plot.parts], bottom + 34)
    legend = [
        tag("g", segment(*LOOKS[part], x, y - 9, 13, BAR, name), written(x + 18, y, name))
        for (part, name), (x, y) in zip(plot.parts, places, strict=True)
    ]
    return framed(plot, height, axis_below(scale, bottom, plot.x_label), rows, legend)
