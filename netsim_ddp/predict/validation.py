"""Predicts what result files have measured, and holds the two against each other.

What the host does to exchanges is taken from the file, where the ranks measured it before their first step: what a
message costs, and the share of the line that TCP gets when all send at once. Nothing else of the file is used but its
settings: a cell's own step is not known to its prediction.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from netsim_ddp import __version__
from netsim_ddp.errors import NetsimError, UsageError
from netsim_ddp.link.spec import SEGMENT_PAYLOAD, SEGMENT_WIRE
from netsim_ddp.methods import takes
from netsim_ddp.predict.message_cost import Costs, MessageCost, measured
from netsim_ddp.predict.runner import predicted
from netsim_ddp.results.fields import Tool
from netsim_ddp.results.files import now_utc
from netsim_ddp.results.identity import asked_params, settings_of
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.results.summary import summarise
from netsim_ddp.results.validation import ValidatedCell, Validation
from netsim_ddp.scenario.files import validate_as
from netsim_ddp.scenario.predict import PredictScenario
from netsim_ddp.steps.environment import environment
from netsim_ddp.steps.experiment import Event, Report

_OF_A_RUN = {
    "execution", "link", "device", "backend", "repeats", "steps", "warmup", "statistics", "baseline", "methods",
    "timeout_s", "time_budget_s", "download", "sweep", "command", "title", "question", "delay_by",
}  # fmt: skip
"""Settings that say how something is measured, and not what."""


def validate(results: Mapping[str, Result], *, command: Sequence[str], report: Report) -> Validation:
    """Predict every measured cell of ``results``, by the names of their files.

    Raises:
        UsageError: a file holds predictions.
    """
    rows: list[ValidatedCell] = []
    for source, result in results.items():
        if any(cell.execution == "predicted" for cell in result.cells):
            raise UsageError(
                f"{source} holds predictions, which measure nothing", hint="name a file of netsim run --json"
            )
        cells = summarise(result.cells)
        for cell in cells:
            if cell.summary is None or cell.workers == 1:
                continue
            report(Event("note", f"predicting {cell.id}"))
            rows.append(_row(source, result, cell))
    return Validation(
        tool=Tool(version=__version__),
        created_utc=now_utc(),
        environment=environment(),
        command=shlex.join(command),
        cells=rows,
    )


def _row(source: str, result: Result, cell: Cell) -> ValidatedCell:
    assert cell.summary is not None
    row = ValidatedCell(
        id=cell.id,
        source=source,
        method=cell.method,
        model=cell.model or str(result.scenario.get("model")),
        workers=cell.workers,
        bandwidth_bps=cell.bandwidth_bps,
        delay_s=cell.link.delay_s,
        execution=cell.execution,
        mechanism=cell.link.mechanism,
        measured_s=cell.summary.step_s,
        host_limited=cell.link.host_limited,
    )
    try:
        scenario = _scenario(result, cell)
        again = predicted(scenario, _costs(cell), _at_once(result, cell))
    except NetsimError as error:
        return row.model_copy(update={"reason": error.message})
    assert again.summary is not None
    return row.model_copy(update={"predicted_s": again.summary.step_s.median})


def _at_once(result: Result, cell: Cell) -> int:
    """How many ranks worked at the same moment on the host that measured ``cell``, as many as it had cores for, and
    took memory bandwidth from each other."""
    cores = result.environment.get("cores")
    if cell.link.mechanism == "host" or not isinstance(cores, int):
        return 1
    return max(1, min(cell.workers, cores // cell.threads))


def _scenario(result: Result, cell: Cell) -> PredictScenario:
    """The cell's settings, of its one method."""
    settings = settings_of(cell, result)
    values = {
        key: value
        for key, value in settings.items()
        if key in PredictScenario.model_fields and key not in _OF_A_RUN and value is not None
    }
    params = asked_params(cell) | ({"overlap": cell.overlap} if takes(cell.method, "overlap") else {})
    ready = next((result.ready[key] for key in cell.ready if key in result.ready), None)
    return validate_as(
        PredictScenario,
        values
        | {"methods": [{"name": cell.method, "params": params}], "baseline": "none", "overlap": "off"}
        | {"workers": cell.workers, "threads": cell.threads, "ready_from": ready}
        | _rate(cell, settings),
        None,
    )


def _rate(cell: Cell, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The rates at which the cell's link is predicted: on tc what was asked for, less the share that TCP did not get
    when all ranks sent at once, before their first step; of a real network the line rate at which TCP would deliver
    what the ranks measured.

    Raises:
        UsageError: nobody measured it, or there was no network.
    """
    link = cell.link
    if link.mechanism == "bucket":
        return {}
    if link.mechanism == "tc":
        if not link.together_bps or not link.ceiling_bps or settings.get("slow_ranks"):
            return {}
        share = min(1.0, link.together_bps / link.ceiling_bps)
        keys = ("bandwidth_bps", "bandwidth_down_bps")
        return {key: round(settings[key] * share) for key in keys if settings.get(key)}
    if link.mechanism == "none" or not link.measured_bps:
        raise UsageError("it ran on a link of which no rate is known", hint="measure it with --bandwidth")
    return {"bandwidth_bps": round(link.measured_bps * SEGMENT_WIRE / SEGMENT_PAYLOAD)}


def _costs(cell: Cell) -> Costs:
    """What a message cost the hosts, as the ranks measured it before their steps."""
    found: dict[str, MessageCost] = {}
    for kind in {kind for repeat in cell.repeats for kind in repeat.message_s}:
        cost = median(repeat.message_s[kind] for repeat in cell.repeats if kind in repeat.message_s)
        found[kind] = MessageCost(cost, cost)
    return found or measured()
