"""An exchange that did not end, in words: which, whom it waited for, and what to look for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from netsim_ddp.errors import RankError

ALONE = (
    "one rank alone froze a parameter, changed an option (such as compressor.ratio) or loaded a state: do so on every "
    "rank, before the same step"
)
"""What makes ranks go different ways that did the same until then."""


class Named(Protocol):
    """What an exchange is known by."""

    operation: str
    method: str


class ExchangeFailed(RankError, RuntimeError):
    """A peer closed the connection, or did not do its part within the process group's timeout. ``rank`` is the peer
    that this rank waited for, where it is known."""


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
        whom = "the other ranks" if peer is None else f"rank {peer}"
        said = next(iter(str(error).splitlines()), type(error).__name__)
        method = f" of method {wire.method}" if wire.method else ""
        raise ExchangeFailed(
            f"the exchange{method} ({wire.operation}) waited for {whom} and did not end: {said}. Either a rank has "
            f"stopped, and its own error says why, or the ranks no longer do the same: {ALONE}",
            rank=peer,
        ) from error
