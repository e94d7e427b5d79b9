"""The one rule by which every command claims a difference, and what it says where it claims none.

A difference is claimed where all of these hold:

- there are at least :data:`FEWEST` independent repeats on each side (fresh processes; of trainings: seeds);
- an exact rank test separates the two sides after Holm's correction (Holm 1979) over all comparisons that are printed
  together, the *family*: so that of methods that do not differ, at most 5% of all tables claim anything;
- the difference is beyond a floor, 5% of a time.

``no change`` is a finding too, not the absence of one: the whole 95% interval lies within the floor. Everything else is
inconclusive, with what could have been detected and how many repeats would decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from netsim_ddp.results.rank_test import (
    MOST_REPEATS,
    detectable,
    fewest_repeats,
    mann_whitney,
    paired_p,
    repeats_to_detect,
    smallest_p,
    spread_of,
)
from netsim_ddp.results.stats import Estimate, mean_interval, ratio_interval, t_quantile
from netsim_ddp.units import counted

Verdict = Literal["faster", "slower", "better", "worse", "no change", "inconclusive"]

FLOOR = 0.05
"""The share by which two times must differ before a difference is claimed."""
ALPHA = 0.05
"""How often a whole family of comparisons between equal methods may claim anything."""
FEWEST = 5
"""Repeats of each side below which nothing is claimed, whatever the test says."""
ENOUGH = 0.95
"""The least level of an interval that may show that nothing changed."""


@dataclass(frozen=True)
class Judgement:
    """What one comparison of a family says.

    ``change`` is new / base of times, the mean of new - base of scores. ``p`` is the test's own, ``adjusted_p`` Holm's:
    the smallest family-wise level at which this comparison would be claimed. ``needed`` is how many repeats of each
    side a claim needs in a family of ``family`` comparisons. ``why`` says in a sentence what an inconclusive verdict
    lacks; ``detectable`` is the smallest change that these repeats would have shown, as a fraction (of scores in their
    own unit), ``repeats`` how many of each side would decide; None where nothing can be said or no number would.
    """

    verdict: Verdict
    change: Estimate
    p: float
    adjusted_p: float
    family: int
    needed: int
    enough: bool
    """Whether there were repeats enough for a claim at all."""
    why: str = ""
    detectable: float | None = None
    repeats: int | None = None

    @property
    def claimed(self) -> bool:
        return self.verdict not in ("no change", "inconclusive")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: the i-th smallest times (m - i + 1), never below the one before.

    Claiming what is at most alpha errs in at most alpha of all families, however the comparisons depend on each other.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, so_far = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = so_far
    return adjusted


def repeats_needed(family: int, *, alpha: float = ALPHA, paired: bool = False) -> int:
    """Repeats of each side (``paired``: seeds that both have) from which on a claim is possible in a family of so many
    comparisons: the smallest n whose least attainable p is at most alpha / family, and at least ``FEWEST``."""
    return max(FEWEST, fewest_repeats(alpha / max(family, 1), paired=paired))


@dataclass(frozen=True)
class Times:
    """Two samples of a time, one per repeat; positive, at least one each.

    ``floor``: a change of less than this share does not matter. ``processes``: the medians of the processes that each
    side's samples come from, where several come from one. A claim then needs even the closest two to lie beyond the
    floor: what differs from process to process is no change.
    """

    base: Sequence[float]
    new: Sequence[float]
    floor: float = FLOOR
    processes: tuple[Sequence[float], Sequence[float]] | None = None

    def test(self) -> float:
        return mann_whitney(self.base, self.new)

    def judged(self, p: float, adjusted: float, family: int, alpha: float) -> Judgement:
        needed = repeats_needed(family, alpha=alpha)
        count, other = len(self.base), len(self.new)
        enough = min(count, other) >= FEWEST and smallest_p(count, other) <= alpha / family
        if sorted(self.base) == sorted(self.new):  # one measurement compared with itself
            return Judgement(
                "no change", Estimate(1.0, 1.0, 1.0, 1.0, count), 1.0, 1.0, family, needed, enough
            )
        ratio = ratio_interval(self.base, self.new)
        significant = adjusted <= alpha and min(count, other) >= FEWEST
        if significant and self._exceeds_floor(ratio.value) and self._processes_apart(ratio.value):
            return Judgement(
                "slower" if ratio.value > 1 else "faster", ratio, p, adjusted, family, needed, enough=True
            )
        if (
            min(count, other) >= FEWEST
            and ratio.level >= ENOUGH
            and not (self._exceeds_floor(ratio.low) or self._exceeds_floor(ratio.high))
        ):
            return Judgement("no change", ratio, p, adjusted, family, needed, enough)
        level = alpha / family
        spread = spread_of(self.base, self.new)
        change = max(self.floor, math.expm1(abs(math.log(ratio.value))))
        shown = repeats = None
        if spread is not None:
            shown = detectable(count, other, spread, level) if min(count, other) >= FEWEST else None
            repeats = repeats_to_detect(change, spread, level, least=FEWEST)
        if not enough and not significant:
            why = f"{count} against {counted(other, 'repeat')}; a claim needs {needed} against {needed} "
            why += f"({comparisons(family)})"
        elif significant and self._exceeds_floor(ratio.value):
            why = "processes of one side differ by as much as the two sides"
        elif significant:
            why = f"the change is beyond noise, but its interval lies on both sides of the floor of {self.floor:.3g}"
        else:
            why = "noise hides it"
        return Judgement("inconclusive", ratio, p, adjusted, family, needed, enough, why, shown, repeats)

    def _exceeds_floor(self, ratio: float) -> bool:
        return not 1 / (1 + self.floor) <= ratio <= 1 + self.floor

    def _processes_apart(self, ratio: float) -> bool:
        if self.processes is None:
            return True
        base, new = self.processes
        return (min(new) / max(base) if ratio > 1 else min(base) / max(new)) > 1 + self.floor


@dataclass(frozen=True)
class Scores:
    """A figure per seed of both sides, in the order of the seeds: an accuracy or a loss at the end of training.

    ``floor``: a difference of less does not matter, in the figure's own unit.
    """

    base: Sequence[float]
    new: Sequence[float]
    floor: float
    more_is_better: bool

    def test(self) -> float:
        return paired_p(self.base, self.new)

    def judged(self, p: float, adjusted: float, family: int, alpha: float) -> Judgement:
        needed, seeds = repeats_needed(family, alpha=alpha, paired=True), len(self.base)
        enough = seeds >= needed
        if list(self.base) == list(self.new):
            return Judgement(
                "no change", Estimate(0.0, 0.0, 0.0, 1.0, seeds), 1.0, 1.0, family, needed, enough
            )
        # The mean over seeds: what both sides of a seed share cancels.
        difference = mean_interval([new - base for base, new in zip(self.base, self.new, strict=True)])
        if adjusted <= alpha and seeds >= FEWEST and abs(difference.value) > self.floor:
            verdict: Verdict = "better" if (difference.value > 0) == self.more_is_better else "worse"
            return Judgement(verdict, difference, p, adjusted, family, needed, enough=True)
        if seeds >= FEWEST and -self.floor <= difference.low and difference.high <= self.floor:
            return Judgement("no change", difference, p, adjusted, family, needed, enough)
        repeats = None
        if enough:
            why = f"{counted(seeds, 'seed')} on both sides leave ±{difference.half_width:.2g}"
            repeats = _seeds_for(difference, max(self.floor, abs(difference.value)), least=needed)
        else:
            found = "one seed on both sides shows no noise" if seeds == 1 else f"{seeds} seeds on both sides"
            why = f"{found}; a claim needs {needed}"
        return Judgement(
            "inconclusive",
            difference,
            p,
            adjusted,
            family,
            needed,
            enough,
            why,
            detectable=None if seeds == 1 else difference.half_width,
            repeats=repeats,
        )


def judge(questions: Sequence[Times | Scores], *, alpha: float = ALPHA) -> list[Judgement]:
    """Judge a family of comparisons, in the order given.

    Args:
        questions: everything that is printed together.
        alpha: how often the whole family may claim anything between equal sides.
    """
    tested = [question.test() for question in questions]
    return [
        question.judged(p, adjusted, len(questions), alpha)
        for question, p, adjusted in zip(questions, tested, holm(tested), strict=True)
    ]


def fastest_of(samples: Sequence[Sequence[float]], family: int, *, alpha: float = ALPHA) -> int | None:
    """Index of the sample that is claimed to be faster than each of the others, if there is one.

    Each of these comparisons is tested at alpha / ``family``, the level that the first of the printed comparisons has
    to reach. To be wrong, the mark must be wrong against the truly fastest: more methods make that rarer.
    """
    first, *others = sorted(range(len(samples)), key=lambda i: median(samples[i]))
    claimed = all(
        judge([Times(samples[other], samples[first])], alpha=alpha / max(family, 1))[0].verdict == "faster"
        for other in others
    )
    return first if others and claimed else None


def comparisons(family: int) -> str:
    return counted(family, "comparison")


def of_family(family: int, alpha: float = ALPHA) -> str:
    """Returns what every table says of its claims: ``7 comparisons, Holm at 5%``."""
    return f"{comparisons(family)}, Holm at {100 * alpha:.3g}%"


def _seeds_for(difference: Estimate, half_width: float, *, least: int) -> int | None:
    """Seeds, at least ``least``, that would bring the t-interval of ``difference`` down to ``half_width``."""
    deviation = difference.half_width * math.sqrt(difference.count) / t_quantile(0.975, difference.count - 1)
    for seeds in range(2, MOST_REPEATS + 1):
        if t_quantile(0.975, seeds - 1) * deviation / math.sqrt(seeds) <= half_width:
            return max(seeds, least)
    return None
