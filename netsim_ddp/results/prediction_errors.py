"""How far predictions were from what was measured, and so how far the next one may be.

The errors of a validation (``netsim predict --validate``) are predicted over measured, less 1. What is kept of them is
where the middle 90% of them lie, by method where there are enough, and what settings they are of: beyond those a
prediction is extrapolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pydantic import ConfigDict

from netsim_ddp.errors import UsageError
from netsim_ddp.results.fields import Count, Finite, Positive, Seconds, Strict, validated
from netsim_ddp.results.files import decode, read_bytes
from netsim_ddp.results.validation import ValidatedCell, Validation
from netsim_ddp.units import format_duration, format_rate

SHARE = 0.9
"""Of the errors, how many an interval holds."""
FEWEST = 6
"""With fewer cells of a method the errors of all methods count."""
OWN = Path(__file__).with_name("validated.json")
"""The errors of netsim's own validation: ``python reports/figures.py --tables`` takes them from its file."""


class ErrorRange(Strict):
    """The middle :data:`SHARE` of the signed errors of ``cells`` cells."""

    model_config = ConfigDict(frozen=True)

    cells: Count
    low: Finite
    high: Finite


class PredictionErrors(Strict):
    """The errors of one validation: of ``all`` methods together, and ``by_method`` where there are enough. The others
    say between what settings its cells lie."""

    model_config = ConfigDict(frozen=True)

    source: str
    all: ErrorRange
    by_method: dict[str, ErrorRange]
    workers: tuple[Count, Count]
    bandwidth_bps: tuple[Positive, Positive]
    delay_s: tuple[Seconds, Seconds]

    def of(self, method: str) -> ErrorRange:
        """The errors of ``method``."""
        return self.by_method.get(method, self.all)

    def beyond(self, workers: int, bandwidth_bps: float, delay_s: float) -> list[str]:
        """What of a setting lies beyond the validation's, in words."""
        found = []
        if not self.workers[0] <= workers <= self.workers[1]:
            found.append(f"{workers} workers (validated: {self.workers[0]} to {self.workers[1]})")
        if not self.bandwidth_bps[0] <= bandwidth_bps <= self.bandwidth_bps[1]:
            low, high = map(format_rate, self.bandwidth_bps)
            found.append(f"{format_rate(bandwidth_bps)} (validated: {low} to {high})")
        if delay_s > self.delay_s[1]:
            found.append(
                f"delay {format_duration(delay_s)} (validated: up to {format_duration(self.delay_s[1])})"
            )
        return found


@cache
def own() -> PredictionErrors:
    """Those of netsim's own validation, which stand beside a prediction that names no others."""
    return PredictionErrors.model_validate_json(OWN.read_text(encoding="utf-8"))


def load(path: Path) -> PredictionErrors:
    """The errors in a file of ``netsim predict --validate --json``.

    Raises:
        UsageError: it is no such file, or none of its cells counts.
    """
    hint = "name a file of netsim predict --validate RUN.json --json FILE"
    data = decode(read_bytes(path), source=str(path))
    if not isinstance(data, dict) or data.get("kind") != "validation":
        raise UsageError(f"{path} holds no validation", hint=hint)
    return errors_of(validated(Validation, data, source=str(path), hint=hint), path.name)


def errors_of(validation: Validation, source: str) -> PredictionErrors:
    """The errors of ``validation``.

    Raises:
        UsageError: none of its cells counts.
    """
    cells = [cell for cell in validation.cells if cell.counts and cell.bandwidth_bps]
    if not cells:
        raise UsageError(
            f"no cell of {source} can be held against its prediction", hint="validate more cells"
        )
    methods = {cell.method: [each for each in cells if each.method == cell.method] for cell in cells}
    return PredictionErrors(
        source=source,
        all=_range(cells),
        by_method={name: _range(some) for name, some in methods.items() if len(some) >= FEWEST},
        workers=(min(cell.workers for cell in cells), max(cell.workers for cell in cells)),
        bandwidth_bps=_span([float(cell.bandwidth_bps or 0) for cell in cells]),
        delay_s=_span([cell.delay_s for cell in cells]),
    )


def _span(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _range(cells: Sequence[ValidatedCell]) -> ErrorRange:
    """Of few cells, all of them: the outermost ranks that leave no more than the rest outside."""
    found = sorted(cell.error for cell in cells if cell.error is not None)
    left = int((1 - SHARE) / 2 * len(found))
    return ErrorRange(cells=len(found), low=found[left], high=found[-1 - left])
