"""Runs the fused kernel: its scratch memory, and its work shared out among threads.

With T threads the flat tensor is cut into T stretches of equal length. A thread does the segments inside its
stretch alone. A large segment that a cut falls into is collected in pieces, decided once for all pieces, and
emitted in pieces again. The result does not depend on T.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from netsim_ddp.compression.native import candidates, keys
from netsim_ddp.compression.native import numba_kernels as kernel
from netsim_ddp.compression.native.jit import F32, I32, I64, AnyInt

_WORTH_A_THREAD = 1 << 18  # floats per thread below which waking one costs as much as it saves
_WORTH_A_CUT = 1 << 16  # smaller segments go to one thread
_CHECKED_AT_ONCE = 1 << 19
_MOST_HELPERS = 1024  # more than anybody asks for at once

_T = TypeVar("_T")
_Four = tuple[I32, I32, I32, I32]


def _four(length: int) -> _Four:
    where, found, spare_where, spare_found = (np.empty(length, np.int32) for _ in range(4))
    return where, found, spare_where, spare_found


class _Scratch(threading.local):
    """Lists of candidates, kept between calls: mapping fresh pages would cost as much as filling them."""

    def __init__(self) -> None:
        self.arrays = _four(0)

    def lists(self, length: int) -> _Four:
        """Returns ``where``, ``found`` and a spare of each, at least ``length`` long."""
        if self.arrays[0].shape[0] < length:
            self.arrays = _four(length)
        return self.arrays


_scratch, _scratch_for_pieces = (
    _Scratch(),
    _Scratch(),
)  # the thread that decides also collects, with the first


@functools.cache
def _helpers() -> ThreadPoolExecutor:
    """Returns this process's one pool of threads. It starts one where none is idle: whoever calls from several threads,
    such as the backward pass's own, may ask for another number in each."""
    return ThreadPoolExecutor(_MOST_HELPERS, thread_name_prefix="netsim-topk")


# A forked child has none of its parent's threads.
os.register_at_fork(after_in_child=_helpers.cache_clear)


def together(jobs: Sequence[Callable[[], _T]]) -> list[_T]:
    """Run the jobs, the first here and the others in the pool; returns what they returned, once all are done."""
    waiting = [_helpers().submit(job) for job in jobs[1:]]
    try:
        found = [job() for job in jobs[:1]]
    finally:
        wait(waiting)  # nobody may still write to the tensors when this returns
    return [*found, *(future.result() for future in waiting)]


@dataclass
class _Piece:
    """A stretch of a segment that is collected by one thread, into its own part of the lists, from ``base`` on.

    ``count``, ``sure`` and ``overflowed`` are what :func:`netsim_ddp.compression.native.candidates.collect` returned.
    """

    start: int
    stop: int
    base: int = 0
    count: int = 0
    sure: int = 0
    overflowed: bool = False


@dataclass(frozen=True)
class Problem:
    """The arguments of :func:`netsim_ddp.compression.native.numba_kernels.select_segments`, without scratch."""

    total: F32
    residual: F32
    gradients: I64
    add: bool
    offsets: I64
    ks: I64
    values: F32
    indices: AnyInt

    def run(self, threads: int) -> int:
        """Select; returns the first segment where a selected value is not finite, or -1."""
        threads = min(threads, self.total.shape[0] // _WORTH_A_THREAD)
        shared = _Shared(self, threads) if threads > 1 else None
        if shared is None or shared.crowded:
            return self.whole_segments(0, self.ks.shape[0], 0)
        return shared.run()

    def whole_segments(self, begin: int, end: int, first: int) -> int:
        """As :meth:`run`, in this thread, of segments ``begin`` to ``end``, whose entries start at ``first``."""
        offsets, ks = self.offsets[begin : end + 1], self.ks[begin:end]
        source = self.total, self.residual, self.gradients[begin:end], self.add
        lists = _scratch.lists(kernel.scratch_length(offsets, ks))
        bad = kernel.select_segments(*source, offsets, ks, self.values[first:], self.indices[first:], *lists)
        return bad + begin if bad >= 0 else -1

    def source(self, s: int) -> tuple[F32, F32, int, bool]:
        """What segment ``s`` is selected from, as :mod:`~netsim_ddp.compression.native.candidates` takes it."""
        return self.total, self.residual, int(self.gradients[s]), self.add


class _Shared:
    """One problem in the hands of several threads."""

    def __init__(self, problem: Problem, threads: int) -> None:
        self.problem = problem
        offsets, ks = problem.offsets, problem.ks
        self.firsts: NDArray[np.int64] = np.zeros(ks.shape[0] + 1, np.int64)
        np.cumsum(ks, out=self.firsts[1:])
        self.cuts = _cuts(offsets, ks, threads)
        bounds: dict[int, list[int]] = {}
        for cut in self.cuts[1:-1]:
            s = _segment_at(offsets, cut)
            if offsets[s] != cut:
                bounds.setdefault(s, [int(offsets[s])]).append(cut)
        self.pieces = {
            s: [_Piece(start, stop) for start, stop in pairwise([*inside, int(offsets[s + 1])])]
            for s, inside in bounds.items()
        }
        length = 0
        for s, pieces in self.pieces.items():
            for piece in pieces:
                piece.base = length
                length += candidates.list_limit(int(ks[s])) + candidates.SLACK
        self.lists = _scratch_for_pieces.lists(length)
        self.brackets = {
            s: candidates.bracket(*problem.source(s), int(offsets[s]), int(offsets[s + 1]), int(ks[s]))
            for s in self.pieces
        }
        self.crowded = any(
            reach > candidates.list_limit(int(ks[s])) for s, (_, _, reach) in self.brackets.items()
        )
        """So many ties that each piece's list would fill: choosing among the lists is one thread's work, and more than
        the threads save."""

    def run(self) -> int:
        bad = together([functools.partial(self._stretch, *stretch) for stretch in pairwise(self.cuts)])
        bad += [self._decide(s, pieces) for s, pieces in self.pieces.items()]
        return min((s for s in bad if s >= 0), default=-1)

    def _stretch(self, begin: int, end: int) -> int:
        offsets = self.problem.offsets
        for s, pieces in self.pieces.items():
            for piece in pieces:
                if begin <= piece.start < end:
                    self._collect(s, piece)
        first = int(np.searchsorted(offsets, begin))
        last = self.problem.ks.shape[0] if end == offsets[-1] else _segment_at(offsets, end)
        return self.problem.whole_segments(first, last, int(self.firsts[first])) if last > first else -1

    def _collect(self, s: int, piece: _Piece) -> None:
        where, found, _, _ = self.lists
        problem, k = self.problem, int(self.problem.ks[s])
        limit = candidates.list_limit(k)
        here = slice(piece.base, piece.base + limit + candidates.SLACK)
        stretch = piece.start, piece.stop, k, *self.brackets[s][:2]
        piece.count, piece.sure, piece.overflowed = candidates.collect(
            *problem.source(s), *stretch, where[here], found[here], limit
        )

    def _decide(self, s: int, pieces: list[_Piece]) -> int:
        problem = self.problem
        k, first = int(problem.ks[s]), int(self.firsts[s])
        values, indices = problem.values[first : first + k], problem.indices[first : first + k]
        bases, counts, sure = (
            np.array([getattr(piece, name) for piece in pieces], np.int64)
            for name in ("base", "count", "sure")
        )
        overflowed = any(piece.overflowed for piece in pieces)
        kth, last, done = candidates.decide(
            problem.total, problem.add, k, self.brackets[s][1], overflowed, bases, counts, sure, *self.lists
        )
        if done:
            where, found, _, _ = self.lists
            jobs: list[Callable[[], None]] = []
            at = 0
            for piece, sent in zip(pieces, counts.tolist(), strict=True):
                part, out = slice(piece.base, piece.base + piece.count), slice(at, at + sent)
                arguments = found[part], where[part], kth, last, values[out], indices[out]
                jobs.append(functools.partial(candidates.emit, *arguments))
                at += sent
            together(jobs)
        else:
            start, stop = int(problem.offsets[s]), int(problem.offsets[s + 1])
            kernel.select_directly(problem.total, problem.add, start, stop, k, values, indices)
        return -1 if all_finite(values) else s


def release() -> None:
    """Give back what calls of this thread keep for the next one, helper threads included."""
    pool = _helpers()
    _helpers.cache_clear()
    pool.shutdown()
    _scratch.arrays = _scratch_for_pieces.arrays = _four(0)


def _segment_at(offsets: I64, position: int) -> int:
    """Returns the segment that ``position`` lies in, or starts."""
    return int(np.searchsorted(offsets, position, side="right")) - 1


def _cuts(offsets: I64, ks: I64, threads: int) -> list[int]:
    """Ascending positions from 0 to N that share the tensor out; a cut inside a segment is worth it."""
    n = int(offsets[-1])
    cuts = [0]
    for t in range(1, threads):
        position = n * t // threads
        s = _segment_at(offsets, position)
        start, size, k = int(offsets[s]), int(offsets[s + 1] - offsets[s]), int(ks[s])
        if size < _WORTH_A_CUT or kernel.is_direct(size, k):
            position = start
        if position > cuts[-1]:
            cuts.append(position)
    return [*cuts, n]


def first_bad_segment(grad: F32, residual: F32, offsets: I64, threads: int) -> int:
    """See :func:`netsim_ddp.compression.native.keys.first_bad_segment`."""
    n = grad.shape[0]
    threads = min(threads, n // _WORTH_A_THREAD)
    if threads < 2:
        return int(keys.first_bad_segment(grad, residual, offsets))
    # Small parts, each for whoever is free: a helper may wake late, its processor taken by a library's idle thread.
    parts = iter(range(n - 1 - (n - 1) % _CHECKED_AT_ONCE, -1, -_CHECKED_AT_ONCE))

    def finds_suspect() -> bool:
        return any(not keys.is_harmless(grad[start : start + _CHECKED_AT_ONCE]) for start in parts)

    suspect = any(together([finds_suspect] * threads))
    return int(keys.first_bad_segment(grad, residual, offsets)) if suspect else -1


def all_finite(flat: F32) -> bool:
    """Whether ``flat`` holds neither NaN nor inf."""
    return bool(keys.max_key(flat.view(np.int32)) < keys.INF_KEY)
