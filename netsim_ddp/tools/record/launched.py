"""``netsim launch --record``: what the ranks leave becomes one recording, and the launch says what it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from netsim_ddp.errors import NetsimError
from netsim_ddp.link.launch import Outcome
from netsim_ddp.results.launch import Launch, recorded_launch
from netsim_ddp.results.recording_file import write
from netsim_ddp.tools.record.parts import merged, recording_environment


def launch_recorded(
    run: Callable[[dict[str, str]], tuple[Launch, Outcome]],
    program: Sequence[str],
    target: Path,
    *,
    steps: int,
    gradients: str,
) -> tuple[Launch, Outcome, NetsimError | None]:
    """Launch ``program`` by ``run``, which takes what its ranks' environment has more, and write the recording of all
    ranks to ``target``, however the program ended.

    Args:
        steps: how many are watched.
        gradients: ``sampled``, ``full`` or ``none``.

    Returns: the launch with what was recorded, how it went, and why nothing was recorded, if so.
    """
    with TemporaryDirectory(prefix="netsim-record-") as folder:
        launch, outcome = run(recording_environment(Path(folder), steps, gradients))
        try:
            recording, sets = merged(Path(folder), program)
            write(target, recording, sets)
        except NetsimError as problem:
            return launch, outcome, problem
    return launch.model_copy(update={"recorded": recorded_launch(recording, target.name)}), outcome, None
