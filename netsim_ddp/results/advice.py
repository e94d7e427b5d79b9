"""Which method to use: what was predicted and measured of each, and the rule by which one is recommended.

Of the methods whose step is within :data:`SAME` of the fastest, the one that sends the most is recommended: it changes
the gradients least. So dense wins where the network is not the bottleneck, dense in 16 bits where no compressor gains
anything, and a larger ``ratio`` where a smaller one is no faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from netsim_ddp.results.fields import Count, Finite, Positive, Seconds, Strict, Tool
from netsim_ddp.results.record import Interval
from netsim_ddp.results.training_record import MeanInterval

SAME = 0.02
"""Steps that differ by no more are the same: nobody would notice."""
Budget = Literal["within", "beyond", "not resolved", "not measured"]


class AccuracyOf(Strict):
    """What a file of ``netsim train`` says of a method: its accuracy less dense's, in percentage points, over the seeds
    that both have. ``same_model``: whether it trained the model that the advice is for."""

    source: str
    seeds: Count
    difference_points: MeanInterval
    same_model: bool


class Candidate(Strict):
    """A method with its options.

    ``measured_s`` holds the median step of each repeat on this host; ``host_limited`` says that this host and not the
    link set their pace: then the prediction stands. ``budget``: whether its accuracy stays within what was allowed;
    None where nothing was.
    """

    id: str
    method: str
    params: dict[str, Any]
    overlap: bool
    bytes_per_step: Positive
    residual_bytes: Count
    communicate_s: Seconds
    predicted_s: Seconds
    measured_s: list[Seconds] = Field(default_factory=list)
    measured: Interval | None = None
    host_limited: bool = False
    accuracy: AccuracyOf | None = None
    budget: Budget | None = None

    @property
    def counts(self) -> bool:
        """Whether its measured step stands."""
        return self.measured is not None and not self.host_limited

    @property
    def step_s(self) -> float:
        """Seconds of a step, measured where that stands, else predicted."""
        return self.measured.median if self.measured is not None and self.counts else self.predicted_s


class Speedup(Strict):
    """The rival's step over the method's, with the interval at ``level``; without one where either was predicted and
    nothing tells how far the prediction may be off. ``repeats`` on the side that has fewer, 0 where one was predicted.
    ``claimed``: the rule of every other table (:mod:`netsim_ddp.results.verdicts`) calls it a difference."""

    value: Positive
    low: Positive | None = None
    high: Positive | None = None
    level: Positive | None = None
    repeats: Count = 0
    claimed: bool = False


class Advice(Strict):
    """One recommendation, and what it rests on.

    ``candidates`` stand in the order of the rule: the recommended one first, then by their steps; those whose accuracy
    is beyond the budget last. ``rival`` is the id of dense in 16 bits, overlapped. ``prediction_errors`` are the least
    and greatest of predicted over measured, less 1, of the candidates that were measured here and of what was
    validated; ``repeatability`` of a later run over a measured repeat, less 1, where the step was measured. ``step_s``
    and its interval are the recommended method's, in a run to come. ``missing`` says in sentences what is not known.
    ``snippet`` and ``commands`` are to be pasted; ``files`` hold what was measured and predicted.
    """

    schema_version: Literal[1] = 1
    kind: Literal["advice"] = "advice"
    tool: Tool
    created_utc: str
    environment: dict[str, object]
    command: str
    model: str
    workers: Count
    link: str
    accuracy_budget_points: Finite | None = None
    recommended: str
    verdict: Literal["compress", "16 bits", "not the network"]
    rival: str
    step_s: Interval
    speedup: Speedup
    candidates: list[Candidate]
    prediction_errors: tuple[Finite, Finite] | None = None
    repeatability: tuple[Finite, Finite] | None = None
    missing: list[str]
    snippet: str
    commands: list[str]
    files: list[str] = Field(default_factory=list)

    @property
    def best(self) -> Candidate:
        """The recommended one."""
        return self.candidates[0]


def ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The recommended candidate, then the others by their steps; those beyond the accuracy budget come last.

    Those that were tried here are held against each other, each by its measured step, or by the predicted one where
    this host and not the link set its pace. One that was only predicted is recommended where none was tried.

    Args:
        candidates: at least one of them not beyond the budget.
    """
    allowed = [each for each in candidates if each.budget != "beyond"]
    compared = [each for each in allowed if each.measured is not None] or allowed
    fastest = min(each.step_s for each in compared)
    best = max(
        (each for each in compared if each.step_s <= (1 + SAME) * fastest),
        key=lambda each: (_magnitude(each.bytes_per_step), -each.step_s),
    )
    rest = [each for each in candidates if each is not best]
    return [best, *sorted(rest, key=lambda each: (each.budget == "beyond", each.step_s))]


def _magnitude(sent: float) -> float:
    """Bytes at two digits: a few headers more are not less compression."""
    return float(f"{sent:.1e}")


def prediction_errors(candidates: Sequence[Candidate]) -> tuple[float, float] | None:
    """Least and greatest of predicted over measured, less 1, where the measurement stands; None where none does."""
    found = [each.predicted_s / each.step_s - 1 for each in candidates if each.counts]
    return (min(found), max(found)) if found else None


def within(accuracy: AccuracyOf | None, points: float | None) -> Budget | None:
    """Whether a method loses at most ``points`` of accuracy, as far as its trainings can tell."""
    if points is None:
        return None
    if accuracy is None:
        return "not measured"
    found = accuracy.difference_points
    if found.ci_low is not None and found.ci_low >= -points:
        return "within"
    return "beyond" if found.mean < -points else "not resolved"


def expected(
    candidate: Candidate, errors: tuple[float, float] | None, repeatable: tuple[float, float]
) -> Interval:
    """The step of ``candidate`` in a run to come.

    Args:
        errors: of predictions that were held against measurements; with none, a predicted step has no interval.
        repeatable: how far later runs were from a measured repeat: the repeats of one call share an hour, and few of
            them say little even of that.
    """
    if candidate.measured is not None and candidate.counts:
        found = candidate.measured
        low, high = (found.median * (1 + each) for each in repeatable)
        return Interval(median=found.median, ci_low=min(found.ci_low, low), ci_high=max(found.ci_high, high))
    step = candidate.predicted_s
    low, high = errors or (0.0, 0.0)
    return Interval(median=step, ci_low=min(step, step / (1 + high)), ci_high=max(step, step / (1 + low)))
