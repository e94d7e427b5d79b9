"""A collection as one tidy CSV: every raw sample is a row, every variable a column.

The column ``row`` says what a row is; columns that do not apply are empty (docs/reports.md lists them):

``step``
    one rank's measured step, in seconds: its phases add up to ``wall_s``.
``rank``
    one rank of one repeat: what it sent, received and kept.
``selection``
    what one rank's selection sent and kept back in one step (``--statistics``).
``epoch``
    one epoch of one seed of a training.
``cell``
    one cell's summary; no raw sample.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from netsim_ddp.report.assumptions import assumptions
from netsim_ddp.report.collection import Collection, Entry
from netsim_ddp.results.labels import clean
from netsim_ddp.results.record import LinkRecord, RankRecord, SelectedStep, StepRecord, Summary
from netsim_ddp.results.training_record import EpochRecord

WHERE = (
    "row", "file", "cell", "method", "params", "label", "model", "dataset", "workers", "bandwidth_bps", "delay_s",
    "mechanism", "link", "execution", "overlap", "threads", "device", "backend", "assumed", "axes",
    "error",
)  # fmt: skip
SAMPLE = ("repeat", "seed", "rank", "step", "epoch")
_STEP = tuple(StepRecord.model_fields)
_RANK = tuple(name for name in RankRecord.model_fields if name not in ("rank", "steps", "selection"))
_SELECTION = tuple(SelectedStep.model_fields)
_EPOCH = tuple(name for name in EpochRecord.model_fields if name not in ("epoch", "phases_s"))
_LINK = tuple(
    f"link_{name}" for name in LinkRecord.model_fields if name not in ("mechanism", "shape", "delay_s")
)
_SUMMARY = (
    "step_s_median", "step_s_ci_low", "step_s_ci_high",
    *(name for name in Summary.model_fields if name != "step_s"),
)  # fmt: skip
COLUMNS = tuple(dict.fromkeys((*WHERE, *SAMPLE, *_STEP, *_RANK, *_SELECTION, *_EPOCH, *_SUMMARY, *_LINK)))
"""In this order; a name that several kinds of rows share is one column."""


def table(collection: Collection) -> str:
    """The whole CSV, with its header."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    place = {name: number for number, name in enumerate(COLUMNS)}
    for entry in collection.entries:
        blank: list[Any] = [""] * len(COLUMNS)
        blank[1 : len(WHERE)] = _where(entry)
        for kind, values in _rows(entry):
            row = blank.copy()
            row[0] = kind
            for name, value in values.items():
                row[place[name]] = _written(value)
            writer.writerow(row)
    return stream.getvalue()


def _where(entry: Entry) -> list[Any]:
    cell = entry.cell
    values = (
        entry.source.name, cell.id, cell.method, _json(cell.params), entry.label, cell.model, cell.dataset,
        cell.workers, cell.bandwidth_bps, cell.link.delay_s, cell.link.mechanism, cell.link.shape, cell.execution,
        cell.overlap, cell.threads, cell.device, cell.backend, "; ".join(assumptions([cell], entry.source.result)),
        _json(cell.axes), cell.error,
    )  # fmt: skip
    return [_written(value) for value in values]


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, default=str) if value else ""


def _rows(entry: Entry) -> Iterator[tuple[str, dict[str, Any]]]:
    cell = entry.cell
    yield "cell", _cell(entry)
    for number, repeat in enumerate(cell.repeats):
        run = {"repeat": number, "seed": repeat.seed}
        for epoch in repeat.epochs:
            yield "epoch", {**run, "epoch": epoch.epoch, **_fields(epoch, _EPOCH)}
        for rank in repeat.ranks:
            who = {**run, "rank": rank.rank}
            yield "rank", {**who, **_fields(rank, _RANK)}
            for index, step in enumerate(rank.steps):
                yield "step", {**who, "step": index, **vars(step)}
            for index, selected in enumerate(rank.selection.steps if rank.selection else ()):
                yield "selection", {**who, "step": index, **_fields(selected, _SELECTION)}


def _cell(entry: Entry) -> dict[str, Any]:
    summary, link = entry.cell.summary, entry.cell.link
    values: dict[str, Any] = {
        f"link_{name}": value
        for name, value in vars(link).items()
        if name not in ("mechanism", "shape", "delay_s")
    }
    if summary is not None:
        step = summary.step_s
        values |= {
            "step_s_median": step.median, "step_s_ci_low": step.ci_low, "step_s_ci_high": step.ci_high,
            **{name: value for name, value in vars(summary).items() if name != "step_s"},
        }  # fmt: skip
    return values


def _fields(record: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(record, name) for name in names}


def _written(value: Any) -> Any:
    """Numbers as they are, which csv writes in full; switches as true and false. Text that a spreadsheet would compute
    with gets an apostrophe."""
    if value is None or type(value) in (float, int):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    text = clean(str(value))
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
