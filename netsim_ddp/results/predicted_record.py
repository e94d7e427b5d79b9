"""What a result file says of how far a predicted cell may be off."""

from __future__ import annotations

from netsim_ddp.results.fields import Count, Finite, Strict


class PredictionError(Strict):
    """How far one prediction may be off: the errors of ``cells`` validated cells of ``source`` lie between ``low`` and
    ``high``; ``beyond`` says what of the setting is extrapolated."""

    source: str
    cells: Count
    low: Finite
    high: Finite
    beyond: list[str]

    def interval(self, predicted: float) -> tuple[float, float]:
        """Between what the measured value lies, for all we know."""
        return min(predicted, predicted / (1 + self.high)), max(predicted, predicted / (1 + self.low))
