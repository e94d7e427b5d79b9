"""From raw step samples to what the tables show: ``summarise`` fills ``Cell.summary``, ``notes`` warns.

A step lasts as long as its slowest rank, and that rank's phases explain it. Every cell is compared with a dense
all-reduce in 16 bits, overlapped with backward, and in fp32 with and without overlap, on the same link, workers and
execution only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any, Literal, TypeVar

from netsim_ddp.methods import BASELINE, SIXTEEN_BIT, entry_of
from netsim_ddp.results import stats
from netsim_ddp.results.identity import setting
from netsim_ddp.results.limits import bound, is_limited
from netsim_ddp.results.record import (
    Bound,
    Cell,
    Interval,
    Phases,
    RankRecord,
    RepeatRecord,
    StepRecord,
    Summary,
)
from netsim_ddp.stolen import NOTICEABLE
from netsim_ddp.units import counted

_T = TypeVar("_T")
PHASES = tuple(Phases.model_fields)
# Clock reads between phases cost microseconds; more than this is a phase nobody timed.
UNEXPLAINED_FLOOR = 0.01

Rival = Literal["dense16", "overlapped", "plain"]
RIVALS: Mapping[Rival, str] = {
    "dense16": "16-bit dense",
    "overlapped": "overlapped dense",
    "plain": BASELINE.name,
}
"""What every method is held against, and its name: first what a reader would otherwise run."""


def summarise(cells: Sequence[Cell]) -> list[Cell]:
    """New cells with ``summary`` computed from their samples; the given ones are not changed.

    A cell without a single measured step gets ``summary=None``.
    """
    measured = [
        cell.model_copy(
            update={
                "summary": _measure(cell),
                "link": cell.link.model_copy(update={"host_limited": is_limited(cell)}),
            }
        )
        for cell in cells
    ]
    return [
        cell.model_copy(update={"summary": _compare(cell, cell.summary, measured)}) if cell.summary else cell
        for cell in measured
    ]


def is_dense(cell: Cell) -> bool:
    """The baseline: an uncompressed fp32 all-reduce."""
    return entry_of(cell.method).is_baseline and str(cell.params.get("values", "fp32")) == "fp32"


def is_dense16(cell: Cell) -> bool:
    """An all-reduce of all gradients in 16 bits: what DDP's own fp16 or bf16 hook does."""
    named = entry_of(cell.method)
    return bool(named.rival_on) or (
        named.is_baseline and str(cell.params.get("values")) in SIXTEEN_BIT.values()
    )


ALONE = (
    "One worker exchanges nothing: there is no network in these figures, and nothing to compare with dense."
)


def held_against(cell: Cell, cells: Iterable[Cell], rival: Rival) -> Cell | None:
    """The measured cell of ``cell``'s setting that is ``rival`` to it, of the same ``threads`` where there is a choice.

    Of 16-bit dense it is bf16 on NCCL and fp16 on Gloo where both ran, as ``--baseline auto`` chooses. None with one
    worker, which exchanges nothing, or where it was not measured.
    """
    if cell.workers == 1:
        return None
    is_rival = is_dense16 if rival == "dense16" else is_dense
    found = [
        other
        for other in cells
        if other.summary
        and is_rival(other)
        and other.overlap == (rival != "plain")
        and setting(other) == setting(cell)
    ]
    usual = SIXTEEN_BIT.get(cell.backend, SIXTEEN_BIT["gloo"]) if rival == "dense16" else ""
    return min(found, key=lambda other: (usual not in other.id, other.threads != cell.threads), default=None)


def speedup_bound(summary: Summary, rival: Rival) -> Bound | None:
    """What :func:`speedup` is: exact, or a bound; None without that rival."""
    return {
        "dense16": summary.speedup_vs_dense16_bound,
        "overlapped": summary.speedup_vs_overlapped_bound,
        "plain": summary.speedup_bound,
    }[rival]


def speedup(summary: Summary, rival: Rival) -> float | None:
    """``rival``'s step / this step."""
    return {
        "dense16": summary.speedup_vs_dense16,
        "overlapped": summary.speedup_vs_overlapped,
        "plain": summary.speedup,
    }[rival]


def slowest_steps(repeat: RepeatRecord) -> list[StepRecord]:
    """For every step that all ranks completed, the record of the rank that took longest."""
    return [
        max(records, key=lambda record: record.wall_s)
        for records in zip(*(rank.steps for rank in repeat.ranks), strict=False)
    ]


def repeat_medians(cell: Cell, clock: Literal["wall_s", "elapsed_s"] = "wall_s") -> list[float]:
    """One number per repeat: its median step by ``clock``, seconds."""
    clocks = (
        [[getattr(step, clock) for step in rank.steps] for rank in repeat.ranks] for repeat in cell.repeats
    )
    measured = ([max(ranks) for ranks in zip(*each, strict=False)] for each in clocks)
    return [median(steps) for steps in measured if steps]


def elapsed_step_s(cell: Cell) -> float | None:
    """Seconds a step took this host when really executed: a replayed cell's other clock."""
    elapsed = repeat_medians(cell, "elapsed_s")
    return median(elapsed) if elapsed else None


def _measure(cell: Cell) -> Summary | None:
    """Everything that needs this cell alone."""
    repeats = [(repeat, steps) for repeat in cell.repeats if (steps := slowest_steps(repeat))]
    if not repeats:
        return None
    step = stats.interval(repeat_medians(cell))
    if cell.prediction_error is not None:
        low, high = cell.prediction_error.interval(step.median)
        step = Interval(median=step.median, ci_low=low, ci_high=high)
    median_steps = _median_steps([steps for _, steps in repeats])
    found: dict[str, Any] = {
        name: fmean(getattr(record, name) for record in median_steps) for name in (*PHASES, "hidden_s")
    }
    if not math.fsum(found[name] for name in PHASES) > 0:
        found["other_s"] = step.median
    for name in ("tx_bytes", "payload_bytes"):
        found[f"{name}_per_step"] = fmean(
            max(getattr(rank, name) / len(rank.steps) for rank in each.ranks) for each, _ in repeats
        )
    ranks = [rank for repeat, _ in repeats for rank in repeat.ranks]
    return Summary(
        step_s=step,
        **found,
        efficiency=_ratio(found["compute_s"], step.median) or 0.0,
        residual_bytes=max(rank.residual_bytes for rank in ranks),
        peak_memory_bytes=max(rank.peak_memory_bytes for rank in ranks),
        first_loss=_mean_loss(ranks, 0),
        last_loss=_mean_loss(ranks, -1),
    )


def _median_steps(repeats: Sequence[Sequence[StepRecord]]) -> list[StepRecord]:
    """The steps whose mean is the cell's step: of the repeat in the middle the step in the middle, or of two in the
    middle both, so that the phases shown are those of real steps and add up to the step they stand beside."""
    by_repeat = sorted(
        (sorted(steps, key=lambda step: step.wall_s) for steps in repeats),
        key=lambda steps: median([step.wall_s for step in steps]),
    )
    # A mean of means: with 2 and 1 steps in the middle of two repeats the single one counts twice.
    middles = [_middle(steps) for steps in _middle(by_repeat)]
    return [step for steps in middles for step in steps * (2 // len(steps))]


def _middle(ordered: Sequence[_T]) -> list[_T]:
    """The one in the middle, or the two."""
    count = len(ordered)
    return list(ordered[(count - 1) // 2 : count // 2 + 1])


def _compare(cell: Cell, summary: Summary, cells: Sequence[Cell]) -> Summary:
    """``summary`` with what needs the dense cells of the same setting."""
    dense16, overlapped, dense = (held_against(cell, cells, rival) for rival in RIVALS)
    sender = dense or overlapped  # both move the same bytes
    sent = sender.summary.tx_bytes_per_step if sender and sender.summary else 0.0
    return summary.model_copy(
        update={
            "wire_reduction": _ratio(sent, summary.tx_bytes_per_step) or None,
            "speedup_vs_dense16": _speedup(dense16, cell, summary),
            "speedup_vs_dense16_bound": dense16 and bound(cell, dense16),
            "speedup": _speedup(dense, cell, summary),
            "speedup_bound": dense and bound(cell, dense),
            "speedup_vs_overlapped": _speedup(overlapped, cell, summary),
            "speedup_vs_overlapped_bound": overlapped and bound(cell, overlapped),
        }
    )


def _speedup(dense: Cell | None, cell: Cell, summary: Summary) -> float | None:
    """Dense step / this step, perhaps a bound. None without a baseline, or where the host limits both."""
    if dense is None or dense.summary is None or bound(cell, dense) == "none":
        return None
    return _ratio(dense.summary.step_s.median, summary.step_s.median)


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None


def _mean_loss(ranks: Sequence[RankRecord], index: int) -> float | None:
    """Mean over ranks and repeats of one step's loss; a diverged NaN is kept, a missing one not counted."""
    losses = [loss for rank in ranks if (loss := rank.steps[index].loss) is not None]
    return fmean(losses) if losses else None


def notes(cells: Sequence[Cell]) -> list[str]:
    """What a careful reader of the samples would object to, one line each, with the number."""
    found = []
    for cell in cells:
        medians = repeat_medians(cell)
        if (spread := stats.noise(medians)) is not None:
            low, high = min(medians) * 1e3, max(medians) * 1e3
            found.append(
                f"{cell.id}: repeats differ by {spread:.0%} ({low:.3g} to {high:.3g} ms):"
                " close other programs or raise --repeats"
            )
        all_steps = [slowest_steps(repeat) for repeat in cell.repeats]
        for number, steps in enumerate(all_steps, start=1):
            if (change := stats.drift([step.wall_s for step in steps])) is not None:
                slower = "slower than it starts: is another program or a hot processor slowing it?"
                how = slower if change > 0 else "faster than it starts: raise --warmup"
                found.append(f"{cell.id}: run {number} ends {abs(change):.0%} {how}")
        wall = math.fsum(step.wall_s for steps in all_steps for step in steps)
        phases = math.fsum(getattr(step, name) for steps in all_steps for step in steps for name in PHASES)
        if abs(phases - wall) > UNEXPLAINED_FLOOR * wall:
            found.append(f"{cell.id}: the phases add up to {phases / wall:.1%} of the step")
    return found + _of_the_host([repeat for cell in cells for repeat in cell.repeats])


def _of_the_host(repeats: Sequence[RepeatRecord]) -> list[str]:
    """What a virtual machine's host took from ``repeats``."""
    found, limit = [], f"more than {NOTICEABLE:.0%}"
    of = f"of {counted(len(repeats), 'repeat')}"
    if again := sum(repeat.tries > 1 for repeat in repeats):
        found.append(
            f"{again} {of} ran again, because this virtual machine's host gave {limit} of its processors to others "
            "meanwhile; the try that it took least from counts"
        )
    shares = [repeat.stolen_share or 0.0 for repeat in repeats]
    if disturbed := [share for share in shares if share > NOTICEABLE]:
        found.append(
            f"during {len(disturbed)} {of} that count this virtual machine's host gave {limit} of its processors to "
            f"others (up to {max(disturbed):.0%}): what the processor does took longer, and may take another time later"
        )
    return found
