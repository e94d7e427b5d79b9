"""``netsim record``: run the program, and write the recording as soon as its ranks have their steps."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from netsim_ddp.errors import UsageError
from netsim_ddp.results.recording import Recording
from netsim_ddp.results.recording_file import write
from netsim_ddp.tools.record.parts import arrived, merged, recording_environment
from netsim_ddp.tools.record.program import run_program

OTHERS_S = 60.0
"""How long after the first rank's part the others' are waited for: some may be on another machine."""


@dataclass
class Recorded:
    """How it went: the program's exit code; the recording, or why there is none."""

    exit_code: int = 0
    recording: Recording | None = None
    problem: UsageError | None = None
    stopped: bool = False


def record_program(
    program: Sequence[str], target: Path, *, steps: int, gradients: str, stop: bool
) -> Recorded:
    """Run ``program``, and write its recording to ``target``.

    Args:
        steps: how many are watched.
        gradients: ``sampled``, ``full`` or ``none``.
        stop: end the program once the file is there.

    Raises:
        UsageError: the program cannot be started, or ``target`` not written.
    """
    outcome = Recorded()
    with tempfile.TemporaryDirectory(prefix="netsim-record-") as name:
        folder = Path(name)
        first_s: float | None = None

        def take() -> None:
            outcome.recording, sets = merged(folder, program)
            write(target, outcome.recording, sets)

        def done() -> bool:
            nonlocal first_s
            if outcome.recording is None:
                there, wanted = arrived(folder)
                if there and first_s is None:
                    first_s = time.monotonic()
                if there == wanted or (first_s is not None and time.monotonic() > first_s + OTHERS_S):
                    take()
            return stop and outcome.recording is not None

        outcome.exit_code, outcome.stopped = run_program(
            program, recording_environment(folder, steps, gradients), done
        )
        if outcome.recording is None:
            try:
                take()
            except UsageError as problem:
                outcome.problem = problem
    return outcome
