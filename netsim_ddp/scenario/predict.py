"""What ``netsim predict`` computes: step times of every method on links and among ranks that are not here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from netsim_ddp.origin import Origin
from netsim_ddp.results.prediction_errors import PredictionErrors, own
from netsim_ddp.results.prediction_errors import load as load_errors
from netsim_ddp.scenario.settings import available_cores, refuse
from netsim_ddp.scenario.steps import Scenario

MAX_PREDICTED = 65_536


class PredictScenario(Scenario):
    """One prediction: as a run under ``--compute``, of any number of workers. ``threads`` are a worker's own."""

    workers: int = Field(default=4, ge=1, le=MAX_PREDICTED)
    execution: Literal["predicted"] = "predicted"  # type: ignore[assignment]
    link: Literal["model"] = "model"  # type: ignore[assignment]
    device: Literal["cpu"] = "cpu"
    backend: Literal["gloo"] = "gloo"
    repeats: int = Field(default=1, ge=1, le=1000)
    errors: PredictionErrors | None = Field(default_factory=own)
    """How far predictions were off: a file of ``netsim predict --validate --json``, or what was read of it; by default
    netsim's own validation, ``none`` where it shall not be said."""

    price_per_hour: float | None = Field(default=None, gt=0, le=1e6, allow_inf_nan=False)
    """Of one worker, in any currency."""
    examples_per_epoch: int | None = Field(default=None, ge=1, le=10**12)

    @field_validator("errors", mode="before")
    @classmethod
    def _errors_of_a_file(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str | Path):
            return value
        if value == "none":
            return None
        with Origin.of(info).naming("errors"):
            return load_errors(Path(value))

    @model_validator(mode="after")
    def _can_be_predicted(self, info: ValidationInfo) -> Self:
        spec = self.link_spec()
        refuse(
            info,
            (
                "compute",
                self.compute_s is None and self.recording is None,
                "what a step computes must be known to predict it",
                "write --recording FILE (netsim record makes one), or --compute 50ms: forward, backward and "
                "optimizer of one worker's batch",
            ),
            (
                "price_per_hour",
                self.price_per_hour is not None and self.examples_per_epoch is None,
                "what an epoch costs depends on how many examples it has",
                "write --examples-per-epoch 1281167",
            ),
            (
                "examples_per_epoch",
                self.examples_per_epoch is not None
                and self.recording is not None
                and self.recording.batch_size is None,
                "how many steps an epoch has is not known: the recording does not say what its batches are",
                "record it with a DataLoader",
            ),
            (
                "bandwidth",
                spec.varies,
                "a link whose rate changes is not predicted",
                "measure it with netsim run",
            ),
            (
                "loss",
                spec.loss > 0,
                "a link that loses packets is not predicted",
                "measure it with netsim run",
            ),
        )
        return self

    def resolved(self) -> PredictScenario:
        """As :meth:`Scenario.resolved`; a worker has all of this machine's cores, as on a machine of its own."""
        threads = self.threads or available_cores()
        return self.model_copy(update={**self.training(), "threads": threads, "methods": self.cells()})
