"""Plots as SVG: for a page, whose style sheet gives the colours of its light or dark ground, or as a file of its own.

Drawn 360 units wide, so that a telephone shows its letters at their size. No library: a page of thirty plots is
built in a few hundredths of a second and needs no installation.
"""

from __future__ import annotations

from netsim_ddp.report.charts.shapes import Bars, Differences, Plot, Timeline
from netsim_ddp.report.charts.style import LIGHT, Looks
from netsim_ddp.report.charts.svg.bars import draw_bars
from netsim_ddp.report.charts.svg.chart import draw_chart
from netsim_ddp.report.charts.svg.differences import draw_differences
from netsim_ddp.report.charts.svg.parts import FONT
from netsim_ddp.report.charts.svg.timeline import draw_timeline
from netsim_ddp.report.markup import Markup, tag

CSS = (
    f"svg.plot{{font:{FONT:g}px system-ui,sans-serif;fill:var(--ink);width:100%;height:auto;display:block}}"
    ".plot .rule{stroke:var(--rule)}.plot .axis{stroke:var(--muted);fill:none}.plot .dim{fill:var(--muted)}"
    ".plot .over{paint-order:stroke;stroke:var(--ground);stroke-width:5px;stroke-linejoin:round}"
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
    if isinstance(plot, Bars):
        return draw_bars(plot, looks)
    if isinstance(plot, Timeline):
        return draw_timeline(plot)
    return draw_differences(plot, looks) if isinstance(plot, Differences) else draw_chart(plot, looks)


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
