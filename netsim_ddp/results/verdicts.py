"""Faster, slower, no change, or not decided: what two samples of one figure say, and why.

``slower`` and ``faster`` need significance (the exact rank test) **and** a change above a floor. ``no change`` is a
finding too, not the absence of one: the whole interval of the ratio lies within the floor. Everything else is
inconclusive, with what could have been detected and how many repeats would decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from netsim_ddp.results.intervals import Estimate, paired_interval, ratio_interval
from netsim_ddp.results.rank_test import (
    MOST_REPEATS,
    detectable,
    mann_whitney,
    refusal,
    repeats_to_detect,
    spread_of,
)
from netsim_ddp.results.student import student_t

Verdict = Literal["faster", "slower", "better", "worse", "no change", "inconclusive"]

FLOOR = 0.05
ALPHA = 0.01
ENOUGH = 0.95
"""The least level of an interval that may show that nothing changed."""


@dataclass(frozen=True)
class Judgement:
    """``change`` is new / base of times, the difference new - base of accuracies and losses. ``why`` says in a sentence
    what an inconclusive verdict lacks. ``detectable`` is the smallest change that these repeats would have shown, as a
    fraction, ``repeats`` how many of each side would decide; None where nothing can be said or no number would."""

    verdict: Verdict
    change: Estimate
    p: float | None = None
    why: str = ""
    detectable: float | None = None
    repeats: int | None = None


def judge_times(
    base: Sequence[float], new: Sequence[float], *, floor: float = FLOOR, alpha: float = ALPHA
) -> Judgement:
    """What two samples of a time say, one sample per repeat.

    Args:
        base, new: positive, at least one each.
        floor: a change of less than this share does not matter.
        alpha: how often chance alone may pass for a change.

    The same samples on both sides are one measurement compared with itself: no change, by a ratio of exactly 1.
    """
    if sorted(base) == sorted(new):
        return Judgement("no change", Estimate(1.0, 1.0, 1.0, 1.0, len(base)), p=1.0)
    ratio = ratio_interval(base, new)
    test = mann_whitney(base, new)
    significant = test.p <= alpha
    if significant and not 1 / (1 + floor) <= ratio.value <= 1 + floor:
        return Judgement("slower" if ratio.value > 1 else "faster", ratio, p=test.p)
    if ratio.level >= ENOUGH and 1 / (1 + floor) <= ratio.low and ratio.high <= 1 + floor:
        return Judgement("no change", ratio, p=test.p)
    spread = spread_of(base, new)
    refused = refusal(len(base), len(new), alpha)
    change = max(floor, math.expm1(abs(math.log(ratio.value))))
    shown = detectable(len(base), len(new), spread, alpha) if spread is not None else None
    repeats = repeats_to_detect(change, spread, alpha) if spread is not None else None
    if refused:
        why = refused
    elif significant:
        why = f"the change is beyond noise, but its interval lies on both sides of the floor of {floor:.3g}"
    else:
        why = "noise hides it"
    return Judgement("inconclusive", ratio, test.p, why, shown, repeats)


def judge_pairs(
    base: Mapping[int, float], new: Mapping[int, float], *, floor: float, more_is_better: bool
) -> Judgement:
    """What one figure per seed says, compared seed by seed: an accuracy or a loss at the end of training.

    Args:
        base, new: by seed; only seeds of both count, and there is at least one.
        floor: a difference of less does not matter, in the figure's own unit.
    """
    seeds = sorted(base.keys() & new.keys())
    ours, theirs = [new[seed] for seed in seeds], [base[seed] for seed in seeds]
    if ours == theirs:
        return Judgement("no change", Estimate(0.0, 0.0, 0.0, 1.0, len(seeds)))
    difference = paired_interval(ours, theirs)
    if not difference.holds(0.0) and abs(difference.value) > floor:
        better = (difference.value > 0) == more_is_better
        return Judgement("better" if better else "worse", difference)
    if -floor <= difference.low and difference.high <= floor:
        return Judgement("no change", difference)
    if len(seeds) == 1:
        return Judgement("inconclusive", difference, why="one seed on both sides shows no noise")
    why = f"{len(seeds)} seeds on both sides leave ±{difference.half_width:.2g}"
    repeats = _seeds_for(difference, max(floor, abs(difference.value)))
    return Judgement("inconclusive", difference, None, why, difference.half_width, repeats)


def _seeds_for(difference: Estimate, half_width: float) -> int | None:
    """Seeds that would bring the t-interval of ``difference`` down to ``half_width``."""
    count = difference.count
    deviation = difference.half_width * math.sqrt(count) / student_t(0.975, count - 1)
    for seeds in range(2, MOST_REPEATS + 1):
        if student_t(0.975, seeds - 1) * deviation / math.sqrt(seeds) <= half_width:
            return seeds
    return None
