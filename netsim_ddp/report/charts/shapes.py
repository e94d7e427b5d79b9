"""What a plot is made of, and what all of them share: series by method, panels of what may stand on one curve.

Nothing here knows how it is drawn; :mod:`netsim_ddp.report.charts.svg` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from netsim_ddp.report.collection import Collection, Entry, grouped
from netsim_ddp.report.labels import milliseconds
from netsim_ddp.results.identity import CurveAxis, curve_rules, curve_setting
from netsim_ddp.results.labels import model_label, workers_label
from netsim_ddp.results.record import Interval
from netsim_ddp.results.summary import PHASES

PHASE_NAMES = tuple(name.removesuffix("_s") for name in PHASES)


@dataclass(frozen=True)
class Bar:
    """One method's step: ``phases`` in ms, in the order of ``PHASE_NAMES``; they add up to the median of ``step``."""

    label: str
    colour: str
    dashed: bool
    phases: tuple[float, ...]
    step: Interval


@dataclass(frozen=True)
class Bars:
    """Stacked bars, one per method of one block."""

    key: str
    title: str
    bars: tuple[Bar, ...]
    x_label: str = "ms per step"

    @property
    def text(self) -> str:
        """The plot in words, for those who do not see it."""
        rows = "; ".join(f"{bar.label} {milliseconds(bar.step)} ms" for bar in self.bars)
        return f"Step time by phase, {self.title}: {rows}."


@dataclass(frozen=True)
class Point:
    """A measured value with its interval; ``low == high == y`` where there is none."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """One method's points, ascending in x. ``formula``: what it would be beyond what was measured. ``curve``: what runs
    through the points instead of straight lines; ``model``: its continuation where nothing was measured."""

    label: str
    colour: str
    dashed: bool
    points: tuple[Point, ...]
    formula: tuple[tuple[float, float], ...] = ()
    curve: tuple[tuple[float, float], ...] = ()
    model: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Mark:
    """A break-even on the x axis and its interval, None where a single run shows no noise."""

    colour: str
    x: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Chart:
    """Curves over one axis. ``notes`` are sentences that belong under it."""

    key: str
    kind: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    x_log: bool = False
    y_log: bool = False
    reference: float | None = None
    marks: tuple[Mark, ...] = ()
    notes: tuple[str, ...] = ()
    x_ticks: tuple[tuple[float, str], ...] = ()
    """Where the x axis has a label, and what it says; empty: round numbers."""
    ends: tuple[tuple[str, str], ...] = ()
    """Of a chart over bandwidth: every method, and up to where it pays."""

    @property
    def text(self) -> str:
        """The plot in words, for those who do not see it."""
        rows = [f"{one.label} from {one.points[0].y:.3g} to {one.points[-1].y:.3g}" for one in self.series]
        return f"{self.y_label} over {self.x_label}, {self.title}: {'; '.join(rows)}."


@dataclass(frozen=True)
class Difference:
    """One method's distance to dense, which ``text`` says; ``low == high == value`` where there is no interval."""

    label: str
    colour: str
    value: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Differences:
    """A row per method of one block. ``limit`` is the distance that still counts as none that matters."""

    key: str
    kind: str
    title: str
    rows: tuple[Difference, ...]
    x_label: str
    limit: float
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The plot in words, for those who do not see it."""
        rows = "; ".join(f"{row.label} {row.text}" for row in self.rows)
        return f"{self.kind}, {self.title}: {rows}."


@dataclass(frozen=True)
class Stretch:
    """From ``begin`` to ``end`` in ms; ``part`` is drawn by its name, ``words`` say what it is."""

    part: str
    begin: float
    end: float
    words: str


@dataclass(frozen=True)
class Lane:
    """What happened in one row, and a moment that is marked in it."""

    label: str
    stretches: tuple[Stretch, ...]
    mark: float | None = None


@dataclass(frozen=True)
class Timeline:
    """One step, lane by lane. ``parts``: what its stretches can be, in the order of the legend, with the name of each;
    ``text``: the plot in words, for those who do not see it."""

    key: str
    title: str
    lanes: tuple[Lane, ...]
    parts: tuple[tuple[str, str], ...]
    text: str
    x_label: str = "ms since the step began"
    notes: tuple[str, ...] = ()


Plot = Bars | Chart | Differences | Timeline


def series(entry: Entry, points: Iterable[Point]) -> Series:
    ordered = tuple(sorted(points, key=lambda point: point.x))
    return Series(entry.label, entry.colour, entry.cell.overlap, ordered)


def by_label(entries: Iterable[Entry]) -> list[list[Entry]]:
    return grouped(entries, lambda entry: entry.label)


def panels_of(collection: Collection, *, without: CurveAxis) -> list[list[Entry]]:
    """Entries that share everything but ``without``. Files join one panel only where none repeats what another has."""

    def setting(entry: Entry) -> object:
        return curve_setting(entry.cell, without), *curve_rules(entry.cell, entry.source.result).items()

    found = []
    for panel in grouped(collection.entries, setting):
        by_file = grouped(panel, lambda entry: id(entry.source))
        positions = [{_position(entry, without) for entry in entries} for entries in by_file]
        shared = len(set().union(*positions)) < sum(len(each) for each in positions)
        found += by_file if shared else [panel]
    return found


def _position(entry: Entry, without: CurveAxis) -> object:
    return entry.cell.bandwidth_bps if without == "bandwidth" else entry.cell.workers


def panel_title(entry: Entry, *, workers: bool) -> str:
    """Returns what all entries of one plot share: the model, the workers, how steps ran and on which link."""
    cell = entry.cell
    counts = [workers_label(cell.workers)] if workers else []
    return ", ".join([model_label(cell), *counts, cell.execution, cell.link.mechanism])


def charged(entries: Iterable[Entry]) -> bool:
    """Whether bytes come from the bucket's arithmetic."""
    return any(entry.cell.link.mechanism == "bucket" for entry in entries)
