"""What ``netsim run`` measures: step times of every method on one link."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from netsim_ddp.errors import UsageError
from netsim_ddp.link.options import Spelling, duration
from netsim_ddp.methods import SIXTEEN_BIT, entry_of, takes
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.origin import Origin
from netsim_ddp.results.codec import Substitute, substitute
from netsim_ddp.results.codec import load as load_times
from netsim_ddp.results.fields import validated
from netsim_ddp.results.ready import ReadyTimes
from netsim_ddp.results.ready import load as load_ready
from netsim_ddp.results.recorded import RecordedTraining, found, summary_of
from netsim_ddp.results.recording_file import read
from netsim_ddp.scenario.settings import (
    MAX_SECONDS,
    Settings,
    available_cores,
    no_recording,
    refuse,
)

if TYPE_CHECKING:
    Rival = str
else:
    Rival = Literal[("auto", *SIXTEEN_BIT.values(), "none")]


RECORDED_KEYS = (
    "model", "dataset", "data_dir", "download", "text", "batch_size", "loss_function", "optimizer", "weight_decay",
    "learning_rate", "momentum", "compute", "compute_s", "ready_from",
)  # fmt: skip
"""What a recording says, or has no use for: nothing else may."""


class Scenario(Settings):
    """One run: the model, the link, the methods and how often."""

    spellings: ClassVar[Mapping[str, Spelling]] = {
        **Settings.spellings,
        "compute": Spelling(
            ("compute_s",), duration, "how long forward, backward and optimizer take (where is --device)"
        ),
    }
    examples: ClassVar[Mapping[str, str]] = {**Settings.examples, "compute": "50ms", "compute_s": "0.05"}

    compute_s: float | None = Field(default=None, gt=0, le=MAX_SECONDS, allow_inf_nan=False)
    execution: Literal["auto", "concurrent", "replayed"] = "auto"
    steps: int = Field(default=20, ge=1, le=10**6)
    warmup: int = Field(default=3, ge=0, le=10**6)
    statistics: Literal["none", "total", "layers"] = "none"
    baseline: Rival = "auto"
    """Dense in 16 bits, overlapped with backward, which every run measures beside its methods."""
    codec_from: Substitute | None = None
    """Times of ``netsim bench compress`` that stand in for those measured here: a file, or what was read of it."""

    ready_from: ReadyTimes | None = None
    """When gradients are ready in a backward pass that was measured elsewhere: a file, or what was read of it."""

    recording: RecordedTraining | None = None
    """The recorded training that is played in place of a model: a file, or what was read of it."""
    scale_compute: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    """How long the recording's forward, backward and optimizer take, as a multiple of what they took."""

    @model_validator(mode="before")
    @classmethod
    def _play_the_recording(cls, data: Any, info: ValidationInfo) -> Any:
        values, origin = dict(data), Origin.of(info)
        if (given := values.get("recording")) is None:
            return values
        with origin.naming("recording"):
            recorded = _recorded(given, origin)
        derived = {"model": recorded.label, "batch_size": recorded.batch_size}
        # What a result holds beside its recording are defaults, resolved.
        written = set(values) if isinstance(given, str | Path) else origin.flags | origin.sets
        for key in RECORDED_KEYS:
            default = cls.model_fields[key].default if key in cls.model_fields else None
            if key not in written or values[key] is None:
                continue
            if key not in origin.flags | origin.sets and values[key] in (default, derived.get(key)):
                continue
            with origin.naming(key):
                raise UsageError(
                    f"{origin.label(key)} and {origin.label('recording')} do not go together: the recording holds "
                    "what is trained, and how long that takes",
                    hint=f"leave {origin.label(key)} away"
                    + ("; --scale-compute 0.2 stands for a faster machine" if key[:7] == "compute" else ""),
                )
        return values | {"recording": recorded} | {key: value for key, value in derived.items() if value}

    @field_validator("codec_from", "ready_from", mode="before")
    @classmethod
    def _times_of_a_file(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str | Path):
            return value
        path = Path(value)
        with Origin.of(info).naming(str(info.field_name)):
            if info.field_name == "ready_from":
                return load_ready(path, str(info.data.get("model", "")))
            return substitute(load_times(path), path.name, info.data.get("threads") or available_cores())

    @model_validator(mode="after")
    def _times_can_be_played(self, info: ValidationInfo) -> Self:
        refuse(
            info,
            (
                "momentum",
                self.momentum > 0 and self.optimizer != "sgd",
                f"momentum is of SGD, and {self.optimizer} has betas of its own",
                "leave momentum out, or write --optimizer sgd",
            ),
            (
                "ready_from",
                self.ready_from is not None and self.compute_s is None,
                "ready times are played under --compute only: else backward passes are real",
                "write --compute 50ms",
            ),
            no_recording(self.model if self.recording is None else ""),
            (
                "scale_compute",
                self.scale_compute != 1.0 and self.recording is None,
                "only a recording's times can be scaled",
                "write --recording FILE, or --compute 50ms",
            ),
            (
                "execution",
                self.codec_from is not None and self.execution == "concurrent",
                "codec times can be substituted only in replayed execution",
                "write --execution replayed",
            ),
        )
        return self

    def resolved(self) -> Scenario:
        """This scenario with the defaults that depend on other values, or on this machine, filled in."""
        cores = available_cores()
        execution = self.execution
        if execution == "auto":
            execution = "replayed" if self.workers > cores or self.codec_from else "concurrent"
        return self.model_copy(
            update={
                "execution": execution,
                **self.training(),
                # Replayed, a rank has by default the host to itself while it is measured, as on a machine of its own.
                "threads": self.threads
                or (cores if execution == "replayed" else max(1, cores // self.workers)),
                "methods": self.cells(),
            }
        )

    @property
    def under_adam(self) -> bool:
        """Whether Adam or AdamW updates the parameters, here or where the recording was made."""
        if self.recording is not None:
            return (self.recording.optimizer or "").startswith("Adam")
        return super().under_adam

    def cells(self) -> tuple[MethodSpec, ...]:
        """One spec per cell: ``ratio`` filled in, ``dense_below`` under Adam, and ``dense`` doubled.

        Others overlap as ``overlap`` says; by default where ``compute`` or a recording stands in for an accelerator,
        which the codec does not hold up. Dense without a word on overlap of its own runs both ways, because a
        comparison with only the one that does not overlap its communication with the backward pass flatters every
        other method.

        Under Adam and AdamW small parameters are sent whole (docs/training.md); ``dense_below=0`` is plain Top-K.
        """
        apart = self.compute_s is not None or self.recording is not None
        overlap = self.overlap == "on" or (self.overlap == "auto" and apart)
        cells: list[MethodSpec] = []
        for method in self.methods:
            params = self._with_whole(method, self._with_ratio(method))
            baseline = entry_of(method.name).is_baseline
            if overlap and not baseline and takes(method.name, "overlap"):
                params.setdefault("overlap", params.get("scope") != "model")
            if baseline and "overlap" not in params:
                cells += [MethodSpec(name=method.name, params={"overlap": each}) for each in (False, True)]
            else:
                cells.append(MethodSpec(name=method.name, params=params))
        return tuple(self._with_baseline(cells))

    def _with_baseline(self, cells: list[MethodSpec]) -> list[MethodSpec]:
        """``cells`` and, behind the dense ones, dense in 16 bits overlapped with backward as DDP's own hook does it:
        float16 on Gloo, which has no sum of bfloat16, and bfloat16 on NCCL."""
        there = {cell.name for cell in cells if entry_of(cell.name).rival_on and cell.params.get("overlap")}
        wanted = self.baseline
        if wanted == "auto":
            on_nccl = self.backend == "nccl" or (self.backend == "auto" and self.device == "cuda")
            wanted = SIXTEEN_BIT["nccl" if on_nccl else "gloo"]
            if there:
                return cells
        if wanted == "none" or wanted in there or self.workers == 1:
            return cells
        place = max((i for i, cell in enumerate(cells, 1) if entry_of(cell.name).is_baseline), default=0)
        return [*cells[:place], MethodSpec(name=wanted, params={"overlap": True}), *cells[place:]]


def _recorded(given: Any, origin: Origin) -> RecordedTraining:
    """What a file holds that is named ``given``; or, read before and perhaps from a result, what is known of it.

    Raises:
        UsageError: it cannot be read, or is another one than the result's.
    """
    beside = None if "recording" in origin.flags | origin.sets else origin.source
    if isinstance(given, str | Path):
        path = found(str(given), beside)
        return summary_of(path, read(path))
    known = (
        given
        if isinstance(given, RecordedTraining)
        else validated(
            RecordedTraining, given, source="recording", hint="write --recording and a file of netsim record"
        )
    )
    if origin.source is None:
        return known
    here = known.model_copy(update={"path": str(found(known.path, beside))})
    here.open()
    return here
