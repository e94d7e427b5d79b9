"""The store of a process group: where its ranks leave a word for each other, apart from what they exchange.

Rank 0's process, or the torchrun beside it, holds the store. A holder that has died is an error of torch's; one that
was stopped never answers, and torch waits for it without end: so a thread that need not come back puts every question.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _get_default_store, _get_process_group_name

from netsim_ddp.errors import RankTimeout

_SHORTEST_S = 2.0
"""A store that is there answers within this time, however late the question came."""
_T = TypeVar("_T")


def _given(process_group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    found = process_group or dist.group.WORLD
    assert found is not None
    return found


def timeout_of(process_group: dist.ProcessGroup | None) -> timedelta:
    """How long an operation of ``process_group`` (None: torch's default one) waits for other ranks."""
    owner = _given(process_group)
    found: timedelta = _get_default_store().timeout  # type: ignore[attr-defined]
    with suppress(AttributeError, IndexError, RuntimeError):  # a backend of somebody's own may not tell
        found = owner._get_backend(owner._device_types[0]).options._timeout
    return found


class GroupStore:
    """The keys of ``process_group`` (None: torch's default one); times are those of ``time.monotonic()``.

    Every method raises RankTimeout where the store is gone, or has not answered at the time ``until``.

    Attributes:
        timeout_s: the process group's own timeout in seconds.
    """

    def __init__(self, process_group: dist.ProcessGroup | None) -> None:
        prefix = f"netsim/{_get_process_group_name(_given(process_group))}"
        self._store = PrefixStore(prefix, _get_default_store())
        self.timeout_s = timeout_of(process_group).total_seconds()
        self._lost: RankTimeout | None = None

    def set(self, key: str, value: str, until: float) -> None:
        self._ask(until, lambda: self._store.set(key, value))

    def has(self, key: str, until: float) -> bool:
        return self._ask(until, lambda: bool(self._store.check([key])))

    def get(self, key: str, until: float) -> str:
        """The value of a key that is there."""
        return self._ask(until, lambda: str(self._store.get(key).decode()))

    def delete(self, key: str, until: float) -> None:
        self._ask(until, lambda: self._store.delete_key(key))

    def _ask(self, until: float, question: Callable[[], _T]) -> _T:
        if self._lost is not None:
            raise self._lost
        answers: queue.SimpleQueue[tuple[list[_T], str]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(([question()], ""))
            except RuntimeError as error:
                answers.put(([], str(error).partition("\n")[0]))

        threading.Thread(target=ask, name="netsim-store", daemon=True).start()
        try:
            answer, problem = answers.get(timeout=max(until - time.monotonic(), _SHORTEST_S))
        except queue.Empty:
            answer, problem = [], "it does not answer"
        if not answer:
            self._lost = RankTimeout(
                "rank 0 has stopped, or the torchrun beside it: one of them holds the process group's store, and that "
                f"is lost ({problem})",
                rank=0,
            )
            raise self._lost
        return answer[0]
