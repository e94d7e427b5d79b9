"""How far predicted steps are from measured ones, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal

from netsim_ddp.results.fields import Count, Positive, Seconds, Strict, Tool
from netsim_ddp.results.record import Execution, Interval, Mechanism


class ValidatedCell(Strict):
    """One measured cell and its prediction. ``host_limited``: this host and not the link set its pace, which no
    prediction of the link says: it is listed, and does not count. ``reason``: why it was not predicted."""

    id: str
    source: str
    method: str
    model: str
    workers: Count
    bandwidth_bps: Positive | None
    delay_s: Seconds
    execution: Execution
    mechanism: Mechanism
    measured_s: Interval
    predicted_s: Seconds | None = None
    host_limited: bool = False
    reason: str | None = None

    @property
    def error(self) -> float | None:
        """Predicted over measured, less 1."""
        return None if self.predicted_s is None else self.predicted_s / self.measured_s.median - 1

    @property
    def counts(self) -> bool:
        return self.predicted_s is not None and not self.host_limited


class Validation(Strict):
    """All cells of some result files, predicted."""

    schema_version: Literal[1] = 1
    kind: Literal["validation"] = "validation"
    tool: Tool
    created_utc: str
    environment: dict[str, object]
    command: str
    cells: list[ValidatedCell]


def errors(cells: Sequence[ValidatedCell]) -> list[float]:
    """The magnitudes of the errors of the cells that count, ascending."""
    return sorted(abs(cell.error) for cell in cells if cell.counts and cell.error is not None)


def typical(cells: Sequence[ValidatedCell]) -> tuple[float, float] | None:
    """Median and 95th percentile of the errors' magnitudes (the smallest value that at least 95% do not exceed); None
    where no cell counts."""
    found = errors(cells)
    if not found:
        return None
    return median(found), found[-(-95 * len(found) // 100) - 1]
