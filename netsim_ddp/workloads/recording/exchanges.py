"""What torch tells of a process group's collectives, from 2.14 on: when one begins, and when it is through."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch.distributed import ProcessGroup

from netsim_ddp.workloads.recording.steps import Open, Watch

_IDS = itertools.count(0x6E657473)
"""Process groups know their hooks by a number: these are nobody else's."""
Guard = Callable[[Callable[..., Any]], Callable[..., Any]]


def has_hooks() -> bool:
    """Whether this torch's process groups have hooks."""
    return hasattr(ProcessGroup, "register_pre_hook")


class GroupHooks:
    """Hooks on process groups. A fault in one ends the recording, by ``guard``, and no training.

    Args:
        begins, has_begun: told of a collective, with the group's place in ``groups`` and torch's own description.
    """

    def __init__(
        self,
        groups: Sequence[ProcessGroup],
        begins: Callable[[int, Any], None],
        has_begun: Callable[[int, Any], None],
        guard: Guard,
    ) -> None:
        self._groups, self._inside, self._id = groups if has_hooks() else (), False, next(_IDS)
        for place, group in enumerate(self._groups):
            group.register_pre_hook(self._id, self._noting(guard(partial(begins, place))))
            group.register_post_hook(self._id, self._noting(guard(partial(has_begun, place))))

    def _noting(self, told: Callable[[Any], Any]) -> Callable[[Any], None]:
        def hook(call: Any) -> None:
            self._inside = True
            try:
                told(call)
            finally:
                self._inside = False

        return hook

    def close(self) -> None:
        """Take them away. Within one of them, where torch would wait for itself, they stay and tell nobody."""
        if self._inside:
            return
        for group in self._groups:
            group.unregister_pre_hook(self._id)
            group.unregister_post_hook(self._id)
        self._groups = ()


def note_end(future: Any, watch: Watch, step: Open, number: int) -> None:
    """Note in ``step`` when ``future``, of bucket ``number``, is through."""

    def note(_: Any) -> None:
        step.done[number] = watch.clock.mark()

    future.add_done_callback(note)
