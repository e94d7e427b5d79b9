"""What ``netsim run`` measures: step times of every method on one link."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from netsim_ddp.link.options import Spelling, duration
from netsim_ddp.methods import SIXTEEN_BIT, entry_of, takes
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.origin import Origin
from netsim_ddp.results.codec import Substitute, substitute
from netsim_ddp.results.codec import load as load_times
from netsim_ddp.results.ready import ReadyTimes
from netsim_ddp.results.ready import load as load_ready
from netsim_ddp.scenario.settings import MAX_SECONDS, Settings, available_cores, refuse

if TYPE_CHECKING:
    Rival = str
else:
    Rival = Literal[("auto", *SIXTEEN_BIT.values(), "none")]


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
                "ready_from",
                self.ready_from is not None and self.compute_s is None,
                "ready times are played under --compute only: else backward passes are real",
                "write --compute 50ms",
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

    def cells(self) -> tuple[MethodSpec, ...]:
        """One spec per cell: ``ratio`` filled in, and ``dense`` doubled.

        Others overlap as ``overlap`` says; by default where ``compute`` stands in for an accelerator, which the codec
        does not hold up. Dense without a word on overlap of its own runs both ways, because a comparison with only the
        one that does not overlap its communication with the backward pass flatters every other method.
        """
        overlap = self.overlap == "on" or (self.overlap == "auto" and self.compute_s is not None)
        cells: list[MethodSpec] = []
        for method in self.methods:
            params = self._with_ratio(method)
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
