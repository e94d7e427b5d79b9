"""What the processes of a recorded program leave in a folder, and what comes of it. No torch.

Each rank that trained leaves its part, which is a recording of one rank; a process that has nothing to record leaves
word why.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from netsim_ddp.errors import UsageError
from netsim_ddp.results.recording import Recording
from netsim_ddp.results.recording_file import read, read_gradients, write
from netsim_ddp.steps.environment import environment
from netsim_ddp.units import counted

if TYPE_CHECKING:
    import numpy as np

FOLDER, STEPS, GRADIENTS = "NETSIM_RECORD_TO", "NETSIM_RECORD_STEPS", "NETSIM_RECORD_GRADIENTS"
BOOTSTRAP = Path(__file__).parent / "bootstrap"
_SUFFIX = ".part"


def recording_environment(folder: Path, steps: int, gradients: str) -> dict[str, str]:
    """The variables by which every Python process of a program finds the recorder; it leaves its part in ``folder``."""
    before = os.environ.get("PYTHONPATH")
    return {
        FOLDER: str(folder),
        STEPS: str(steps),
        GRADIENTS: gradients,
        "PYTHONPATH": str(BOOTSTRAP) + (os.pathsep + before if before else ""),
    }


class FolderSink:
    """Where a rank of a recorded program puts its part."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def deliver(self, recording: Recording, sets: Sequence[np.ndarray]) -> None:
        recording.environment = environment()
        rank, world = recording.ranks[0].rank, recording.world_size
        write(self._folder / f"{rank}-{world}-{os.getpid()}{_SUFFIX}", recording, sets)

    def tell(self, backward: int, problem: UsageError) -> None:
        text = json.dumps({"backward": backward, "message": problem.message, "hint": problem.hint})
        (self._folder / f"told-{os.getpid()}").write_text(text, encoding="utf-8")


@dataclass(frozen=True, order=True)
class _Part:
    rank: int
    written_ns: int
    world: int
    path: Path


def _parts(folder: Path) -> list[_Part]:
    """Of the training that was the first to have a part: those with its number of ranks, the first of each rank."""
    found = []
    for path in folder.glob(f"*{_SUFFIX}"):
        rank, ranks, _ = map(int, path.stem.split("-"))
        found.append(_Part(rank, path.stat().st_mtime_ns, ranks, path))
    if not found:
        return []
    world = min(found, key=lambda part: part.written_ns).world
    first: dict[int, _Part] = {}
    for part in sorted(found):
        if part.world == world:
            first.setdefault(part.rank, part)
    return list(first.values())


def arrived(folder: Path) -> tuple[int, int]:
    """How many ranks' parts are there, and how many there will be, once the first is."""
    parts = _parts(folder)
    return len(parts), parts[0].world if parts else 1


def merged(folder: Path, program: Sequence[str]) -> tuple[Recording, list[np.ndarray]]:
    """One recording of all ranks' parts: the lowest rank's, with the moments of those that did the same steps.

    Raises:
        UsageError: no rank left a part; the message says why.
    """
    parts = _parts(folder)
    if not parts:
        message, hint = _why(folder)
        raise UsageError(message, hint=hint)
    first, sets = read_gradients(parts[0].path)
    ranks, notes = list(first.ranks), list(first.notes)
    for part in parts[1:]:
        other = read(part.path)
        if other.buckets == first.buckets:
            ranks += other.ranks
        else:
            notes.append(f"rank {part.rank} has other buckets: its moments are left out")
    common = set.intersection(*({step.number for step in each.steps} for each in ranks))
    if not common:
        ranks, common = ranks[:1], {step.number for step in ranks[0].steps}
        notes.append("other ranks recorded other steps: their moments are left out")
    if len(ranks) < first.world_size:
        notes.append(f"seen: {len(ranks)} of {first.world_size} ranks")
    if (others := len(list(folder.glob(f"*{_SUFFIX}"))) - len(parts)) > 0:
        notes.append(
            f"left out: {counted(others, 'other process', 'other processes')} of the program that trained too"
        )
    begin = min(step.begin_s for each in ranks for step in each.steps if step.number in common)
    for each in ranks:
        each.steps = [
            step.model_copy(update={"begin_s": step.begin_s - begin})
            for step in each.steps
            if step.number in common
        ]
    return first.model_copy(update={"ranks": ranks, "notes": notes, "program": list(program)}), sets


def _why(folder: Path) -> tuple[str, str | None]:
    """Why there is no part, and what to do."""

    def left(what: str) -> list[str]:
        return [path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"{what}-*"))]

    told = [json.loads(each) for each in left("told")]
    most = max(told, key=lambda each: int(each["backward"]), default=None)
    if most is not None and most["backward"]:
        return f"nothing was recorded: {most['message']}", most["hint"]
    if failed := left("failed"):
        return (
            f"nothing was recorded: the recorder could not begin: {failed[0]}",
            "netsim doctor looks at the rest",
        )
    if without := left("without"):
        return (
            f"nothing was recorded: {without[0]} has no netsim_ddp",
            f"install it there too; here it is in {sys.executable}",
        )
    if most is not None:
        return f"nothing was recorded: {most['message']}", most["hint"]
    if left("begun"):
        return (
            "nothing was recorded: the processes that imported torch were killed, or left by os._exit",
            "with netsim_ddp.record(FILE): around the loop writes the file as soon as its steps are there",
        )
    if left("python"):
        return (
            "nothing was recorded: no process of the program imported torch",
            "name the program that trains",
        )
    return (
        "nothing was recorded: the program started no Python that could be watched; with -I, -S or -E none can",
        "or write with netsim_ddp.record(FILE): around the loop",
    )
