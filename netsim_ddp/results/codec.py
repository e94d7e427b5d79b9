"""What compressing costs, as ``netsim bench compress`` measures it: its file, and what others may read from it.

Times are seconds, sizes bytes. Every sample is kept; sample i of one list and of another were taken in the same round,
so their ratio is free of what the machine did in other rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from netsim_ddp import reading
from netsim_ddp.errors import UsageError
from netsim_ddp.results.fields import Strict, Tool, validated
from netsim_ddp.units import counted

KIND: Literal["netsim-codec-times"] = "netsim-codec-times"
# Bounded as in a result file: what nobody can have measured must not overflow where it is read.
Samples = list[Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]]
Size = Annotated[int, Field(ge=1, le=10**18)]
Bytes = Annotated[int, Field(ge=0, le=10**18)]


class CodecRow(Strict):
    """One size, ratio, input, device and number of threads.

    ``select_s`` is feedback and selection together; ``floor_s`` the memory floor ``residual.add_(grad)``; ``add_s``
    adding the decoded entries to a dense tensor; ``copy_s`` the message to the host and back. ``topk_s`` and
    ``argpartition_s`` do what ``select_s`` does, through ``torch.topk`` and ``numpy.argpartition``. ``peak_bytes`` is
    the most memory that selecting took beside its output.
    """

    device: str
    threads: Size
    input: str
    numel: Size
    ratio: Annotated[float, Field(gt=0, le=1)]
    entries: Size
    message_bytes: Bytes
    peak_bytes: Bytes | None = None
    floor_s: Samples
    select_s: Annotated[Samples, Field(min_length=1)]
    encode_s: Annotated[Samples, Field(min_length=1)]
    decode_s: Annotated[Samples, Field(min_length=1)]
    add_s: Annotated[Samples, Field(min_length=1)]
    copy_s: Samples = Field(default_factory=list)
    topk_s: Samples = Field(default_factory=list)
    argpartition_s: Samples = Field(default_factory=list)

    @property
    def floors(self) -> float:
        """How many memory floors selection takes: the median over rounds of their ratio."""
        return median(a / b for a, b in zip(self.select_s, self.floor_s, strict=True))

    @property
    def topk_times(self) -> float | None:
        """How many times longer ``torch.topk`` takes, likewise."""
        return (
            median(b / a for a, b in zip(self.select_s, self.topk_s, strict=False)) if self.topk_s else None
        )


class CodecTimes(Strict):
    """A whole file."""

    kind: Literal["netsim-codec-times"] = KIND
    schema_version: Literal[1] = 1
    tool: Tool
    created_utc: str
    environment: dict[str, object]
    command: str
    values: str
    indices: str
    rows: list[CodecRow] = Field(default_factory=list)


def load(path: Path) -> CodecTimes:
    """Read and check a file of ``netsim bench compress``.

    Raises:
        UsageError: unreadable, another kind of file, keys missing or of the wrong type, no row.
    """
    hint = "make one with netsim bench compress --json FILE"
    data = reading.parse_json(reading.read_text(path, hint=hint), source=str(path), hint=hint)
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise UsageError(f"{path} holds no codec times", hint=hint)
    times = validated(CodecTimes, data, source=str(path), hint=hint)
    if not times.rows:
        raise UsageError(f"{path} holds no row", hint=hint)
    return times


class Substitute(Strict):
    """Codec times of one device, to stand in for those measured here.

    Points are ``(size, seconds)``, ascending: selection by the size of the tensor, for the ratio of the file that is
    nearest; the rest by the number of entries. Between points straight lines; below the first its time (a launch costs
    what it costs), above the last in proportion.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    device: str
    threads: int
    select: dict[float, list[tuple[int, float]]]
    encode: list[tuple[int, float]]
    decode: list[tuple[int, float]]
    add: list[tuple[int, float]]
    copies: list[tuple[int, float]]

    @property
    def name(self) -> str:
        """``cuda, from h100.json``."""
        threads = f", {counted(self.threads, 'thread')}" if self.device == "cpu" else ""
        return f"{self.device}{threads}, from {self.source}"

    def select_seconds(self, numel: int, k: int) -> float:
        ratio = k / max(numel, 1)
        nearest = min(self.select, key=lambda known: abs(known - ratio))
        return _read(self.select[nearest], numel)

    def encode_seconds(self, k: int) -> float:
        return _read(self.encode, k) + _read(self.copies, k) / 2

    def decode_seconds(self, k: int) -> float:
        return _read(self.decode, k) + _read(self.add, k) + _read(self.copies, k) / 2


def substitute(times: CodecTimes, source: str, threads: int) -> Substitute:
    """What ``times`` says of its accelerator, or else of the CPU with the nearest number of ``threads``; of its inputs
    recorded gradients are preferred, then normal ones."""
    rows = [row for row in times.rows if row.device != "cpu"] or times.rows
    count = min({row.threads for row in rows}, key=lambda known: (abs(known - threads), known))
    rows = [row for row in rows if row.threads == count]
    inputs = sorted({row.input for row in rows}, key=lambda name: {"recorded": 0, "normal": 1}.get(name, 2))
    rows = [row for row in rows if row.input == inputs[0]]
    ratios = sorted({row.ratio for row in rows})
    return Substitute(
        source=source,
        device=rows[0].device,
        threads=count,
        select={ratio: _points(rows, lambda row: row.numel, "select_s", only=ratio) for ratio in ratios},
        encode=_points(rows, lambda row: row.entries, "encode_s"),
        decode=_points(rows, lambda row: row.entries, "decode_s"),
        add=_points(rows, lambda row: row.entries, "add_s"),
        copies=_points(rows, lambda row: row.entries, "copy_s"),
    )


def _points(
    rows: Sequence[CodecRow], size: Callable[[CodecRow], int], name: str, only: float | None = None
) -> list[tuple[int, float]]:
    """Of several rows with one size the median of all their samples."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if only in (None, row.ratio) and getattr(row, name):
            found.setdefault(size(row), []).extend(getattr(row, name))
    return [(at, median(samples)) for at, samples in sorted(found.items())]


def _read(points: Sequence[tuple[int, float]], at: int) -> float:
    if not points or at <= 0:
        return 0.0
    import numpy as np

    sizes, seconds = [size for size, _ in points], [second for _, second in points]
    return float(np.interp(at, sizes, seconds)) * max(at / sizes[-1], 1.0)
