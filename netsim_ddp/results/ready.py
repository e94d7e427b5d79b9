"""When a backward pass has each gradient ready: a small record, of one model on one machine.

``--compute`` plays a forward and a backward pass as time that passes. When a bucket can be sent within it is what a
real pass of the model showed, as shares of its backward time, parameter by parameter: whatever the buckets, one is full
when the gradient of the last of its parameters is there.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from netsim_ddp import reading
from netsim_ddp.errors import UsageError
from netsim_ddp.reading import one_line
from netsim_ddp.results.fields import validated
from netsim_ddp.units import counted

KIND: Literal["netsim-ready-times"] = "netsim-ready-times"
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Size = Annotated[int, Field(ge=1, le=10**9)]
_HINT = "name a result file of netsim run --compute, or a file of the format in docs/emulated-compute.md"


class ReadyTimes(BaseModel):
    """``parameters`` maps a trained parameter's name, as ``model.named_parameters()`` has it, to the moment at which
    its gradient was complete, a share of backward: 0 is its begin, 1 its end. A parameter that got no gradient has 1.
    ``forward_share`` is forward's part of forward and backward together.

    The other fields say what was measured: medians over ``passes`` passes at ``batch_size`` on ``machine``, with
    ``threads`` threads. ``source`` is the file that it was read from; None where it was measured in the run itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["netsim-ready-times"] = KIND
    model: str | None = None
    batch_size: Size | None = None
    passes: Size | None = None
    machine: str | None = None
    threads: Size | None = None
    source: str | None = None
    forward_share: Share
    parameters: Annotated[dict[str, Share], Field(min_length=1)]

    @property
    def key(self) -> str:
        """A short digest: what cells of a result name it by."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @property
    def described(self) -> str:
        """``median of 5 passes at batch 32, forward 34%``."""
        what = "one pass" if self.passes == 1 else f"median of {self.passes} passes" if self.passes else ""
        what += f" at batch {self.batch_size}" if self.batch_size else ""
        if self.source is not None:
            what += f" on {self.machine}" if self.machine else ""
            what = f"{what.strip()}, from {self.source}".removeprefix(", ")
        return one_line(f"{what}, forward {self.forward_share:.0%}".removeprefix(", ").strip())

    def bucket_times(self, seconds: float, buckets: Sequence[Sequence[str]]) -> list[float]:
        """When each bucket is full, in seconds since the begin of a step whose compute takes ``seconds``.

        Args:
            buckets: the names of the parameters of each, in the order in which they are sent. One that is full before
                those ahead of it waits for them; the last one is there when backward ends.
        """
        forward = seconds * self.forward_share
        shares = itertools.accumulate(
            (max(self.parameters[name] for name in bucket) for bucket in buckets), max
        )
        times = [forward + (seconds - forward) * share for share in shares]
        return [*times[:-1], seconds] if times else []

    def check(self, names: Sequence[str], model: str) -> None:
        """Refuse a model whose trained parameters are not these.

        Raises:
            UsageError: one is missing or too many; the message names the first.
        """
        known = set(names)
        lacking = next((name for name in names if name not in self.parameters), None)
        extra = next((name for name in self.parameters if name not in known), None)
        if lacking is None and extra is None:
            return
        of = f"the ready times{f' of {self.source}' if self.source else ''}"
        where = f"{of} have {counted(len(self.parameters), 'parameter')}, model {model!r} has {len(names)}: "
        what = (
            f"{one_line(lacking, 60)} is not among them"
            if lacking is not None
            else f"{one_line(str(extra), 60)} is none of the model's"
        )
        raise UsageError(where + what, hint="name a file that was measured with this model")


def load(path: Path, model: str) -> ReadyTimes:
    """Read ready times from a file of their own, or from a result file: the first of ``model`` in it, or its only ones.

    Raises:
        UsageError: unreadable, no ready times in it, of other models alone, or keys missing or of the wrong type.
    """
    shown = one_line(str(path))
    data = reading.parse_json(reading.read_text(path, hint=_HINT), source=shown, hint=_HINT)
    if isinstance(data, dict) and data.get("kind") == KIND:
        found = validated(ReadyTimes, data, source=shown, hint=_HINT)
    elif isinstance(data, dict) and isinstance(data.get("ready"), dict) and data["ready"]:
        all_of = [validated(ReadyTimes, each, source=shown, hint=_HINT) for each in data["ready"].values()]
        of_model = [each for each in all_of if each.model == model] or all_of
        if len({each.model for each in of_model}) > 1:
            models = ", ".join(dict.fromkeys(one_line(str(each.model), 40) for each in of_model))
            raise UsageError(f"{shown} holds ready times of {models}, not of {model}", hint=_HINT)
        found = of_model[0]
    else:
        raise UsageError(f"{shown} holds no ready times", hint=_HINT)
    return found.model_copy(update={"source": path.name})
