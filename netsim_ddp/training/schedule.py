"""The learning rate as a function of how far a training is; nothing to save, nothing to restore."""

from __future__ import annotations

import math

from netsim_ddp.scenario import TrainScenario


def rate_at(scenario: TrainScenario, progress: float) -> float:
    """The learning rate of the step that starts ``progress`` epochs into the training.

    A linear warm-up over ``warmup_epochs``, which ends at the full rate; then constant, half a cosine down to 0, or
    ``gamma`` times less every ``step_epochs``, counted from the start.

    Args:
        scenario: resolved.
        progress: in [0, epochs).
    """
    base, warmup, epochs = scenario.learning_rate, scenario.warmup_epochs, scenario.epochs
    if progress < warmup:
        # Not from zero: a first step with rate 0 would be a step thrown away.
        return float(base * max(progress / warmup, 0.01))
    if scenario.schedule == "cosine":
        return float(base * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (epochs - warmup))))
    if scenario.schedule == "step":
        assert scenario.step_epochs is not None, "resolved"
        return float(base * scenario.gamma ** int(progress / scenario.step_epochs))
    return float(base)
