"""What a run, and its result, keep of the recording that it plays: which it is and what it is of, not its content."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from netsim_ddp.errors import UsageError
from netsim_ddp.reading import one_line
from netsim_ddp.results.fields import Positive
from netsim_ddp.results.recording import Name, Recording
from netsim_ddp.results.recording_file import read
from netsim_ddp.units import counted, format_duration

_Count = Annotated[int, Field(ge=0, le=10**18)]


class RecordedTraining(BaseModel):
    """A recording, by the ``path`` of its file, relative to the current directory or absolute, and its ``key``.

    ``steps`` are those with times; ``step_s``, ``computed_s`` (until the last gradient was there) and ``after_s`` (from
    backward's end) are medians over them and the ranks; ``gradients`` is :attr:`Gradients.kind`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Annotated[str, Field(max_length=4096)]
    key: Annotated[str, Field(pattern="^[0-9a-f]{12}$")]
    source: Literal["ddp", "plain", "fsdp2", "trace"]
    model: Name
    optimizer: str | None = None
    hook: str | None = None
    device: str
    world_size: _Count
    batch_size: Annotated[int, Field(ge=1, le=10**9)] | None = None
    parameters: _Count
    buckets: _Count
    steps: _Count
    gradients: Literal["full", "sampled", "none", "synthetic"]
    step_s: Positive
    computed_s: Positive
    after_s: Positive

    @property
    def label(self) -> str:
        """The name of the model in every table: another recording of it is another model."""
        return f"{one_line(self.model, 40)}@{self.key}"

    @property
    def described(self) -> str:
        """``in train.netsim: ddp, 2 ranks on cpu, 10 steps of 312 ms``."""
        ranks = counted(self.world_size, "rank")
        return one_line(
            f"in {Path(self.path).name}: {self.source}, {ranks} on {self.device}, "
            f"{counted(self.steps, 'step')} of {format_duration(self.step_s)}"
        )

    @property
    def gradients_described(self) -> str:
        """How true the gradients are; empty where all of them are in the file."""
        if self.gradients in ("none", "synthetic"):
            return "SYNTHETIC (normal): the recording has none"
        return "filled up from recorded samples" if self.gradients == "sampled" else ""

    @property
    def warning(self) -> str | None:
        """What to say before it is played: of one step nobody knows how far others differ."""
        if self.steps > 1:
            return None
        return (
            f"{Path(self.path).name} holds one step, which is played again and again: how far steps differ is not in "
            "these figures; netsim record watches 10 where the program makes 26 steps or more"
        )

    def open(self) -> Recording:
        """The recording itself.

        Raises:
            UsageError: the file cannot be read, or holds another recording by now.
        """
        found = read(Path(self.path))
        if found.key != self.key:
            raise UsageError(
                f"{one_line(self.path)} holds another recording than {self.label}: {found.key}",
                hint="write --recording and the file that is meant",
            )
        return found


def summary_of(path: Path, recording: Recording) -> RecordedTraining:
    steps = [step for rank in recording.ranks for step in rank.steps]
    return RecordedTraining(
        path=str(path),
        key=recording.key,
        source=recording.source,
        model=recording.model,
        optimizer=recording.optimizer,
        hook=recording.hook,
        device=recording.ranks[0].device,
        world_size=recording.world_size,
        batch_size=recording.batch_size,
        parameters=recording.numel,
        buckets=len(recording.buckets),
        steps=len(recording.ranks[0].steps),
        gradients=recording.gradients.kind if recording.gradients.steps else "none",
        step_s=median(step.end_s for step in steps),
        computed_s=median(step.computed_s for step in steps),
        after_s=median(step.after_s for step in steps),
    )


def found(path: str, beside: str | None) -> Path:
    """Where the file of a recording is that ``beside``, a scenario or a result, names by ``path``: beside it, or else
    in the current directory."""
    near = None if beside is None else Path(beside).parent / path
    return near if near is not None and near.is_file() else Path(path)
