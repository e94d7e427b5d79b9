"""Plots as SVG: for a page, whose style sheet gives the colours of its light or dark ground, or as a file of its own.

Drawn 360 units wide, so that a telephone shows its letters at their size. No library: a page of thirty plots is
built in a few hundredths of a second and needs no installation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netsim_ddp.report.markup import Markup, number, tag
from netsim_ddp.report.plots.shapes import PHASE_NAMES, Bars, Chart, Plot, Point, Series
from netsim_ddp.report.scales import Scale, apart, around, fitted, tick_text, ticks, width
from netsim_ddp.report.style import LIGHT, PHASE_HATCHES, Look, Looks, Marker
from netsim_ddp.report.wording import milliseconds

WIDTH = 360.0
FONT = 11.0
_LEFT, _RIGHT, _TOP, _HEIGHT = 8.0, 10.0, 20.0, 190.0
_ROW, _BAR = 34.0, 13.0

CSS = (
    f"svg.plot{{font:{FONT:g}px system-ui,sans-serif;fill:var(--ink);width:100%;height:auto;display:block}}"
    ".plot .rule{stroke:var(--rule)}.plot .axis{stroke:var(--muted);fill:none}.plot .dim{fill:var(--muted)}"
    ".plot .line{stroke:currentColor;fill:none;stroke-width:1.8;stroke-linejoin:round}"
    ".plot .dash{stroke-dasharray:5 3}.plot .formula{stroke-dasharray:1 3;stroke-linecap:round}"
    ".plot .dot{fill:currentColor;stroke:currentColor;stroke-width:1.4}.plot .hollow{fill:var(--ground)}"
    ".plot .seam{stroke:var(--ground);stroke-width:.7}"
    + "".join(f".plot .p{index}{{fill:var(--p{index})}}" for index in range(len(LIGHT.phases)))
    + "".join(f".plot .m{index}{{color:var(--m{index})}}" for index in range(len(LIGHT.methods)))
)
"""What the plots need of a style sheet, beside a theme's variables."""


def draw(plot: Plot, looks: Looks) -> Markup:
    """``plot`` for a page with :data:`CSS`, :func:`hatches` and a theme."""
    return _bars(plot, looks) if isinstance(plot, Bars) else _chart(plot, looks)


def standalone(plot: Plot, looks: Looks) -> str:
    """``plot`` as a file, on white."""
    drawn = draw(plot, looks)
    style = tag("style", Markup(f"svg{{{LIGHT.variables()}}}{CSS}"))
    ground = tag("rect", width="100%", height="100%", fill=LIGHT.ground)
    start, end = drawn.index(">") + 1, len(drawn) - len("</svg>")
    head = drawn[: start - 1] + ' xmlns="http://www.w3.org/2000/svg">'
    return head + style + ground + hatches() + drawn[start:end] + "</svg>\n"


def hatches() -> Markup:
    """The patterns that tell phases apart without colour; once in a page."""
    paths = {
        "up": "M-1 1l2-2M0 6l6-6M5 7l2-2",
        "down": "M-1 5l2 2M0 0l6 6M5-1l2 2",
        "across": "M0 3h6",
        "upright": "M3 0v6",
        "dots": "M2 3h2",
    }
    return tag(
        "defs",
        (
            tag(
                "pattern",
                tag("path", d=path, stroke="var(--ground)", stroke_width="1.1"),
                id=f"hatch-{name}",
                width="6",
                height="6",
                patternUnits="userSpaceOnUse",
            )
            for name, path in paths.items()
        ),
    )


def _frame(plot: Plot, height: float, *children: Iterable[str]) -> Markup:
    return tag(
        "svg",
        tag("title", plot.title),
        tag("desc", plot.text),
        *children,
        class_="plot",
        viewBox=f"0 0 {number(WIDTH)} {number(height)}",
        role="img",
        aria_label=plot.text,
    )


def _text(x: float, y: float, text: str, *, anchor: str | None = None, dim: bool = False) -> Markup:
    return tag("text", text, x=x, y=y, text_anchor=anchor, class_="dim" if dim else None)


# Bars


def _bars(plot: Bars, looks: Looks) -> Markup:
    bottom = _ROW * len(plot.bars) + 2
    ends = [max(bar.total, bar.step.ci_high * 1e3) for bar in plot.bars]
    low, high = around(ends, log=False, zero=True)
    scale = Scale(low, high, _LEFT, WIDTH - _RIGHT)
    places = [(scale(value), tick_text(value)) for value in ticks(low, high, log=False)]
    grid = [tag("line", class_="rule", x1=x, x2=x, y1=0.0, y2=bottom) for x, _ in places]
    labels = [
        _text(x, bottom + 13, text, anchor="middle" if x > 14 else "start", dim=True)
        for x, text in apart(places, FONT)
    ]
    rows: list[Markup] = []
    for index, bar in enumerate(plot.bars):
        top = index * _ROW + 16
        look = looks.of(bar.colour)
        took = f"{milliseconds(bar.step)} ms"
        label = fitted(bar.label, WIDTH - _LEFT - 24 - width(took, FONT), FONT)
        rows.append(_marker(look, _LEFT + 5, top - 7, hollow=bar.dashed))
        rows.append(_text(_LEFT + 14, top - 4, label))
        rows.append(_text(WIDTH - _RIGHT, top - 4, took, anchor="end"))
        at = 0.0
        for phase, value in enumerate(bar.phases):
            x, end = scale(at), scale(at + value)
            at += value
            if end - x >= 0.2:
                rows.append(
                    _segment(phase, x, top, end - x, f"{bar.label}: {PHASE_NAMES[phase]} {value:.3g} ms")
                )
        rows.append(_whisker_across(scale, bar.step.ci_low * 1e3, bar.step.ci_high * 1e3, top + _BAR / 2))
    legend, height = _phase_legend([sum(bar.phases[i] for bar in plot.bars) > 0 for i in range(len(PHASE_NAMES))],
                                   bottom + 34)  # fmt: skip
    axis = _text(WIDTH - _RIGHT, bottom + 25, plot.x_label, anchor="end", dim=True)
    return _frame(plot, height, grid, labels, [axis], rows, legend)


def _segment(phase: int, x: float, y: float, long: float, words: str) -> Markup:
    place = {"x": x, "y": y, "width": long, "height": _BAR}
    filled = tag("rect", **place, class_=f"p{phase} seam")
    hatch = PHASE_HATCHES[phase]
    over = tag("rect", **place, fill=f"url(#hatch-{hatch})") if hatch != "none" and long > 2 else Markup("")
    return tag("g", tag("title", words), filled, over)


def _whisker_across(scale: Scale, low: float, high: float, y: float) -> Markup:
    if scale(high) - scale(low) < 0.5:
        return Markup("")
    path = f"M{number(scale(low))} {number(y)}H{number(scale(high))}m0-3v6M{number(scale(low))} {number(y - 3)}v6"
    return tag("path", class_="axis", d=path)


def _phase_legend(used: Sequence[bool], top: float) -> tuple[list[Markup], float]:
    names = [name for name, shown in zip(PHASE_NAMES, used, strict=True) if shown]
    places, height = _rows(names, top)
    drawn = []
    for name, (x, y) in zip(names, places, strict=True):
        phase = PHASE_NAMES.index(name)
        drawn += [_segment(phase, x, y - 9, 13, name), _text(x + 18, y, name)]
    return drawn, height


def _rows(names: Sequence[str], top: float, sample: float = 18) -> tuple[list[tuple[float, float]], float]:
    """Where each entry of a legend stands, and the height that all need."""
    x, y, places = _LEFT, top + 11, []
    for name in names:
        room = sample + width(name, FONT) + 12
        if x > _LEFT and x + room > WIDTH:
            x, y = _LEFT, y + 16
        places.append((x, y))
        x += room
    return places, y + 8


# Curves


def _chart(plot: Chart, looks: Looks) -> Markup:
    points = [point for one in plot.series for point in one.points]
    beyond = [place for one in plot.series for place in one.formula]
    ys = [value for point in points for value in (point.low, point.high)] + [y for _, y in beyond]
    ys += [plot.reference] if plot.reference is not None else []
    xs = [point.x for point in points] + [x for x, _ in beyond]
    y_low, y_high = around(ys, log=plot.y_log)
    y_places = ticks(y_low, y_high, log=plot.y_log)
    left = _LEFT + max((width(tick_text(value), FONT) for value in y_places), default=0.0) + 4
    bottom = _TOP + _HEIGHT
    across = Scale(*around(xs, log=plot.x_log), left, WIDTH - _RIGHT, log=plot.x_log)
    up = Scale(y_low, y_high, bottom, _TOP, log=plot.y_log)
    x_places = plot.x_ticks or [
        (value, tick_text(value)) for value in ticks(across.low, across.high, log=plot.x_log)
    ]
    frame = [_text(_LEFT, 11, fitted(plot.y_label, WIDTH - _LEFT, FONT), dim=True)]
    for value in y_places:
        frame.append(tag("line", class_="rule", x1=left, x2=WIDTH - _RIGHT, y1=up(value), y2=up(value)))
        frame.append(_text(left - 4, up(value) + 4, tick_text(value), anchor="end", dim=True))
    for x, text in apart([(across(value), text) for value, text in x_places], FONT):
        frame.append(tag("line", class_="rule", x1=x, x2=x, y1=_TOP, y2=bottom))
        frame.append(
            _text(min(x, WIDTH - width(text, FONT) / 2), bottom + 14, text, anchor="middle", dim=True)
        )
    frame.append(
        tag(
            "path",
            class_="axis",
            d=f"M{number(left)} {number(_TOP)}V{number(bottom)}H{number(WIDTH - _RIGHT)}",
        )
    )
    frame.append(_text(WIDTH - _RIGHT, bottom + 27, plot.x_label, anchor="end", dim=True))
    if plot.reference is not None:
        y = up(plot.reference)
        frame.append(tag("line", class_="axis", x1=left, x2=WIDTH - _RIGHT, y1=y, y2=y))
    curves = [_curve(one, looks.of(one.colour), across, up) for one in plot.series]
    marks = [
        _break_even(
            looks.of(mark.colour), across, mark.x, mark.low, mark.high, up(plot.reference or 1.0), bottom
        )
        for mark in plot.marks
    ]
    legend, height = _method_legend(plot.series, looks, bottom + 33)
    return _frame(plot, height, frame, marks, curves, legend)


def _curve(one: Series, look: Look, across: Scale, up: Scale) -> Markup:
    dash = " dash" if one.dashed else ""
    drawn: list[Markup] = []
    if len(one.points) > 1 and one.line:
        drawn.append(tag("path", class_=f"line{dash}", d=_path([(across(p.x), up(p.y)) for p in one.points])))
    if one.formula:
        drawn.append(
            tag("path", class_="line formula", d=_path([(across(x), up(y)) for x, y in one.formula]))
        )
    for point in one.points:
        drawn.append(_point(one, point, look, across(point.x), up))
    return tag("g", drawn, class_=f"m{look.colour}")


def _point(one: Series, point: Point, look: Look, x: float, up: Scale) -> Markup:
    whisker = Markup("")
    if up(point.low) - up(point.high) > 1:
        low, high = number(up(point.low)), number(up(point.high))
        whisker = tag("path", class_="line", d=f"M{number(x)} {low}V{high}")
    words = f"{one.label}: {point.y:.4g} at {point.x:.4g}"
    if point.low < point.high:
        words += f" ({point.low:.4g} to {point.high:.4g})"
    return tag("g", tag("title", words), whisker, _shape(look.marker, x, up(point.y), hollow=one.dashed))


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
    places, height = _rows([one.label for one in series], top, sample=26)
    drawn = []
    for one, (x, y) in zip(series, places, strict=True):
        look = looks.of(one.colour)
        dash = " dash" if one.dashed else ""
        line = tag("path", class_=f"line{dash}", d=f"M{number(x)} {number(y - 4)}h22")
        marker = _shape(look.marker, x + 11, y - 4, hollow=one.dashed)
        label = _text(x + 26, y, fitted(one.label, WIDTH - x - 26, FONT))
        drawn += [tag("g", line, marker, class_=f"m{look.colour}"), label]
    return drawn, height


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in places)


def _marker(look: Look, x: float, y: float, *, hollow: bool) -> Markup:
    return tag("g", _shape(look.marker, x, y, hollow=hollow), class_=f"m{look.colour}")


def _shape(marker: Marker, x: float, y: float, *, hollow: bool) -> Markup:
    """Hollow where communication overlaps the backward pass, as the line is then dashed."""
    kind = "dot hollow" if hollow else "dot"
    if marker == "circle":
        return tag("circle", class_=kind, cx=x, cy=y, r=3.2)
    start = f"M{number(x)} {number(y)}"
    steps = {
        "square": "m-3-3h6v6h-6z",
        "triangle": "m0-4l4 7h-8z",
        "diamond": "m0-4.2l4.2 4.2l-4.2 4.2l-4.2-4.2z",
        "down": "m0 4l4-7h-8z",
    }
    return tag("path", class_=kind, d=start + steps[marker])
