"""What torch tells of a process group's collectives: when one begins, and when it is through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.distributed import ProcessGroup

from netsim_ddp.workloads.recording.steps import Open, Watch

HOOK_ID = 0x6E657473
"""Process groups know their hooks by a number: this one is nobody else's."""


Guard = Callable[[Callable[..., Any]], Callable[..., Any]]


def has_hooks() -> bool:
    """Whether this torch's process groups have hooks: from 2.14 on."""
    return hasattr(ProcessGroup, "register_pre_hook")


def note_end(future: Any, watch: Watch, step: Open, number: int) -> None:
    """Note in ``step`` when ``future``, of bucket ``number``, is through."""

    def note(_: Any) -> None:
        step.done[number] = watch.clock.mark()

    future.add_done_callback(note)
