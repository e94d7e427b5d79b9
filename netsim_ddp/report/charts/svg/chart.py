"""Curves, with their intervals and break-evens."""

from __future__ import annotations

from collections.abc import Sequence

from netsim_ddp.report.charts.scales import Scale, apart, around, fitted, tick_text, ticks, width
from netsim_ddp.report.charts.shapes import Chart, Point, Series
from netsim_ddp.report.charts.style import Look, Looks
from netsim_ddp.report.charts.svg.parts import (
    FONT,
    LEFT,
    RIGHT,
    WIDTH,
    framed,
    legend_places,
    path_through,
    shape,
    written,
)
from netsim_ddp.report.markup import Markup, number, tag

TOP, HEIGHT = 20.0, 190.0


def draw_chart(plot: Chart, looks: Looks) -> Markup:
    points = [point for one in plot.series for point in one.points]
    beyond = [place for one in plot.series for place in (*one.formula, *one.curve, *one.model)]
    ys = [value for point in points for value in (point.low, point.high)] + [y for _, y in beyond]
    ys += [plot.reference] if plot.reference is not None else []
    xs = [point.x for point in points] + [x for x, _ in beyond]
    y_low, y_high = around(ys, log=plot.y_log)
    y_places = ticks(y_low, y_high, log=plot.y_log)
    left = LEFT + max((width(tick_text(value), FONT) for value in y_places), default=0.0) + 4
    bottom = TOP + HEIGHT
    across = Scale(*around(xs, log=plot.x_log), left, WIDTH - RIGHT, log=plot.x_log)
    up = Scale(y_low, y_high, bottom, TOP, log=plot.y_log)
    x_places = plot.x_ticks or [
        (value, tick_text(value)) for value in ticks(across.low, across.high, log=plot.x_log)
    ]
    frame = [written(LEFT, 11, fitted(plot.y_label, WIDTH - LEFT, FONT), dim=True)]
    for value in y_places:
        frame += [
            tag("line", class_="rule", x1=left, x2=WIDTH - RIGHT, y1=up(value), y2=up(value)),
            written(left - 4, up(value) + 4, tick_text(value), anchor="end", dim=True),
        ]
    for x, text in apart([(across(value), text) for value, text in x_places], FONT):
        frame += [
            tag("line", class_="rule", x1=x, x2=x, y1=TOP, y2=bottom),
            written(min(x, WIDTH - width(text, FONT) / 2), bottom + 14, text, anchor="middle", dim=True),
        ]
    axes = f"M{number(left)} {number(TOP)}V{number(bottom)}H{number(WIDTH - RIGHT)}"
    frame += [
        tag("path", class_="axis", d=axes),
        written(WIDTH - RIGHT, bottom + 27, plot.x_label, anchor="end", dim=True),
    ]
    if plot.reference is not None:
        y = up(plot.reference)
        frame.append(tag("line", class_="axis", x1=left, x2=WIDTH - RIGHT, y1=y, y2=y))
    curves = [_curve(one, looks.of(one.colour), across, up) for one in plot.series]
    marks = [
        _break_even(
            looks.of(mark.colour), across, mark.x, mark.low, mark.high, up(plot.reference or 1.0), bottom
        )
        for mark in plot.marks
    ]
    legend, height = _method_legend(plot.series, looks, bottom + 33)
    return framed(plot, height, frame, marks, curves, legend)


def _curve(one: Series, look: Look, across: Scale, up: Scale) -> Markup:
    dash = " dash" if one.dashed else ""
    drawn: list[Markup] = []
    if len(one.points) > 1:
        through = one.curve or [(point.x, point.y) for point in one.points]
        drawn.append(
            tag("path", class_=f"line{dash}", d=path_through([(across(x), up(y)) for x, y in through]))
        )
    drawn += [
        tag("path", class_="line formula", d=path_through([(across(x), up(y)) for x, y in beyond]))
        for beyond in (one.formula, one.model)
        if beyond
    ]
    drawn += [_point(one, point, look, across(point.x), up) for point in one.points]
    return tag("g", drawn, class_=f"m{look.colour}")


def _point(one: Series, point: Point, look: Look, x: float, up: Scale) -> Markup:
    whisker = Markup("")
    if up(point.low) - up(point.high) > 1:
        low, high = number(up(point.low)), number(up(point.high))
        whisker = tag("path", class_="line", d=f"M{number(x)} {low}V{high}")
    words = f"{one.label}: {point.y:.4g} at {point.x:.4g}"
    if point.low < point.high:
        words += f" ({point.low:.4g} to {point.high:.4g})"
    return tag("g", tag("title", words), whisker, shape(look.marker, x, up(point.y), hollow=one.dashed))


def _break_even(
    look: Look, across: Scale, x: float, low: float | None, high: float | None, y: float, bottom: float
) -> Markup:
    """A stem from the line of equal speed down to the axis, and the interval along that line."""
    at = number(across(x))
    drawn = [tag("path", class_="line dash", d=f"M{at} {number(y)}V{number(bottom)}")]
    if low is not None and high is not None:
        ends = number(across(low)), number(across(high))
        path = f"M{ends[0]} {number(y)}H{ends[1]}m0-4v8M{ends[0]} {number(y - 4)}v8"
        drawn.append(tag("path", class_="line", d=path))
    drawn.append(tag("path", class_="dot", d=f"M{at} {number(bottom)}l-4 7h8z"))
    return tag("g", tag("title", f"break-even at {x:.3g} Mbit/s"), drawn, class_=f"m{look.colour}")


def _method_legend(series: Sequence[Series], looks: Looks, top: float) -> tuple[list[Markup], float]:
    places, height = legend_places([one.label for one in series], top, sample=26)
    drawn = []
    for one, (x, y) in zip(series, places, strict=True):
        look = looks.of(one.colour)
        dash = " dash" if one.dashed else ""
        line = tag("path", class_=f"line{dash}", d=f"M{number(x)} {number(y - 4)}h22")
        marker = shape(look.marker, x + 11, y - 4, hollow=one.dashed)
        label = written(x + 26, y, fitted(one.label, WIDTH - x - 26, FONT))
        drawn += [tag("g", line, marker, class_=f"m{look.colour}"), label]
    return drawn, height
