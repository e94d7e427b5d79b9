"""Trainings on a terminal or in a pipe: a table per link, and what it means in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from rich.console import Console

from netsim_ddp.options import written
from netsim_ddp.report.assumptions import UNSHAPED, why_bucket
from netsim_ddp.report.choices import choices
from netsim_ddp.report.labels import DASH, count_of, points, with_half
from netsim_ddp.report.tables import Column, table_of
from netsim_ddp.report.terminal.printing import print_line, print_table, shortened
from netsim_ddp.results.identity import groups, recipe
from netsim_ddp.results.labels import label
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.results.summary import ALONE
from netsim_ddp.results.training import WITHIN_POINTS
from netsim_ddp.results.training_record import MeanInterval, TrainingSummary
from netsim_ddp.results.verdicts import FLOOR, of_family
from netsim_ddp.units import counted, format_bytes, format_duration, format_rate

# Dropped in this order until the table fits; time is what a shaped link is for, and means little on the loopback.
DROPS = ("residual", "rate", "total", "loss", "sent")
DROPS_UNSHAPED = (*DROPS, "times", "time", "reduction", "verdict")
DROPS_SHAPED = (*DROPS, "verdict", "reduction", "times", "time")
RULE = (
    "Worse, better: claimed in accuracy or in loss, and worse in either is worse; within: even the interval's worse "
    f"end is at most {WITHIN_POINTS:g} point below dense, there were seeds enough to find it worse, and its "
    "loss's interval does not lie above dense's loss; not resolvable: more seeds would tell."
)
_LONGEST_LABEL = 36
_TOLD_METHODS = 4
"""So many methods get a sentence each; of more the table tells."""


def render_training(result: Result, console: Console, *, warnings: bool = True) -> None:
    """Print ``result``, whose cells carry their training summaries, to ``console``.

    ``warnings`` is off where they have gone to stderr while the run went on.
    """

    line = partial(print_line, console)
    line(_header(result), "bold")
    for cells in groups(result.cells):
        line(_link_line(cells, why_bucket(cells[0], result)))
        if any(cell.training for cell in cells):
            line("")
            _print_table(cells, console)
            line("")
            for sentence in sentences(cells):
                line(sentence)
    for sentence in choices(result):
        line(sentence)
    for cell in result.cells:
        if cell.error is not None:
            line(f"{cell.id}: {cell.error}", "yellow")
    for warning in result.warnings if warnings else ():
        line(f"warning: {warning}", "yellow")


def _header(result: Result) -> str:
    scenario = result.scenario
    model = str(scenario.get("model", "model unknown"))
    if result.model_parameters:
        model += f" {count_of(result.model_parameters)} params on {scenario.get('dataset')}"
    workers: Sequence[object] = sorted({cell.workers for cell in result.cells})
    workers = workers or [scenario.get("workers", "?")]
    epochs, seeds = scenario.get("epochs", "?"), scenario.get("repeats", "?")
    batches = {written(cell.axes.get("batch_size", scenario.get("batch_size", "?"))) for cell in result.cells}
    batch = ", ".join(sorted(batches)) or "?"
    if (accumulate := scenario.get("accumulate", 1)) != 1:
        batch = f"{batch} x {accumulate}"
    parts = (
        model,
        counted(workers, "worker"),
        f"{counted([epochs], 'epoch')} x {counted([seeds], 'seed')}",
        f"batch {batch} per worker",
        f"{scenario.get('optimizer')}, {scenario.get('schedule')}",
        *recipe({**scenario, "optimizer": "sgd"}),
    )
    return " | ".join(parts)


def _link_line(cells: Sequence[Cell], why: str) -> str:
    """The link, and what the bytes of the table are."""
    link = cells[0].link
    if link.mechanism in UNSHAPED:
        return "link none: the host's loopback; bytes are predicted by each method's formula"
    text = f"link {link.how}{why}: {link.shape or format_rate(link.requested_bps or 0)}"
    measured = [cell.link.measured_bps for cell in cells if cell.link.measured_bps is not None]
    if measured:
        text += f", got {format_rate(min(measured))}"
    if link.mechanism == "tc":
        drops = sum(cell.link.drops for cell in cells)
        text += f", {counted(drops, 'drop')}, {counted(sum(cell.link.retransmits for cell in cells), 'retransmit')}"
    return f"{text}; bytes are {cells[0].recipe.tx_are if cells[0].recipe else 'predicted'}"


@dataclass(frozen=True)
class _Row:
    cell: Cell
    summary: TrainingSummary
    label: str


def _columns(rows: Sequence[_Row]) -> list[Column[_Row]]:
    target = next((row.cell.recipe.target for row in rows if row.cell.recipe), None)
    reached = "to dense\n-1 pt, s" if target is None else f"to {100 * target:.4g}%\ns"
    return [
        Column("method", "method", lambda row: row.label, "left"),
        Column(
            "rate",
            "learn\nrate",
            lambda row: f"{row.cell.recipe.learning_rate:g}" if row.cell.recipe else DASH,
        ),
        Column("accuracy", "accuracy\n%", lambda row: with_half(row.summary.accuracy, ".2f", scale=100)),
        Column("difference", "vs dense\npoints", lambda row: points(row.summary.difference_points)),
        Column("verdict", "verdict", lambda row: _word(row.summary), "left"),
        Column("loss", "valid loss\n(to dense)", lambda row: _loss(row.summary)),
        Column("total", "epochs\ns", lambda row: _seconds(row.summary.epochs_s)),
        Column("time", reached, lambda row: _seconds(row.summary.time_to_accuracy_s)),
        Column("times", "vs\ndense", lambda row: _ratio(row.summary)),
        Column("sent", "sent\nper step", lambda row: _bytes(row.summary.tx_bytes_per_step)),
        Column(
            "reduction",
            "fewer\nbytes",
            lambda row: f"{row.summary.wire_reduction:.3g}x" if row.summary.wire_reduction else DASH,
        ),
        Column("residual", "residual\nper rank", lambda row: _bytes(row.summary.residual_bytes)),
    ]


def _rows(cells: Sequence[Cell]) -> list[_Row]:
    return [_Row(cell, cell.training, label(cell, cells)) for cell in cells if cell.training is not None]


def _print_table(cells: Sequence[Cell], console: Console) -> None:
    """Print the widest table that fits the console."""
    rows = _rows(cells)
    columns = _columns(rows)
    short = [replace(row, label=shortened(row.label, console, _LONGEST_LABEL)) for row in rows]
    drops = DROPS_UNSHAPED if cells[0].link.mechanism in UNSHAPED else DROPS_SHAPED
    variants = (
        table_of([column for column in columns if column.name not in drops[:count]], short)
        for count in range(len(drops) + 1)
    )
    print_table(console, variants, gap=1)


def _word(summary: TrainingSummary) -> str:
    if summary.verdict in (None, "baseline"):
        return DASH
    if too_few(summary):
        return "too few seeds"
    return f"within {WITHIN_POINTS:g}" if summary.verdict == "within" else str(summary.verdict)


def too_few(summary: TrainingSummary) -> bool:
    """Whether nothing can be claimed of the method, whatever its differences are."""
    return summary.verdict == "not resolvable" and len(summary.seeds) < summary.seeds_needed


def _loss(summary: TrainingSummary) -> str:
    if summary.loss is None:
        return DASH
    text, difference = f"{summary.loss.mean:.3g}", summary.loss_difference_percent
    return text if difference is None else f"{text} ({difference.mean:+.2g}%)"


def _seconds(value: float | None) -> str:
    return DASH if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _ratio(summary: TrainingSummary) -> str:
    if summary.verdict == "baseline":
        return "1.00"
    return DASH if summary.time_speedup is None else f"{summary.time_speedup:.2g}"


def _bytes(count: float) -> str:
    return DASH if count == 0 else format_bytes(count)


def sentences(cells: Sequence[Cell]) -> list[str]:
    """What the table of one link comes to."""
    rows = _rows(cells)
    if rows and all(row.cell.workers == 1 for row in rows):
        return [ALONE]
    compared = [row for row in rows if row.summary.verdict not in (None, "baseline")]
    found = [_verdict(row) for row in compared] if len(compared) <= _TOLD_METHODS else [RULE]
    if compared:
        first = compared[0].summary
        found.append(
            f"Rule: {of_family(first.comparisons)} (accuracy and loss of each method, seed by seed with dense); a "
            f"claim needs {first.seeds_needed} seeds."
        )
    resolutions = [r for row in rows if (r := row.summary.resolution_points) is not None]
    if resolutions and compared:
        most = max(resolutions)
        found.append(f"One of the {round(100 / most)} validation samples weighs {most:.2g} points.")
    return found


def _verdict(row: _Row) -> str:
    summary = row.summary
    parts = []
    if summary.difference_points is not None:
        parts.append(f"{points(summary.difference_points)} points")
    if summary.loss_difference_percent is not None:
        parts.append(f"validation loss {_share(summary.loss_difference_percent)}")
    count = len(summary.seeds)
    facts = f"{', '.join(parts)} over {counted(count, 'seed')}"
    needs = f"{facts}; a claim needs {summary.seeds_needed} seeds"
    return f"{row.label}: {needs if too_few(summary) else f'{_claim(summary)} ({facts})'}; {_time_sentence(row)}."


def _claim(summary: TrainingSummary) -> str:
    """``worse than dense in loss``."""
    said = {"accuracy": summary.accuracy_verdict, "loss": summary.loss_verdict}
    where = " and ".join(name for name, word in said.items() if word == summary.verdict)
    if summary.verdict == "within":
        reach = (
            f"{WITHIN_POINTS:g} point"
            if summary.difference_points is not None
            else f"{FLOOR:.0%} of the loss"
        )
        return f"within {reach} of dense"
    if summary.verdict == "not resolvable":
        return "no resolvable difference from dense"
    return f"{summary.verdict} than dense in {where}"


def _share(value: MeanInterval) -> str:
    """``+56±12%``."""
    return f"{with_half(value, '.2g', sign='+')}%" if math.isfinite(value.mean) else "diverged"


def _time_sentence(row: _Row) -> str:
    summary, seeds = row.summary, len(row.summary.seeds)
    target = row.cell.recipe.target if row.cell.recipe else None
    goal = f"dense's accuracy less {WITHIN_POINTS:g} point" if target is None else f"{100 * target:.4g}%"
    if summary.time_to_accuracy_s is None:
        return f"{goal} not reached"
    some = "" if summary.reached == seeds else f" by {summary.reached} of {seeds} seeds"
    text = f"{goal} reached{some} in {format_duration(summary.time_to_accuracy_s)}"
    if summary.time_speedup is not None and math.isfinite(summary.time_speedup):
        text += f", {summary.time_speedup:.2g}x as fast as dense"
    return text
