"""What a comparison found, as a file: times, scores and figures that do not vary, of every cell of both sides."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from netsim_ddp.results.fields import Seconds, Strict, Tool
from netsim_ddp.results.verdicts import Verdict


class Ratio(Strict):
    """new / base of two medians with its interval; ``level`` is how often such an interval holds the truth."""

    value: float
    low: float
    high: float
    level: float


class TimeRow(Strict):
    """One time of one cell. ``fails``: it is slower by more than the limit that was set."""

    figure: str
    verdict: Verdict
    base_s: Seconds
    new_s: Seconds
    base_runs: int
    new_runs: int
    ratio: Ratio
    p: float | None
    """The rank test's own."""
    adjusted_p: float | None = None
    """After Holm's correction over all times and scores of the comparison: a claim needs at most ``alpha``."""
    fails: bool = False
    why: str = ""
    detectable: float | None = None
    """The smallest change that these runs would have shown, as a fraction."""
    repeats: int | None = None
    """Repeats of each side that would decide."""


class FigureRow(Strict):
    """One figure that does not vary. ``tolerance`` is the share by which it may differ."""

    figure: str
    base: float | str
    new: float | str
    tolerance: float
    changed: bool


class ScoreRow(Strict):
    """An accuracy (percent) or a loss at the end of training: means over the seeds of both sides, and the mean of the
    differences seed by seed with its 95% interval, in points (of the loss: as it is). One seed alone has none."""

    figure: str
    verdict: Verdict
    base: float
    new: float
    difference: float
    low: float | None
    high: float | None
    seeds: int
    p: float | None = None
    adjusted_p: float | None = None
    fails: bool = False
    why: str = ""
    repeats: int | None = None


class Pair(Strict):
    """One cell on both sides."""

    name: str
    times: list[TimeRow] = Field(default_factory=list)
    figures: list[FigureRow] = Field(default_factory=list)
    scores: list[ScoreRow] = Field(default_factory=list)
    missing: list[str] = Field(default_factory=list)
    """Figures that the base has and the new side lacks."""
    failures: list[str] = Field(default_factory=list)
    """One sentence for each reason to fail, of those that were asked for."""


class Comparison(Strict):
    """A whole comparison. ``alpha`` is how often a comparison of two equal sides may claim anything at all; in version
    1 it was that of each row. ``family`` counts the times and scores that were judged together."""

    schema_version: Literal[1, 2] = 2
    kind: Literal["comparison"] = "comparison"
    tool: Tool
    created_utc: str
    base: str
    new: str
    floor: float
    alpha: float
    family: int = 0
    pairs: list[Pair]
    only_in_base: list[str]
    only_in_new: list[str]
    notes: list[str] = Field(default_factory=list)
    failures: list[str] = Field(default_factory=list)
    """One sentence for each reason to fail, of those that were asked for."""


def time_name(figure: str) -> str:
    """What a figure of times is called in a sentence."""
    return "it" if figure == "median" else figure


def plain(value: float | str) -> str:
    """A figure as text: a digest by its first digits, a whole number whole."""
    if isinstance(value, str):
        return value[:12]
    return f"{value:.0f}" if value == round(value) else f"{value:.2f}"
