"""What can be compared, whichever kind of file it comes from: a name, samples of times, and figures that do not vary.

A subject's ``identity`` says everything that two measurements must share to be held against each other. The method is
the first of it; a name shows that, and what else tells the subjects of a comparison apart.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from netsim_ddp.methods import entry_of
from netsim_ddp.results.identity import computation, subject
from netsim_ddp.results.record import Cell, RepeatRecord, Result
from netsim_ddp.results.summary import PHASES, repeat_medians, slowest_steps

SELECTED_TOLERANCE = 0.02
"""Of bytes that follow from what was selected, between computations of other bits: owners' shares of the entries, and
the packed length of their positions."""
COUNTED_TOLERANCE = 0.01
"""Of bytes counted at an interface: acknowledgements and retransmissions are in them."""
COUNTED_SLACK = 500
"""Bytes per rank and step: a few acknowledgements more or less, which weigh where a message is small."""


Key = tuple[tuple[str, str], ...]
"""All parts of an identity, sorted."""


@dataclass(frozen=True)
class Figure:
    """A figure that does not vary between runs of the same code, or hardly.

    It may differ by the share ``tolerance`` and the amount ``slack``; where the bits of the two computations need not
    agree (another processor, another version of torch, another seed) by the share ``otherwise``, and if that is None
    nothing follows from a difference.
    """

    value: float | str
    tolerance: float = 0.0
    slack: float = 0.0
    otherwise: float | None = 0.0


@dataclass(frozen=True)
class Subject:
    """One thing that was measured.

    ``times`` holds seconds, one sample per independent repeat, the figure that decides first; ``scores`` one
    value per seed. ``bits`` is what the bits of its computation depend on beside the code: where two sides agree,
    so must everything that was computed.
    """

    identity: Mapping[str, str]
    times: Mapping[str, Sequence[float]] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    scores: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    bits: Hashable = None
    processes: Sequence[float] | None = None
    """Where several samples come from one process: the median of each process."""

    @property
    def key(self) -> Key:
        return tuple(sorted(self.identity.items()))


def names(subjects: Iterable[Subject]) -> dict[Key, str]:
    """A short name per key: the first part of its identity, and those that are not the same in all."""
    known = {each.key: each for each in subjects}
    parts = dict.fromkeys(part for each in known.values() for part in each.identity)
    values = {part: {each.identity.get(part, "") for each in known.values()} for part in parts}
    return {
        key: " | ".join(
            text
            for i, (part, text) in enumerate(each.identity.items())
            if text and (i == 0 or len(values[part]) > 1)
        )
        for key, each in known.items()
    }


def joined(parts: Sequence[Subject]) -> Subject:
    """Subjects of one key, from several files of one side, as one: their samples side by side.

    What does not vary is the first's; of a seed that several trained, the score is the first's.
    """
    times = {
        figure: [sample for part in parts for sample in part.times.get(figure, ())]
        for figure in dict.fromkeys(figure for part in parts for figure in part.times)
    }
    scores = {
        figure: {
            seed: score for part in reversed(parts) for seed, score in part.scores.get(figure, {}).items()
        }
        for figure in dict.fromkeys(figure for part in parts for figure in part.scores)
    }
    return replace(
        parts[0],
        times=times,
        scores=scores,
        processes=[value for part in parts for value in part.processes or ()] or None,
    )


def of_result(result: Result) -> list[Subject]:
    """The measured cells of ``result``; a cell without a repeat is none."""
    return [
        _subject(cell, result)
        for cell in result.cells
        if any(rank.steps for repeat in cell.repeats for rank in repeat.ranks)
        or any(repeat.epochs for repeat in cell.repeats)
    ]


def _subject(cell: Cell, result: Result) -> Subject:
    training = result.kind == "training"
    return Subject(
        identity=subject(cell, result),
        times=_training_times(cell) if training else _step_times(cell),
        figures=_figures(cell),
        scores=_scores(cell) if training else {},
        bits=computation(result),
    )


def _step_times(cell: Cell) -> dict[str, list[float]]:
    """The median step of every repeat, and the mean of each phase of its slowest ranks."""
    repeats = [steps for repeat in cell.repeats if (steps := slowest_steps(repeat))]
    phases = {
        name.removesuffix("_s"): [fmean(getattr(step, name) for step in steps) for steps in repeats]
        for name in PHASES
    }
    return {"median": repeat_medians(cell), **phases}


def _training_times(cell: Cell) -> dict[str, list[float]]:
    """The training clock over all steps, per step: one sample per run."""
    runs = [
        repeat.epochs[-1].elapsed_s / steps
        for repeat in cell.repeats
        if repeat.epochs and (steps := sum(epoch.steps for epoch in repeat.epochs))
    ]
    return {"median": runs} if runs and min(runs) > 0 else {}


def _scores(cell: Cell) -> dict[str, dict[int, float]]:
    """Of every seed the last epoch's accuracy in percent, where the model has one, and its loss."""
    last = {repeat.seed or 0: repeat.epochs[-1] for repeat in cell.repeats if repeat.epochs}
    accuracy = {
        seed: 100 * epoch.validation_accuracy
        for seed, epoch in last.items()
        if epoch.validation_accuracy is not None
    }
    loss = {
        seed: epoch.validation_loss
        for seed, epoch in last.items()
        if epoch.validation_loss is not None and math.isfinite(epoch.validation_loss)
    }
    return {name: values for name, values in (("accuracy", accuracy), ("loss", loss)) if values}


def _figures(cell: Cell) -> dict[str, Figure]:
    """Bytes per step of all ranks together, entries, residual, and a digest of the parameters that came out."""
    ranks = [rank for repeat in cell.repeats for rank in repeat.ranks]
    runs = [(repeat.ranks, count) for repeat in cell.repeats if (count := _steps(repeat))]
    if not ranks or not runs:
        return {}
    payload = max(sum(rank.payload_bytes for rank in each) / count for each, count in runs)
    sent = fmean(sum(rank.tx_bytes for rank in each) / count for each, count in runs)
    varies = 0.0 if entry_of(cell.method).fixed_payload(cell.params) else SELECTED_TOLERANCE
    figures: dict[str, Figure] = {}
    if payload:
        figures["payload bytes"] = Figure(payload, otherwise=varies)
    if sent and cell.link.mechanism == "bucket":
        figures["charged bytes"] = Figure(sent, otherwise=varies)
    elif sent:
        # Acknowledgements are counted too, and how many there are is TCP's affair.
        figures["sent bytes"] = Figure(
            sent, COUNTED_TOLERANCE, COUNTED_SLACK * len(runs[0][0]), max(varies, COUNTED_TOLERANCE)
        )
    if selections := [rank.selection.steps for rank in runs[0][0] if rank.selection]:
        entries = sum(step.entries for kept in selections for step in kept) / runs[0][1]
        # These selectors keep exactly k entries, whatever the gradients, unless k itself adapts to them.
        exact = cell.params.get("selector", "exact") in ("exact", "random") and not cell.params.get(
            "adaptive"
        )
        figures["entries"] = Figure(entries, otherwise=0.0 if exact else SELECTED_TOLERANCE)
    if residual := max(rank.residual_bytes for rank in ranks):
        figures["residual bytes"] = Figure(residual)
    digests = {str(repeat.seed): repeat.ranks[0].parameters_sha256 for repeat in cell.repeats if repeat.ranks}
    if digests and None not in digests.values():
        for seed, digest in digests.items():
            name = "parameters" if seed == "None" else f"parameters, seed {seed}"
            figures[name] = Figure(str(digest), otherwise=None)
    return figures


def _steps(repeat: RepeatRecord) -> int:
    return sum(epoch.steps for epoch in repeat.epochs) or min(
        (len(rank.steps) for rank in repeat.ranks), default=0
    )
