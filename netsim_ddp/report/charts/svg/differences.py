"""A row per method: how far it is from dense, and the interval of that."""

from __future__ import annotations

from netsim_ddp.report.charts.scales import Scale, around, fitted, width
from netsim_ddp.report.charts.shapes import Differences
from netsim_ddp.report.charts.style import Looks
from netsim_ddp.report.charts.svg.parts import (
    FONT,
    LEFT,
    RIGHT,
    WIDTH,
    axis_below,
    framed,
    marker,
    whisker_across,
    written,
)
from netsim_ddp.report.markup import Markup, tag

ROW, AT = 30.0, 21.0


def draw_differences(plot: Differences, looks: Looks) -> Markup:
    bottom = ROW * len(plot.rows) + 2
    ends = [value for row in plot.rows for value in (row.low, row.high)]
    scale = Scale(*around([*ends, 0.0, plot.limit], log=False), LEFT, WIDTH - RIGHT)
    drawn = axis_below(scale, bottom, plot.x_label)
    zero, limit = scale(0.0), scale(plot.limit)
    drawn += [
        tag("line", class_="axis", x1=zero, x2=zero, y1=0.0, y2=bottom),
        tag("line", class_="axis dash", x1=limit, x2=limit, y1=0.0, y2=bottom),
    ]
    for index, row in enumerate(plot.rows):
        top, look = index * ROW, looks.of(row.colour)
        label = fitted(row.label, WIDTH - LEFT - RIGHT - 10 - width(row.text, FONT), FONT)
        dot = marker(look, scale(row.value), top + AT, hollow=False)
        drawn += [
            written(LEFT, top + 12, label, over=True),
            written(WIDTH - RIGHT, top + 12, row.text, anchor="end", over=True),
            whisker_across(scale, row.low, row.high, top + AT),
            tag("g", tag("title", f"{row.label}: {row.text} points"), dot),
        ]
    return framed(plot, bottom + 31, drawn)
