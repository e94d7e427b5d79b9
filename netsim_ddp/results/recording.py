"""A recording: a user's own training as it was watched for some steps.

It says when each gradient bucket was full, how long forward, backward, optimizer and data took, and what the gradients
looked like. It holds no data and no parameters: of what was trained, gradients alone.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from statistics import median
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from netsim_ddp.results.fields import Count, Seconds, Strict, Tool

SCHEMA_VERSION = 1
BYTES_OF = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Of one element, by torch's name of its type."""

Name = Annotated[str, Field(min_length=1, max_length=500)]
Type = Literal["float64", "float32", "float16", "bfloat16"]
Offset = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e7)]
"""Seconds since the step began."""


class Parameter(Strict):
    """A trained parameter; its name is as ``model.named_parameters()`` has it."""

    name: Name
    shape: Annotated[list[Annotated[int, Field(ge=0, le=10**12)]], Field(max_length=32)]
    dtype: Type = "float32"

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class Bucket(Strict):
    """What was exchanged as one: of DDP, or by DDP's rule where the script has none. ``parameters`` are names in the
    model's order; empty where only sizes were seen (FSDP2, a trace)."""

    parameters: list[Name]
    numel: Annotated[int, Field(ge=1, le=10**12)]
    dtype: Type = "float32"

    @property
    def bytes(self) -> int:
        return self.numel * BYTES_OF[self.dtype]


class Pass(Strict):
    """One forward and backward pass of a step: when forward began, backward began, and backward ended, exchanges that
    backward waits for included. Gradient accumulation makes several of them; all but the last exchange nothing."""

    forward_s: Offset
    backward_s: Offset
    end_s: Offset


class Step(Strict):
    """One step on one rank; every moment is in seconds since it began, which is when the step before ended.

    ``number``: of the training's steps, counted from 0 where watching began; those between were watched for something
    else, or left out. ``begin_s`` is on the host's clock, since the recording's first step: ranks of one host can be
    compared by it. ``full_s``: of each bucket, when its last gradient was there, None where it never was.
    ``done_s``: of each bucket, when its exchange was through, None where that was not seen. ``end_s``: the step's
    length.
    """

    number: Count = 0
    begin_s: Seconds
    passes: Annotated[list[Pass], Field(min_length=1, max_length=10_000)]
    full_s: list[Offset | None]
    done_s: list[Offset | None]
    optimizer_s: Offset
    end_s: Offset

    @property
    def ready_s(self) -> list[float]:
        """Of each bucket, when it could be sent: full, and those before it too; one that never was, with the last."""
        known = [moment for moment in self.full_s if moment is not None]
        last = max(known, default=self.passes[-1].end_s)
        return list(itertools.accumulate((last if moment is None else moment for moment in self.full_s), max))

    @property
    def computed_s(self) -> float:
        """When the last gradient was there: what backward waits for after that is communication."""
        return self.ready_s[-1] if self.full_s else self.passes[-1].end_s

    @property
    def data_s(self) -> float:
        """Between the step's passes and before them: loading data, clearing gradients, what the script does else."""
        ends = [0.0, *(each.end_s for each in self.passes[:-1])]
        return sum(each.forward_s - end for each, end in zip(self.passes, ends, strict=True))

    @property
    def forward_pass_s(self) -> float:
        """Forward and loss, of all passes."""
        return sum(each.backward_s - each.forward_s for each in self.passes)

    @property
    def backward_pass_s(self) -> float:
        """Backward of all passes, up to the last gradient."""
        earlier = sum(each.end_s - each.backward_s for each in self.passes[:-1])
        return earlier + max(self.computed_s - self.passes[-1].backward_s, 0.0)

    @property
    def exposed_s(self) -> float:
        """From the last gradient to backward's end: communication that nothing hid."""
        return max(self.passes[-1].end_s - self.computed_s, 0.0)

    @property
    def after_s(self) -> float:
        """From backward's end to the step's: clipping, the optimizer, what the script does else."""
        return self.end_s - self.passes[-1].end_s


class RankSteps(Strict):
    """What one rank did; all ranks that were seen have the same steps."""

    rank: Annotated[int, Field(ge=0, le=10**6)]
    device: str
    steps: Annotated[list[Step], Field(min_length=1, max_length=10_000)]


class Gradients(Strict):
    """How the file holds gradients: ``steps`` (of the training, counted from 0) that sets of them were taken from.

    ``kept``: how many values of each parameter are there, in blocks of ``block`` that lie evenly spaced; all of them
    where the number is the parameter's own. Each set is one array of float16 in the file, in the order of the
    parameters, each parameter divided by its number in ``scales``, of that set.
    ``synthetic``: none were seen, and what is played is drawn from a normal distribution.
    """

    kind: Literal["full", "sampled", "none", "synthetic"]
    steps: Annotated[list[Count], Field(max_length=100)] = Field(default_factory=list)
    block: Annotated[int, Field(ge=1, le=2**20)] = 64
    kept: list[Annotated[int, Field(ge=0, le=10**12)]] = Field(default_factory=list)
    scales: list[list[Annotated[float, Field(gt=0, le=1e38, allow_inf_nan=False)]]] = Field(
        default_factory=list
    )


class Overhead(Strict):
    """Step times of one process with the recorder's clock on and off, in alternating steps."""

    on_s: list[Offset]
    off_s: list[Offset]

    @property
    def share(self) -> float | None:
        """What recording adds to a step, as a share of it; None where nothing was compared."""
        if not self.on_s or not self.off_s or (off := median(self.off_s)) == 0:
            return None
        return median(self.on_s) / off - 1


class Recording(Strict):
    """A training as it was recorded.

    ``parameters`` are in the order of the buckets' last to first, which is that of a model where DDP's buckets follow
    it: each bucket's parameters lie side by side. ``hook`` is the user's own communication hook, by name. ``source``
    says how it was seen: under DDP, in a script without DDP (``plain``), under FSDP2, or in a profiler's trace.
    """

    schema_version: Literal[1] = 1
    kind: Literal["recording"] = "recording"
    tool: Tool
    created_utc: str
    source: Literal["ddp", "plain", "fsdp2", "trace"]
    program: list[str]
    environment: dict[str, object]
    model: Name
    optimizer: str | None = None
    hook: str | None = None
    world_size: Annotated[int, Field(ge=1, le=10**6)]
    batch_size: Annotated[int, Field(ge=1, le=10**9)] | None = None
    parameters: list[Parameter]
    buckets: Annotated[list[Bucket], Field(min_length=1, max_length=100_000)]
    ranks: Annotated[list[RankSteps], Field(min_length=1, max_length=10_000)]
    gradients: Gradients
    overhead: Overhead | None = None
    notes: list[str] = Field(default_factory=list)

    @property
    def key(self) -> str:
        """A short digest: what cells of a result name it by."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @property
    def numel(self) -> int:
        return sum(bucket.numel for bucket in self.buckets)

    def steps_of(self, rank: int) -> Sequence[Step]:
        """The steps that ``rank`` of another training plays: its own, or those of one that was seen, in turn."""
        return self.ranks[rank % len(self.ranks)].steps

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        known = {parameter.name: parameter for parameter in self.parameters}
        named = [name for bucket in self.buckets for name in bucket.parameters]
        if len(known) < len(self.parameters):
            raise ValueError("a parameter stands twice in parameters")
        if len(set(named)) < len(named):
            raise ValueError("a parameter stands twice in buckets")
        if strange := next((name for name in named if name not in known), None):
            raise ValueError(f"bucket with {strange!r}, which is not in parameters")
        laid_out = [name for bucket in self.buckets[::-1] for name in bucket.parameters]
        if laid_out != [parameter.name for parameter in self.parameters]:
            raise ValueError("parameters are not those of the buckets, last bucket first")
        for bucket in self.buckets:
            sizes = sum(known[name].numel for name in bucket.parameters)
            if bucket.parameters and sizes != bucket.numel:
                raise ValueError(f"a bucket of {bucket.numel} has parameters of {sizes} elements")
        counts = {len(each.steps) for each in self.ranks}
        if len(counts) > 1:
            raise ValueError("ranks have different numbers of steps")
        for each in self.ranks:
            for number, step in enumerate(each.steps):
                _check(step, len(self.buckets), f"step {number} of rank {each.rank}")
        return self._gradients_fit()

    def _gradients_fit(self) -> Self:
        gradients, sizes = self.gradients, [parameter.numel for parameter in self.parameters]
        if gradients.kind in ("none", "synthetic"):
            if gradients.steps:
                raise ValueError(f"gradients are {gradients.kind}, but have steps")
            return self
        if len(gradients.kept) != len(sizes) or any(
            kept != size and (kept > size or kept % gradients.block)
            for kept, size in zip(gradients.kept, sizes, strict=True)
        ):
            raise ValueError("gradients.kept does not fit parameters")
        if len(gradients.scales) != len(gradients.steps) or any(
            len(each) != len(sizes) for each in gradients.scales
        ):
            raise ValueError("gradients.scales does not fit steps and parameters")
        return self


def _check(step: Step, buckets: int, where: str) -> None:
    if len(step.full_s) != buckets or len(step.done_s) != buckets:
        raise ValueError(f"{where} does not have {buckets} buckets")
    moments = [moment for each in step.passes for moment in (each.forward_s, each.backward_s, each.end_s)]
    moments += [step.optimizer_s, step.end_s]
    if moments != sorted(moments):
        raise ValueError(f"{where}: forward, backward and optimizer are not in order")
    if any(moment is not None and moment > step.end_s for moment in (*step.full_s, *step.done_s)):
        raise ValueError(f"{where}: a bucket comes after the step's end")
