"""A recording from a trace of ``torch.profiler``, of one rank of a job on NCCL: sizes and moments, nothing else.

The profiler notes of every collective's kernel what it moved (``record_param_comms``). Such a kernel starts when its
bucket is full and the collective before it is through, so that of buckets which wait for each other the moment is not
earlier than the trace says. Traces name no parameters and hold no gradients. Those of Gloo have no kernels.
"""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from netsim_ddp import __version__, reading
from netsim_ddp.errors import UsageError
from netsim_ddp.reading import one_line
from netsim_ddp.results.fields import Tool
from netsim_ddp.results.files import now_utc
from netsim_ddp.results.recording import Bucket, Gradients, Pass, RankSteps, Recording, Step
from netsim_ddp.units import counted

MAX_BYTES = 1 << 30
HINT = (
    "record the script itself: netsim record -- python train.py; or profile a job on NCCL with "
    "torch.profiler.profile(schedule=...), prof.step() after every step and prof.export_chrome_trace(FILE)"
)
TYPES = {"Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Double": "float64"}
"""torch's names of the types of gradients, as traces have them."""
_REDUCTIONS = ("allreduce", "allreduce_coalesced", "reduce_scatter", "_reduce_scatter_base")
_QUEUED_US = 5.0
"""A kernel that starts so soon behind the one before it has waited for it."""


@dataclass(frozen=True)
class _Reduction:
    """Microseconds of the trace's clock."""

    begin: float
    end: float
    numel: int
    dtype: str


def recording_of(path: Path) -> Recording:
    """What the trace in ``path`` says of its training's steps.

    Raises:
        UsageError: unreadable, no trace of torch.profiler, or none with NCCL's collectives or with steps.
    """
    shown = one_line(str(path))
    events, devices = _events(path, shown)
    found = [event for event in events if event.get("cat") == "kernel" and _is_reduction(event)]
    if not found:
        raise UsageError(
            f"{shown} holds no reduction of NCCL's (record_param_comms): it is of one process, or of a job on Gloo",
            hint=HINT,
        )
    reductions = sorted((_reduction(event, shown) for event in found), key=lambda each: each.begin)
    spans = _steps(events)
    if not spans:
        raise UsageError(f"{shown} does not say where a step ends (ProfilerStep#)", hint=HINT)
    parts = [[each for each in reductions if begin <= each.begin < end] for begin, end in spans]
    usual = Counter(_sizes(part) for part in parts if part).most_common(1)
    if not usual:
        raise UsageError(f"{shown} has no step with a reduction in it", hint=HINT)
    kept = [(span, part) for span, part in zip(spans, parts, strict=True) if _sizes(part) == usual[0][0]]
    group = found[0]["args"].get("Group size")
    notes = ["moments are those of the collectives' kernels: forward ends where the first bucket is full"]
    if any(_queued(part) for _, part in kept):
        notes.append(
            "some buckets were full before the collective ahead of them was through: at most so late"
        )
    if len(kept) < len(spans):
        notes.append(
            f"left out: {len(spans) - len(kept)} of {counted(len(spans), 'step')}, which exchange something else"
        )
    return Recording(
        tool=Tool(version=__version__),
        created_utc=now_utc(),
        source="trace",
        program=[path.name],
        environment={},
        model=path.name[:100],
        world_size=group if isinstance(group, int) and group >= 1 else 1,
        parameters=[],
        buckets=[Bucket(parameters=[], numel=numel, dtype=dtype) for numel, dtype in usual[0][0]],
        ranks=[
            RankSteps(
                rank=_rank(found[0]),
                device=devices[0] if devices else "cuda",
                steps=[_step(span, part, kept[0][0][0]) for span, part in kept],
            )
        ],
        gradients=Gradients(kind="synthetic"),
        notes=notes,
    )


def _events(path: Path, shown: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The trace's events that are objects, and the names of its GPUs."""
    content = reading.read_bytes(path, limit=MAX_BYTES, wanted="a trace", hint=HINT)
    if content.startswith(b"\x1f\x8b"):
        content = _unpacked(content, shown)
    text = reading.decode_text(content, source=shown, wanted="a trace", hint=HINT)
    data = reading.parse_json(text, source=shown, hint=HINT)
    events = data.get("traceEvents") if isinstance(data, dict) else None
    if not isinstance(events, list):
        raise UsageError(f"{shown} is no trace of torch.profiler: it has no traceEvents", hint=HINT)
    properties = data.get("deviceProperties")
    names = [
        str(each.get("name"))
        for each in (properties if isinstance(properties, list) else ())
        if isinstance(each, dict)
    ]
    return [event for event in events if isinstance(event, dict)], names


def _unpacked(content: bytes, shown: str) -> bytes:
    unpacking = zlib.decompressobj(wbits=31)
    try:
        found = unpacking.decompress(content, MAX_BYTES)
    except (zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{shown} is damaged: {one_line(str(error))}", hint=HINT) from None
    if unpacking.unconsumed_tail:
        raise UsageError(f"{shown} unpacks to more than {MAX_BYTES >> 20} MiB: not a trace", hint=HINT)
    if not unpacking.eof:
        raise UsageError(f"{shown} is damaged: its end is missing", hint=HINT)
    return found


def _is_reduction(event: dict[str, Any]) -> bool:
    args = event.get("args")
    return isinstance(args, dict) and args.get("Collective name") in _REDUCTIONS


def _reduction(event: dict[str, Any], shown: str) -> _Reduction:
    args = event["args"]
    begin, length, numel = event.get("ts"), event.get("dur"), args.get("In msg nelems")
    dtype = TYPES.get(str(args.get("dtype")))
    if not (_number(begin) and _number(length) and isinstance(numel, int) and numel >= 1):
        raise UsageError(f"{shown} has a collective without its time or size", hint=HINT)
    if dtype is None:
        raise UsageError(
            f"{shown} reduces {one_line(str(args.get('dtype')), 40)}, which is no type of gradients",
            hint=HINT,
        )
    return _Reduction(float(begin), float(begin) + float(length), numel, dtype)


def _number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e18


def _steps(events: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """When steps begin and end: on the GPU's clock where it has them, since the host runs ahead of it."""
    marks = [
        event
        for event in events
        if str(event.get("name", "")).startswith("ProfilerStep#")
        and _number(event.get("ts"))
        and _number(event.get("dur"))
    ]
    on_gpu = [event for event in marks if event.get("cat") == "gpu_user_annotation"]
    return sorted((float(each["ts"]), float(each["ts"]) + float(each["dur"])) for each in on_gpu or marks)


def _sizes(part: Sequence[_Reduction]) -> tuple[tuple[int, Any], ...]:
    return tuple((each.numel, each.dtype) for each in part)


def _queued(part: Sequence[_Reduction]) -> bool:
    return any(two.begin - one.end < _QUEUED_US for one, two in itertools.pairwise(part))


def _rank(event: dict[str, Any]) -> int:
    rank = event["args"].get("Rank")
    return rank if isinstance(rank, int) and 0 <= rank <= 10**6 else 0


def _step(span: tuple[float, float], part: Sequence[_Reduction], origin: float) -> Step:
    begin, end = span
    end = max(end, *(each.end for each in part))

    def at(moment: float) -> float:
        return (moment - begin) / 1e6

    last = at(max(each.end for each in part))
    first = at(part[0].begin)
    return Step(
        begin_s=(begin - origin) / 1e6,
        passes=[Pass(forward_s=0.0, backward_s=first, end_s=last)],
        full_s=[at(each.begin) for each in part],
        done_s=[at(each.end) for each in part],
        optimizer_s=last,
        end_s=at(end),
    )
