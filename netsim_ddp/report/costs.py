"""What an epoch takes and costs, where the user has said what an hour of a worker costs."""

from __future__ import annotations

import math

from netsim_ddp.report.tables import Column, Table, table_of
from netsim_ddp.results.identity import settings_of
from netsim_ddp.results.labels import Labels, link_label
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.units import format_duration


def epoch_table(result: Result) -> Table | None:
    """A row for each measured or predicted cell; None where no examples of an epoch were named."""
    cells = [cell for cell in result.cells if cell.summary and _steps(cell, result)]
    if not cells:
        return None
    labels = Labels([cells])
    links = len({link_label(cell) for cell in cells}) > 1
    columns = [
        Column[Cell]("method", "method", labels.of, "left"),
        *([Column[Cell]("link", "link", link_label, "left")] if links else []),
        Column[Cell]("workers", "workers", lambda cell: str(cell.workers)),
        Column[Cell]("steps", "steps", lambda cell: f"{_steps(cell, result):,}"),
        Column[Cell]("time", "time", lambda cell: format_duration(_seconds(cell, result))),
    ]
    if any(_price(cell, result) for cell in cells):
        columns.append(Column[Cell]("cost", "cost", lambda cell: _cost(cell, result)))
    return table_of(columns, cells, "An epoch: steps of all workers, exchange included, without validation")


def _steps(cell: Cell, result: Result) -> int:
    """Steps of an epoch: every worker takes its batch of the examples in each."""
    settings = settings_of(cell, result)
    examples, batch = settings.get("examples_per_epoch"), settings.get("batch_size")
    if not isinstance(examples, int) or not isinstance(batch, int):
        return 0
    return math.ceil(examples / (batch * cell.workers))


def _seconds(cell: Cell, result: Result) -> float:
    return _steps(cell, result) * cell.summary.step_s.median if cell.summary else 0.0


def _price(cell: Cell, result: Result) -> float:
    price = settings_of(cell, result).get("price_per_hour")
    return float(price) if isinstance(price, int | float) else 0.0


def _cost(cell: Cell, result: Result) -> str:
    """All workers' hours at the price of one, in its own currency."""
    return f"{_price(cell, result) * cell.workers * _seconds(cell, result) / 3600:,.3g}"
