"""An exchange that did not end, in words: which, whom it waited for, and what to look for.

A rank that gives an exchange up closes its connections, and the others' errors then name that rank instead of the one
that was lost; a collective's error names none. So whoever gives up leaves a word in the process group's store and looks
who else did: who did not is the one they all wait for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch.distributed as dist

from netsim_ddp.communication.group_store import GroupStore
from netsim_ddp.errors import RankError, RankTimeout

ALONE = (
    "one rank alone froze a parameter, changed an option (such as compressor.ratio) or loaded a state: do so on every "
    "rank, before the same step"
)
"""What makes ranks go different ways that did the same until then."""

HINT = "use a longer init_process_group(timeout=...) if a rank is only slow, ddp.join() if one runs out of batches"

_SETTLED_S, _LONGEST_S, _PAUSE_S = 0.02, 1.0, 0.005
"""How long a rank that gives up looks for others that did: where only one is left to wait for, and at most. Short,
since torchrun ends a rank's neighbours a moment after it."""
_SHOWN = 4
"""Ranks that are named one by one."""


class Place(Protocol):
    """A rank's among the others, see :class:`netsim_ddp.communication.segments.Group`."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def process_group(self) -> dist.ProcessGroup | None: ...


class Named(Protocol):
    """What an exchange is known by."""

    operation: str
    method: str

    @property
    def group(self) -> Place | None: ...


class ExchangeFailed(RankError, RuntimeError):
    """A peer closed the connection, or did not do its part within the process group's timeout. ``rank`` is the peer
    that was lost or late, where it is known."""


@contextmanager
def named(wire: Named, peer: int | None = None) -> Iterator[None]:
    """Have the backend's own error inside say which exchange it ended: ``wire``'s.

    Raises:
        ExchangeFailed: in its place.
    """
    try:
        yield
    except RankError:
        raise
    except RuntimeError as error:
        raise _failure(wire, peer, _said(error)) from error


def _failure(wire: Named, peer: int | None, said: str) -> ExchangeFailed:
    group = wire.group
    if group is not None and group.world_size == 2:
        peer = 1 - group.rank
    found = _Found([] if peer is None else [peer], [])
    if group is not None:
        try:
            found = _roll_call(group, peer)
        except RankTimeout as lost:  # the exchange's own error says more than that of the store
            said += f"; {lost.message}"
            if peer is None and group.rank:
                found.missing.append(0)
    whom = _ranks(found.missing) or "the other ranks"
    method = f" of method {wire.method}" if wire.method else ""
    text = f"the exchange{method} ({wire.operation}) waited for {whom} and did not end: {said}. "
    if found.impatient:
        text += (
            f"{_ranks(found.impatient, 'and').capitalize()} had given this rank up before: it is later than the "
            f"process group's timeout allows, or the ranks no longer do the same: {ALONE}"
        )
    else:
        text += (
            "Either a rank has stopped, and its own error says why, or it is late, or the ranks no longer do the same: "
            f"{ALONE}"
        )
    return ExchangeFailed(text, rank=found.missing[0] if len(found.missing) == 1 else None, hint=HINT)


def _said(error: RuntimeError) -> str:
    """The backend's error, without its place in the source and what it guesses."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return re.sub(r"^\[\S+:\d+\] ", "", line).partition(". This is typically")[0].rstrip(".")


def _ranks(ranks: Collection[int], last: str = "or") -> str:
    """In words; empty where there are none, or too many to look at."""
    if not 1 < len(ranks) <= _SHOWN:
        return "".join(f"rank {rank}" for rank in ranks) if len(ranks) == 1 else ""
    *some, end = ranks
    return f"ranks {', '.join(map(str, some))} {last} {end}"


@dataclass
class _Found:
    missing: list[int]
    """Ranks that have not given up, of which one is lost or late; or the peer that the backend named."""
    impatient: list[int]
    """Those that had given up waiting for this one."""


def gave_up(rank: int) -> str:
    """The key under which ``rank`` says that it gave an exchange up; its value, the one rank that it blames."""
    return f"gave-up/{rank}"


def _roll_call(group: Place, peer: int | None) -> _Found:
    """Tell the others that this rank gave up, waiting for ``peer``, and see which of them did.

    Raises:
        RankTimeout: there is no store any more.
    """
    store, me = GroupStore(group.process_group), group.rank
    others = [rank for rank in range(group.world_size) if rank != me]
    begin = time.monotonic()
    until = begin + _LONGEST_S
    store.set(gave_up(me), "", until)
    missing = others
    while missing and time.monotonic() < until:
        missing = [rank for rank in missing if not store.has(gave_up(rank), until)]
        if (len(missing) == 1 or peer in missing) and time.monotonic() > begin + _SETTLED_S:
            break
        time.sleep(_PAUSE_S)
    if peer is not None and (peer in missing or not missing):
        lost = [peer]
    else:
        lost = missing if len(missing) < len(others) else []
    impatient = [
        rank for rank in others if rank not in missing and store.get(gave_up(rank), until) == str(me)
    ]
    if missing:
        store.set(gave_up(me), str(lost[0]) if len(lost) == 1 else "", until)
    return _Found(lost, impatient)
