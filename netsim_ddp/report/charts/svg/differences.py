"""A row per method: how far it is from dense, and the interval of that."""

from __future__ import annotations

from netsim_ddp.report.charts.scales import Scale, apart, around, fitted, tick_text, ticks, width
from netsim_ddp.report.charts.shapes import Differences
from netsim_ddp.report.charts.style import Looks
from netsim_ddp.report.charts.svg.parts import (
    FONT,
    LEFT,
    RIGHT,
    WIDTH,
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
    places = [(scale(value), tick_text(value)) for value in ticks(scale.low, scale.high, log=False)]
    drawn = [tag("line", class_="rule", x1=x, x2=x, y1=0.0, y2=bottom) for x, _ in places]
    zero, limit = scale(0.0), scale(plot.limit)
    drawn.append(tag("line", class_="axis", x1=zero, x2=zero, y1=0.0, y2=bottom))
    drawn.append(tag("line", class_="axis dash", x1=limit, x2=limit, y1=0.0, y2=bottom))
    for x, name in apart(places, FONT):
        drawn.append(written(x, bottom + 13, name, anchor="middle" if x > 14 else "start", dim=True))
    drawn.append(written(WIDTH - RIGHT, bottom + 25, plot.x_label, anchor="end", dim=True))
    for index, row in enumerate(plot.rows):
        top, look = index * ROW, looks.of(row.colour)
        label = fitted(row.label, WIDTH - LEFT - RIGHT - 10 - width(row.text, FONT), FONT)
        drawn.append(written(LEFT, top + 12, label, over=True))
        drawn.append(written(WIDTH - RIGHT, top + 12, row.text, anchor="end", over=True))
        drawn.append(whisker_across(scale, row.low, row.high, top + AT))
        dot = marker(look, scale(row.value), top + AT, hollow=False)
        drawn.append(tag("g", tag("title", f"{row.label}: {row.text} points"), dot))
    return framed(plot, bottom + 31, drawn)
