"""The recorder in the program: begun by :mod:`netsim_ddp.tools.record.bootstrap`, or by the program itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from netsim_ddp.errors import UsageError, cannot_write
from netsim_ddp.results.recording import Recording
from netsim_ddp.results.recording_file import write
from netsim_ddp.steps.environment import environment
from netsim_ddp.tools.record.parts import FOLDER, GRADIENTS, STEPS, FolderSink

if TYPE_CHECKING:
    import numpy as np

    from netsim_ddp.workloads.recording.session import Keep

_active: list[Any] = []


def begin() -> None:
    """Record this process, as the environment says."""
    from netsim_ddp.workloads.recording.recorder import Recorder
    from netsim_ddp.workloads.recording.session import Settings

    folder = Path(os.environ[FOLDER])
    (folder / f"begun-{os.getpid()}").touch()
    keep: Any = os.environ[GRADIENTS]
    recorder = Recorder(Settings(int(os.environ[STEPS]), keep), FolderSink(folder))
    recorder.start()
    _active.append(recorder)


class _FileSink:
    def __init__(self, path: Path) -> None:
        self._path = path

    def deliver(self, recording: Recording, sets: Sequence[np.ndarray]) -> None:
        [own] = recording.ranks
        if own.rank:
            return
        begin = own.steps[0].begin_s
        own.steps = [step.model_copy(update={"begin_s": step.begin_s - begin}) for step in own.steps]
        recording.environment = environment()
        write(self._path, recording, sets)

    def tell(self, backward: int, problem: UsageError) -> None:
        del backward
        print(f"netsim: nothing was recorded: {problem}", file=sys.stderr, flush=True)


@contextmanager
def record(path: str | os.PathLike[str], *, steps: int = 10, gradients: Keep = "sampled") -> Iterator[None]:
    """Record the training that goes on inside ``with``, and write it to ``path`` for ``netsim run --recording``.

    Begin before the first step, and before a communication hook is registered: ``with netsim_ddp.record("a.netsim"):``.
    Three steps are left out first; ``steps`` are watched, and as many not, in turns, to know what watching costs. The
    file is written as soon as they are there, by rank 0, and holds its moments; ``netsim record`` keeps all ranks'.
    The training is not changed. Where nothing can be recorded, one line on stderr says why.

    Args:
        path: replaced where it exists.
        steps: how many are watched.
        gradients: of three further steps ``"sampled"`` (50 MB at most), ``"full"`` or ``"none"``.

    Raises:
        UsageError: ``path`` cannot be written, ``steps`` or ``gradients`` are none, or a recording goes on already.
    """
    from netsim_ddp.workloads.recording.recorder import Recorder
    from netsim_ddp.workloads.recording.session import Keep, Settings

    target = Path(os.path.realpath(path))
    if steps < 1 or isinstance(steps, bool):
        raise UsageError(f"steps is {steps!r}", hint="1 or more")
    if gradients not in get_args(Keep):
        raise UsageError(f"gradients is {gradients!r}", hint=f"one of {', '.join(get_args(Keep))}")
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise cannot_write(path, IsADirectoryError(0, "it is a folder, or in one that cannot be written"))
    if any(not each.ended for each in _active):
        raise UsageError("a recording goes on already", hint="leave netsim_ddp.record or netsim record away")
    recorder = Recorder(Settings(steps, gradients), _FileSink(target))
    recorder.start()
    _active[:] = [recorder]
    try:
        yield
    finally:
        recorder.finish()
