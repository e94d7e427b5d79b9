"""Plots as files: SVG as on the page, and the same converted to PDF or PNG by matplotlib, which only these two need."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from netsim_ddp.errors import EnvironmentFault, UsageError, cannot_write
from netsim_ddp.report.charts import Plot, all_plots, svg
from netsim_ddp.report.charts.style import LIGHT, Looks
from netsim_ddp.report.charts.svg.parts import FONT
from netsim_ddp.report.collection import Collection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.path import Path as Outline

FORMATS = ("svg", "pdf", "png")
_INCHES = 4.6
"""How wide a picture is: a little less than a page's text."""
_FONT_SHARE = 0.92
"""matplotlib's own font is wider than a browser's."""
_ANCHORS = {"start": "left", "middle": "center", "end": "right"}
_HATCHES = {
    "url(#hatch-up)": "////",
    "url(#hatch-down)": "\\\\\\\\",
    "url(#hatch-across)": "--",
    "url(#hatch-upright)": "||",
    "url(#hatch-dots)": "..",
}
_STYLES: dict[str, dict[str, Any]] = {
    "rule": {"edgecolor": LIGHT.rule, "linewidth": 0.6},
    "axis": {"edgecolor": LIGHT.muted, "linewidth": 0.8},
    "line": {"linewidth": 1.4, "joinstyle": "round"},
    "dot": {"linewidth": 1.1},
    "seam": {"edgecolor": LIGHT.ground, "linewidth": 0.5},
    "dash": {"linestyle": (0, (3.5, 2.2))},
    "formula": {"linestyle": (0, (1, 3)), "capstyle": "round"},
}
"""What the classes of ``charts.svg.CSS`` are to matplotlib, beside the colours of methods and phases."""
_COMMAND = re.compile(r"([MLHVmlhvz])([^MLHVmlhvz]*)")
_NUMBER = re.compile(r"-?[0-9.]+")


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
    looks = Looks(collection.colours, [entry.colour for entry in collection.entries if entry.dense])
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for plot in all_plots(collection):
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
    """Write the picture that :mod:`netsim_ddp.report.charts.svg` draws for a page, converted."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    picture = ElementTree.fromstring(svg.draw(plot, looks))
    width, height = (float(value) for value in picture.attrib["viewBox"].split()[2:])
    # A dollar sign in a method's name is no formula; letters stay letters in a PDF.
    with mpl.rc_context({"text.parse_math": False, "pdf.fonttype": 42, "hatch.linewidth": 0.6}):
        figure = Figure(figsize=(_INCHES, _INCHES * height / width))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0.0, width), ylim=(height, 0.0))
        axes.set_axis_off()
        _draw(axes, picture, LIGHT.ink, 72 * _INCHES / width)
        figure.savefig(path, dpi=200)


def _draw(axes: Axes, parent: ElementTree.Element, colour: str, scale: float) -> None:
    """Draw what stands inside ``parent``; ``colour`` is its current colour, ``scale`` the points of one unit."""
    from matplotlib import patheffects
    from matplotlib.patches import PathPatch

    for element in parent:
        classes = element.get("class", "").split()
        numbered = {name[:1]: int(name[1:]) for name in classes if name[1:].isdigit()}
        current = LIGHT.methods[numbered["m"]] if "m" in numbered else colour
        if element.tag == "g":
            _draw(axes, element, current, scale)
        elif element.tag == "text":
            text = axes.text(
                float(element.attrib["x"]),
                float(element.attrib["y"]),
                element.text or "",
                fontsize=_FONT_SHARE * FONT * scale,
                color=LIGHT.muted if "dim" in classes else LIGHT.ink,
                ha=_ANCHORS[element.get("text-anchor", "start")],
            )
            if "over" in classes:
                text.set_path_effects([patheffects.withStroke(linewidth=5 * scale, foreground=LIGHT.ground)])
        elif element.tag not in ("title", "desc"):
            style: dict[str, Any] = {"fill": False, "edgecolor": current, "linewidth": scale}
            for name in classes:
                style |= _STYLES.get(name, {})
            if "dot" in classes:
                style |= {"fill": True, "facecolor": LIGHT.ground if "hollow" in classes else current}
            if "p" in numbered:
                style |= {"fill": True, "facecolor": LIGHT.phases[numbered["p"]]}
            if hatch := _HATCHES.get(element.get("fill", "")):
                style |= {"hatch": hatch, "edgecolor": LIGHT.ground, "linewidth": 0.0}
            axes.add_patch(PathPatch(_outline(element), **style))


def _outline(element: ElementTree.Element) -> Outline:
    """Returns the outline of one of the shapes that plots are made of: rect, line, circle and path."""
    from matplotlib.path import Path as Outline

    def values(*names: str) -> list[float]:
        return [float(element.attrib[name]) for name in names]

    if element.tag == "rect":
        x, y, width, height = values("x", "y", "width", "height")
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
        return Outline(corners, closed=True)
    if element.tag == "line":
        return Outline([values("x1", "y1"), values("x2", "y2")])
    if element.tag == "circle":
        x, y, radius = values("cx", "cy", "r")
        return Outline.circle((x, y), radius)
    x = y = 0.0
    points: list[tuple[float, float]] = []
    codes: list[int] = []
    for command, rest in _COMMAND.findall(element.attrib["d"]):
        kind, numbers = command.lower(), [float(number) for number in _NUMBER.findall(rest)]
        if kind == "z":
            points.append((x, y))
            codes.append(int(Outline.CLOSEPOLY))
        across = numbers if kind == "h" else [] if kind == "v" else numbers[::2]
        up = numbers if kind == "v" else [] if kind == "h" else numbers[1::2]
        for dx, dy in zip_longest(across, up):
            start_x, start_y = (x, y) if command.islower() else (0.0, 0.0)
            x, y = x if dx is None else start_x + dx, y if dy is None else start_y + dy
            points.append((x, y))
            codes.append(int(Outline.MOVETO if kind == "m" else Outline.LINETO))
    return Outline(points, codes)
