"""What every plot is made of: its frame, words, markers, whiskers, a legend's places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netsim_ddp.report.charts.scales import Scale, apart, tick_text, ticks, width
from netsim_ddp.report.charts.shapes import Plot
from netsim_ddp.report.charts.style import Hatch, Look, Marker
from netsim_ddp.report.markup import Markup, number, tag

WIDTH = 360.0
FONT = 11.0
LEFT, RIGHT = 8.0, 10.0


def framed(plot: Plot, height: float, *children: Iterable[str]) -> Markup:
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


def written(
    x: float, y: float, text: str, *, anchor: str | None = None, dim: bool = False, over: bool = False
) -> Markup:
    """``over``: the lines below end around the letters."""
    kind = " ".join(name for name, wanted in (("dim", dim), ("over", over)) if wanted)
    return tag("text", text, x=x, y=y, text_anchor=anchor, class_=kind or None)


def axis_below(scale: Scale, bottom: float, label: str) -> list[Markup]:
    """Returns the lines of an x axis whose rows end at ``bottom``, its ticks' values and its ``label``."""
    places = [(scale(value), tick_text(value)) for value in ticks(scale.low, scale.high, log=False)]
    return [
        *(tag("line", class_="rule", x1=x, x2=x, y1=0.0, y2=bottom) for x, _ in places),
        *(
            written(x, bottom + 13, text, anchor="middle" if x > 14 else "start", dim=True)
            for x, text in apart(places, FONT)
        ),
        written(WIDTH - RIGHT, bottom + 25, label, anchor="end", dim=True),
    ]


def whisker_across(scale: Scale, low: float, high: float, y: float) -> Markup:
    if scale(high) - scale(low) < 0.5:
        return Markup("")
    path = f"M{number(scale(low))} {number(y)}H{number(scale(high))}m0-3v6M{number(scale(low))} {number(y - 3)}v6"
    return tag("path", class_="axis", d=path)


def legend_places(
    names: Sequence[str], top: float, sample: float = 18
) -> tuple[list[tuple[float, float]], float]:
    """Where each entry of a legend stands, and the height that all need."""
    x, y, places = LEFT, top + 11, []
    for name in names:
        room = sample + width(name, FONT) + 12
        if x > LEFT and x + room > WIDTH:
            x, y = LEFT, y + 16
        places.append((x, y))
        x += room
    return places, y + 8


def segment(colour: int, hatch: Hatch, x: float, y: float, long: float, high: float, words: str) -> Markup:
    """A piece of a bar; ``colour`` numbers ``Theme.phases``."""
    place = {"x": x, "y": y, "width": long, "height": high}
    filled = tag("rect", **place, class_=f"p{colour} seam")
    over = tag("rect", **place, fill=f"url(#hatch-{hatch})") if hatch != "none" and long > 2 else Markup("")
    return tag("g", tag("title", words), filled, over)


def path_through(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in places)


def marker(look: Look, x: float, y: float, *, hollow: bool) -> Markup:
    return tag("g", shape(look.marker, x, y, hollow=hollow), class_=f"m{look.colour}")


def shape(marker: Marker, x: float, y: float, *, hollow: bool) -> Markup:
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
