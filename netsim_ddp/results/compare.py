"""Two files held against each other: what changed, what did not, and what nobody can tell.

Cells are matched by their whole identity, never across links or executions. Times and scores are judged with their
noise, all of a comparison as one family (:mod:`netsim_ddp.results.verdicts`), figures that do not vary exactly, or to
the tolerance that :mod:`netsim_ddp.results.subjects` states.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from netsim_ddp import __version__
from netsim_ddp.errors import NothingComparable
from netsim_ddp.results.comparison import (
    Comparison,
    FigureRow,
    Pair,
    Ratio,
    ScoreRow,
    TimeRow,
    plain,
    time_name,
)
from netsim_ddp.results.fields import Tool
from netsim_ddp.results.files import now_utc
from netsim_ddp.results.identity import RULES, differ, other_work
from netsim_ddp.results.subjects import Figure, Key, Subject, names
from netsim_ddp.results.verdicts import ALPHA, FEWEST, FLOOR, Judgement, Scores, Times, judge

Kinds = Literal["times", "bytes", "scores"]
FailOn = Literal["regression", "inconclusive", "missing"]
SCORE_FLOORS = {"accuracy": 1.0, "loss": 0.02}
"""Points of accuracy, nats of loss, below which a difference does not matter."""
LOAD_APART = 1.0
"""Load averages that differ by more are different loads: a core that only one side had."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison: what it is called, what was measured, and on what machine."""

    name: str
    subjects: Sequence[Subject]
    machine: Mapping[str, object] = field(default_factory=dict)
    load: float | None = None
    """The load average of the minute before it was started: programs that were running."""
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
    if (key := other_work(base.work, new.work)) is not None:
        raise NothingComparable(
            f"nothing is comparable: {key} is {base.work[key]} in {base.name} and {new.work[key]} in {new.name}"
        )
    ours, theirs = _by_key(new.subjects), _by_key(base.subjects)
    shown = names([*base.subjects, *new.subjects])
    pairs = {key: Pair(name=shown[key]) for key in theirs if key in ours}
    asked = [
        (pair, figure, question)
        for same, pair in pairs.items()
        for figure, question in _questions(pair, theirs[same], ours[same], rules)
    ]
    judged = judge([question for _, _, question in asked], alpha=rules.alpha)
    for (pair, figure, question), found in zip(asked, judged, strict=True):
        if isinstance(question, Times):
            pair.times.append(_time_row(figure, question, found, rules))
        else:
            pair.scores.append(_score_row(figure, question, found, rules))
    comparison = Comparison(
        tool=Tool(version=__version__),
        created_utc=now_utc(),
        base=base.name,
        new=new.name,
        floor=rules.floor,
        alpha=rules.alpha,
        family=len(asked),
        pairs=list(pairs.values()),
        only_in_base=[shown[key] for key in theirs if key not in ours],
        only_in_new=[shown[key] for key in ours if key not in theirs],
        notes=[*_of_rules(base, new), *_notes(base, new)],
    )
    told = base.lacks or new.lacks  # a method that one side alone has is nothing to fail for
    if not told and not any(pair.times or pair.figures or pair.scores for pair in comparison.pairs):
        raise NothingComparable(f"nothing is comparable: {_why_nothing(comparison, base, new, rules)}")
    for pair in comparison.pairs:
        pair.failures = failures(pair, rules)
        comparison.failures += [f"{pair.name}: {text}" for text in pair.failures]
    if "missing" in rules.fail_on:
        comparison.failures += [f"{name}: only in {comparison.base}" for name in comparison.only_in_base]
    return comparison


def _by_key(subjects: Iterable[Subject]) -> dict[Key, Subject]:
    """Returns the subjects by key; where a file holds a cell twice, the first of the two."""
    found: dict[Key, Subject] = {}
    for subject in subjects:
        found.setdefault(subject.key, subject)
    return found


def _questions(pair: Pair, base: Subject, new: Subject, rules: Rules) -> Iterator[tuple[str, Times | Scores]]:
    """The times and scores of a cell that wait for their verdicts, which depend on all the others'. ``pair`` gets the
    figures that do not vary, and what the new side lacks."""
    if "times" in rules.only:
        for figure, known in base.times.items():
            if figure != "median" and figure not in rules.limits:
                continue
            if figure not in new.times:
                pair.missing.append(figure)
            elif min(known) > 0 and min(new.times[figure]) > 0:  # else a phase that the method has not
                least = min(rules.floor, rules.limits.get(figure, rules.floor))
                yield figure, _question(known, new.times[figure], base, new, least)
    if "bytes" in rules.only:
        same_bits = base.bits is not None and base.bits == new.bits
        for figure, value in base.figures.items():
            if figure not in new.figures:
                pair.missing.append(figure)
            elif (row := _figure_row(figure, value, new.figures[figure], same_bits=same_bits)) is not None:
                pair.figures.append(row)
    if "scores" in rules.only:
        for figure, by_seed in base.scores.items():
            other = new.scores.get(figure, {})
            if seeds := sorted(by_seed.keys() & other.keys()):
                floor = min(rules.limits.get(figure, math.inf), SCORE_FLOORS[figure])
                known, found = ([scores[seed] for seed in seeds] for scores in (by_seed, other))
                yield figure, Scores(known, found, floor, more_is_better=figure == "accuracy")
            else:
                pair.missing.append(figure)


def _question(
    known: Sequence[float], other: Sequence[float], base: Subject, new: Subject, floor: float
) -> Times:
    """Samples that come several from one process are tested beside their processes; enough processes, by themselves."""
    if not (base.processes and new.processes):
        return Times(known, other, floor)
    if min(len(base.processes), len(new.processes)) >= FEWEST:
        return Times(base.processes, new.processes, floor)
    return Times(known, other, floor, (base.processes, new.processes))


def _time_row(figure: str, asked: Times, found: Judgement, rules: Rules) -> TimeRow:
    return TimeRow(
        figure=figure,
        verdict=found.verdict,
        base_s=median(asked.base),
        new_s=median(asked.new),
        base_runs=len(asked.base),
        new_runs=len(asked.new),
        ratio=Ratio(
            value=found.change.value, low=found.change.low, high=found.change.high, level=found.change.level
        ),
        p=found.p,
        adjusted_p=found.adjusted_p,
        fails=found.verdict == "slower" and found.change.value > 1 + rules.limits.get(figure, rules.floor),
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
        changed = abs(new.value - base.value) > tolerance * abs(base.value) + base.slack + 1e-9 * abs(
            base.value
        )
    return FigureRow(figure=figure, base=base.value, new=new.value, tolerance=tolerance, changed=changed)


def _score_row(figure: str, asked: Scores, found: Judgement, rules: Rules) -> ScoreRow:
    change = found.change
    return ScoreRow(
        figure=figure,
        verdict=found.verdict,
        base=math.fsum(asked.base) / len(asked.base),
        new=math.fsum(asked.new) / len(asked.new),
        difference=change.value,
        low=change.low if math.isfinite(change.low) else None,
        high=change.high if math.isfinite(change.high) else None,
        seeds=len(asked.base),
        p=found.p,
        adjusted_p=found.adjusted_p,
        fails=found.verdict == "worse" and abs(change.value) > rules.limits.get(figure, SCORE_FLOORS[figure]),
        why=found.why,
        repeats=found.repeats,
    )


def _of_rules(base: Side, new: Side) -> list[str]:
    """Returns why cells of both sides are not compared: they were measured by different rules."""
    theirs = {_without_rules(subject): subject for subject in new.subjects}
    both = ((known, other) for known in base.subjects if (other := theirs.get(_without_rules(known))))
    found = (differ(known.identity, base.name, other.identity, new.name) for known, other in both)
    return list(dict.fromkeys(said for said in found if said is not None))


def _without_rules(subject: Subject) -> Key:
    return tuple(part for part in subject.key if part[0] not in RULES)


def _notes(base: Side, new: Side) -> list[str]:
    """Returns what must be known before a ratio of times is read."""
    differ = [
        f"{key} {value} and {new.machine[key]}"
        for key, value in base.machine.items()
        if new.machine.get(key, value) != value
    ]
    found = []
    if differ:
        found.append(
            f"the two sides come from different machines or versions ({', '.join(differ)}): a ratio of times compares "
            "these too, not the code alone"
        )
    if base.load is not None and new.load is not None and abs(base.load - new.load) > LOAD_APART:
        found.append(
            f"the two sides were measured at different loads (load average {base.load:.1f} and {new.load:.1f} at the "
            "start): a ratio of times compares that too"
        )
    return [*found, *_of_processes(base, new), *dict.fromkeys([*base.notes, *new.notes])]


def _of_processes(base: Side, new: Side) -> list[str]:
    """Returns what samples from a few processes cannot show."""
    counts = [len(one.processes) for side in (base, new) for one in side.subjects if one.processes]
    if not counts or min(counts) >= FEWEST:
        return []
    if min(counts) == 1:
        return [
            "a side is one process, whose rounds cannot show how far processes of the same code differ: a verdict "
            "holds for these processes alone. A second file per side shows it: netsim compare --base A.json "
            "--base B.json --head C.json --head D.json"
        ]
    return [
        f"{min(counts)} processes a side: a difference is claimed only where even the closest two of both sides lie "
        f"beyond the floor; with {FEWEST} files a side the processes themselves are tested"
    ]


def _why_nothing(comparison: Comparison, base: Side, new: Side, rules: Rules) -> str:
    if not base.subjects or not new.subjects:
        empty = base if not base.subjects else new
        return empty.notes[0] if empty.notes else f"no cell was measured in {empty.name}"
    if comparison.pairs:
        return f"no figure of {', '.join(sorted(rules.only))} is on both sides"
    if said := _of_rules(base, new):
        return said[0]
    for part in dict.fromkeys(part for subject in base.subjects for part in subject.identity):
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
        found += [
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
        found += [
            f"{row.figure} is {abs(row.difference):.2g}{' points' * (row.figure == 'accuracy')} worse"
            for row in pair.scores
            if row.fails
        ]
    if "inconclusive" in rules.fail_on:
        rows = [(time_name(row.figure), row.verdict) for row in pair.times]
        rows += [(row.figure, row.verdict) for row in pair.scores]
        found += [f"{name} is not decided" for name, verdict in rows if verdict == "inconclusive"]
    if "missing" in rules.fail_on:
        found += [f"no {name} any more" for name in pair.missing]
    return found
