"""Two files held against each other: what changed, what did not, and what nobody can tell.

Cells are matched by their whole identity, never across links or executions. Times are judged with their noise
(:mod:`netsim_ddp.results.verdicts`), figures that do not vary exactly, or to the tolerance that
:mod:`netsim_ddp.results.subjects` states.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from netsim_ddp import __version__
from netsim_ddp.errors import NothingComparable
from netsim_ddp.results.record import Seconds, Strict, Tool, now_utc
from netsim_ddp.results.stats import median
from netsim_ddp.results.subjects import Figure, Subject, names
from netsim_ddp.results.verdicts import ALPHA, FLOOR, Judgement, Verdict, judge_pairs, judge_times

Kinds = Literal["times", "bytes", "scores"]
FailOn = Literal["regression", "inconclusive", "missing"]
SCORE_FLOORS = {"accuracy": 1.0, "loss": 0.02}
"""Points of accuracy, nats of loss, below which a difference does not matter."""


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
    """A whole comparison."""

    schema_version: Literal[1] = 1
    kind: Literal["comparison"] = "comparison"
    tool: Tool
    created_utc: str
    base: str
    new: str
    floor: float
    alpha: float
    pairs: list[Pair]
    only_in_base: list[str]
    only_in_new: list[str]
    notes: list[str] = Field(default_factory=list)
    failures: list[str] = Field(default_factory=list)
    """One sentence for each reason to fail, of those that were asked for."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison: what it is called, what was measured, and on what machine."""

    name: str
    subjects: Sequence[Subject]
    machine: Mapping[str, object] = field(default_factory=dict)
    work: Mapping[str, object] = field(default_factory=dict)
    """What both sides must share, or nothing of theirs is comparable: batch size, emulated compute."""
    lacks: Sequence[str] = ()
    """Methods that were asked for and that this side's code does not have."""
    notes: Sequence[str] = ()
    """What could not be read of it."""


@dataclass(frozen=True)
class Rules:
    """``limits`` holds the change above which a figure fails, by name: 0.1 for ``median`` is 10% slower, 1.0 for
    ``accuracy`` one point worse. The step's median is always judged, phases where they have a limit."""

    floor: float = FLOOR
    alpha: float = ALPHA
    limits: Mapping[str, float] = field(default_factory=dict)
    only: frozenset[Kinds] = frozenset({"times", "bytes", "scores"})
    fail_on: frozenset[FailOn] = frozenset({"regression"})


def compare(base: Side, new: Side, rules: Rules) -> Comparison:
    """Hold ``new`` against ``base``.

    Raises:
        NothingComparable: no cell is on both sides, or none has a figure that the rules look at.
    """
    for key in base.work.keys() & new.work.keys():
        if base.work[key] != new.work[key]:
            raise NothingComparable(
                f"nothing is comparable: {key} is {base.work[key]} in {base.name} and {new.work[key]} in {new.name}"
            )
    ours, theirs = _by_key(new.subjects), _by_key(base.subjects)
    shown = names([*base.subjects, *new.subjects])
    both = [key for key in theirs if key in ours]
    pairs = [_pair(shown[key], theirs[key], ours[key], rules) for key in both]
    comparison = Comparison(
        tool=Tool(version=__version__),
        created_utc=now_utc(),
        base=base.name,
        new=new.name,
        floor=rules.floor,
        alpha=rules.alpha,
        pairs=pairs,
        only_in_base=[shown[key] for key in theirs if key not in ours],
        only_in_new=[shown[key] for key in ours if key not in theirs],
        notes=_notes(base, new),
    )
    told = base.lacks or new.lacks  # a method that one side alone has is nothing to fail for
    if not told and not any(pair.times or pair.figures or pair.scores for pair in pairs):
        raise NothingComparable(f"nothing is comparable: {_why_nothing(comparison, base, new, rules)}")
    for pair in pairs:
        pair.failures = failures(pair, rules)
    comparison.failures = [f"{pair.name}: {text}" for pair in pairs for text in pair.failures]
    if "missing" in rules.fail_on:
        comparison.failures += [f"{name}: only in {comparison.base}" for name in comparison.only_in_base]
    return comparison


def _by_key(subjects: Iterable[Subject]) -> dict[tuple[tuple[str, str], ...], Subject]:
    """A cell that stands twice in a file is its first."""
    found: dict[tuple[tuple[str, str], ...], Subject] = {}
    for subject in subjects:
        found.setdefault(subject.key, subject)
    return found


def _pair(name: str, base: Subject, new: Subject, rules: Rules) -> Pair:
    pair = Pair(name=name)
    if "times" in rules.only:
        wanted = [figure for figure in base.times if figure == "median" or figure in rules.limits]
        pair.times = [
            row
            for figure in wanted
            if figure in new.times
            and (row := _time_row(figure, base.times[figure], new.times[figure], rules))
        ]
        pair.missing += [figure for figure in wanted if figure not in new.times]
    if "bytes" in rules.only:
        same_bits = base.bits is not None and base.bits == new.bits
        rows = (
            _figure_row(figure, known, new.figures[figure], same_bits=same_bits)
            for figure, known in base.figures.items()
            if figure in new.figures
        )
        pair.figures = [row for row in rows if row is not None]
        pair.missing += [figure for figure in base.figures if figure not in new.figures]
    if "scores" in rules.only:
        for figure, known in base.scores.items():
            if known.keys() & new.scores.get(figure, {}).keys():
                pair.scores.append(_score_row(figure, known, new.scores[figure], rules))
            else:
                pair.missing.append(figure)
    return pair


def _time_row(figure: str, base: Sequence[float], new: Sequence[float], rules: Rules) -> TimeRow | None:
    """None for a phase that takes no time: it does not apply to the method."""
    if min(base) <= 0 or min(new) <= 0:
        return None
    limit = rules.limits.get(figure, rules.floor)
    found = judge_times(base, new, floor=min(rules.floor, limit), alpha=rules.alpha)
    return TimeRow(
        figure=figure,
        verdict=found.verdict,
        base_s=median(base),
        new_s=median(new),
        base_runs=len(base),
        new_runs=len(new),
        ratio=Ratio(
            value=found.change.value, low=found.change.low, high=found.change.high, level=found.change.level
        ),
        p=found.p,
        fails=found.verdict == "slower" and found.change.value > 1 + limit,
        why=found.why,
        detectable=found.detectable,
        repeats=found.repeats,
    )


def _figure_row(figure: str, base: Figure, new: Figure, *, same_bits: bool) -> FigureRow | None:
    tolerance = base.tolerance if same_bits else base.otherwise
    if tolerance is None:
        return None
    if isinstance(base.value, str) or isinstance(new.value, str):
        changed = base.value != new.value
    else:
        allowed = tolerance * abs(base.value) + base.slack
        changed = abs(new.value - base.value) > allowed + 1e-9 * abs(base.value)
    return FigureRow(figure=figure, base=base.value, new=new.value, tolerance=tolerance, changed=changed)


def _score_row(figure: str, base: Mapping[int, float], new: Mapping[int, float], rules: Rules) -> ScoreRow:
    limit = rules.limits.get(figure, SCORE_FLOORS[figure])
    found: Judgement = judge_pairs(
        base, new, floor=min(limit, SCORE_FLOORS[figure]), more_is_better=figure == "accuracy"
    )
    seeds = base.keys() & new.keys()
    change = found.change
    return ScoreRow(
        figure=figure,
        verdict=found.verdict,
        base=math.fsum(base[seed] for seed in seeds) / len(seeds),
        new=math.fsum(new[seed] for seed in seeds) / len(seeds),
        difference=change.value,
        low=change.low if math.isfinite(change.low) else None,
        high=change.high if math.isfinite(change.high) else None,
        seeds=len(seeds),
        fails=found.verdict == "worse" and abs(change.value) > limit,
        why=found.why,
        repeats=found.repeats,
    )


def _notes(base: Side, new: Side) -> list[str]:
    """What a reader must know before believing a ratio of times."""
    differ = [
        f"{key} {base.machine[key]} and {new.machine[key]}"
        for key in base.machine
        if key in new.machine and base.machine[key] != new.machine[key]
    ]
    left_out = list(dict.fromkeys([*base.notes, *new.notes]))
    if not differ:
        return left_out
    return [*left_out, f"the two sides were not measured alike ({', '.join(differ)}): times compare that too"]


def _why_nothing(comparison: Comparison, base: Side, new: Side, rules: Rules) -> str:
    if not base.subjects or not new.subjects:
        empty = base if not base.subjects else new
        if empty.notes:
            return empty.notes[0]
        return f"no cell was measured in {empty.name}"
    if comparison.pairs:
        return f"no figure of {', '.join(sorted(rules.only))} is on both sides"
    parts = dict.fromkeys(part for subject in base.subjects for part in subject.identity)
    for part in parts:
        ours = {subject.identity.get(part, "") for subject in new.subjects}
        theirs = {subject.identity.get(part, "") for subject in base.subjects}
        if not ours & theirs:
            return f"{part} is {_some(theirs)} in {base.name} and {_some(ours)} in {new.name}"
    return f"no cell of {base.name} is in {new.name}"


def _some(values: Iterable[str]) -> str:
    known = sorted(value or "unknown" for value in values)
    return ", ".join(known[:3]) + (" ..." if len(known) > 3 else "")


def failures(pair: Pair, rules: Rules) -> list[str]:
    """A sentence for everything of ``pair`` that ``rules.fail_on`` asks to fail for."""
    found: list[str] = []
    if "regression" in rules.fail_on:
        found += _regressions(pair)
    if "inconclusive" in rules.fail_on:
        found += _undecided(pair)
    if "missing" in rules.fail_on:
        found += [f"no {name} any more" for name in pair.missing]
    return found


def _regressions(pair: Pair) -> list[str]:
    found = [
        f"{time_name(row.figure)} is {row.ratio.value - 1:.0%} slower"
        f" ({row.ratio.low:.2f}x to {row.ratio.high:.2f}x)"
        for row in pair.times
        if row.fails
    ]
    found += [
        f"{row.figure} changed from {plain(row.base)} to {plain(row.new)}"
        for row in pair.figures
        if row.changed
    ]
    for score in pair.scores:
        if score.fails:
            points = " points" if score.figure == "accuracy" else ""
            found.append(f"{score.figure} is {abs(score.difference):.2g}{points} worse")
    return found


def _undecided(pair: Pair) -> list[str]:
    times = [f"{time_name(row.figure)} is not decided" for row in pair.times if row.verdict == "inconclusive"]
    return times + [f"{row.figure} is not decided" for row in pair.scores if row.verdict == "inconclusive"]


def time_name(figure: str) -> str:
    """What a figure of times is called in a sentence."""
    return "it" if figure == "median" else figure


def plain(value: float | str) -> str:
    """A figure as text: a digest by its first digits, a whole number whole."""
    if isinstance(value, str):
        return value[:12]
    return f"{value:.0f}" if value == round(value) else f"{value:.2f}"
