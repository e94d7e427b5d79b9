"""How many entries of each segment every owner sends on, so that a segment gets its k_i on the way back as well.

Every rank computes the same from the segments' sizes and counts alone. A segment's k_i are divided among its owners by
how many of its positions each has: rounded down, and what is missing to the largest remainders, so that they add up to
k_i exactly. A segment has as many owners as get :data:`LEAST_PART` entries or more of it, and small ones therefore only
one: whichever has the least to send so far. Where segments are sent whole, owners' quotas are their whole shares.

The smallest segments of one owner are *passed on*: it may send P k_i entries, as many as all ranks send it, so that
none waits for a second time. That is what an all-gather does for every entry; a norm or a bias of a hundred entries
with k_i = 1 would otherwise wait a hundred steps at its ranks and again at its owner. :data:`PASSED_ON` bounds what it
costs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from netsim_ddp.compression.shards import I64, Shards

LEAST_PART = 8
"""Owners of fewer entries would differ too much in what they send: one has 2 of 9 entries, another 1."""

PASSED_ON = 0.02
"""Passing on takes no more entries than this share of all."""


class Quotas:
    """Of ``owners`` ranks in L segments.

    Args:
        sizes: int64 [L], of the segments.
        counts: int64 [L], k_i once a warm-up is over; during a warm-up :meth:`at` takes larger ones.
    """

    def __init__(self, owners: int, sizes: I64, counts: I64) -> None:
        self.owners, self._sizes = owners, sizes
        parts = np.clip(counts // LEAST_PART, 1, owners)
        self.passed_on = _passed_on(owners, sizes, counts, parts)
        """bool [L]: segments of which everything is sent on."""
        self.shares = Shards(
            owners, sizes.tolist(), parts.tolist(), _first_owners(owners, self._sent(counts), parts)
        )
        self._known: dict[bytes, I64] = {}

    def _sent(self, counts: I64) -> I64:
        return np.where(self.passed_on, np.minimum(self._sizes, counts * self.owners), counts)

    def at(self, counts: I64) -> I64:
        """int64 [P, L]: the entries of each segment that each owner sends on where ranks send ``counts``, int64 [L]."""
        key = counts.tobytes()
        if key not in self._known:
            self._known[key] = self._divided(self._sent(counts))
        return self._known[key]

    def asked(self, owner: int, counts: I64) -> int:
        """About how many entries a rank that sends ``counts`` sends ``owner``: by how many of the positions it has."""
        return math.ceil(float((counts * (self.shares.sizes[owner] / np.maximum(self._sizes, 1))).sum()))

    def _divided(self, sent: I64) -> I64:
        """``sent`` by largest remainders; of equal ones, to the owner whose turn in the segment comes first."""
        shares = self.shares
        quotas, remainders = np.divmod(sent * shares.sizes, np.maximum(self._sizes, 1))
        order = np.lexsort((shares.turns, -remainders), axis=0)
        places = np.empty_like(order)
        np.put_along_axis(places, order, np.arange(self.owners)[:, None], axis=0)
        divided: I64 = quotas + (places < sent - quotas.sum(axis=0))
        return divided


def _passed_on(owners: int, sizes: I64, counts: I64, parts: I64) -> NDArray[np.bool_]:
    """Which segments are passed on: of those with one owner the smallest counts first, as far as the limit goes."""
    more = np.where(parts == 1, np.minimum(sizes, counts * owners) - counts, 0)
    order = np.lexsort((sizes, counts))
    chosen = np.zeros(len(sizes), bool)
    chosen[order] = np.cumsum(more[order]) <= PASSED_ON * counts.sum()
    return chosen & (more > 0)


def _first_owners(owners: int, sent: I64, parts: I64) -> list[int]:
    """The first of each segment's owners, so that all have about the same to send: the segments of most owners first,
    then the largest, each to those neighbours who have the least so far."""
    loads = np.zeros(owners)
    first = [0] * len(sent)
    for segment in np.lexsort((-sent, -parts)).tolist():
        count, size = int(parts[segment]), int(sent[segment])
        around = np.convolve(np.concatenate([loads, loads[: count - 1]]), np.ones(count), "valid")
        begin = int(np.argmin(loads if count == owners else around))
        each, rest = divmod(size, count)
        for turn in range(count):
            loads[(begin + turn) % owners] += each + (turn < rest)
        first[segment] = begin
    return first
