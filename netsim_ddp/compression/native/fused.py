"""Runs the fused kernel: its scratch memory, and its work shared out among threads.

With T threads the flat tensor is cut into T stretches of equal length. A thread does the segments inside its
stretch alone. A large segment that a cut falls into is collected in pieces, decided once for all pieces, and
emitted in pieces again. The result does not depend on T.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from netsim_ddp.compression.native import numba_kernels as kernel
from netsim_ddp.compression.native.numba_kernels import F32, I32, I64, AnyInt

_WORTH_A_THREAD = 1 << 18  # floats per thread below which waking one costs as much as it saves
_WORTH_A_CUT = 1 << 16  # smaller segments go to one thread
_CHECKED_AT_ONCE = 1 << 19


_Four = tuple[I32, I32, I32, I32]


def _four(length: int) -> _Four:
    where, found, spare_where, spare_found = (np.empty(length, np.int32) for _ in range(4))
    return where, found, spare_where, spare_found


class _Scratch(threading.local):
    """Lists of candidates, kept between calls: mapping fresh pages would cost as much as filling them."""

    def __init__(self) -> None:
        self._arrays = _four(0)

    def lists(self, length: int, keep: bool = True) -> _Four:
        """``where``, ``found`` and a spare of each, at least ``length`` long; without ``keep`` made anew."""
        if self._arrays[0].shape[0] < length or not keep:
            self._arrays = _four(length)
        return self._arrays


_scratch = _Scratch()


class _Helpers:
    """This process's one pool of threads. It grows when more are asked for and is never made for a call: whoever calls
    from several threads, such as the backward pass's own, may have another number in each."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """A forked child has none of its parent's threads, and a lock that one of them may have held."""
        self._lock = threading.Lock()
        self._size = 0
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, count: int, jobs: list[Callable[[], None]]) -> list[Future[None]]:
        """Have ``jobs`` done by at least ``count`` threads."""
        with self._lock:
            if self._pool is None or self._size < count:
                if self._pool is not None:
                    self._pool.shutdown(wait=False)  # what it was given, it still does
                self._size, self._pool = count, ThreadPoolExecutor(count, thread_name_prefix="netsim-topk")
            return [self._pool.submit(job) for job in jobs]

    def close(self) -> None:
        """End the threads; the next call starts others."""
        with self._lock:
            pool, self._pool, self._size = self._pool, None, 0
        if pool is not None:
            pool.shutdown()


_helpers = _Helpers()
os.register_at_fork(after_in_child=_helpers.forget)


def together(threads: int, jobs: list[Callable[[], None]]) -> None:
    """Run the jobs, the first here and the others in the pool; return when all are done."""
    waiting = _helpers.submit(threads - 1, jobs[1:]) if len(jobs) > 1 else []
    try:
        if jobs:
            jobs[0]()
    finally:
        for future in waiting:
            future.exception()  # nobody may still write to the tensors when this returns
    for future in waiting:
        future.result()


@dataclass
class _Piece:
    """A stretch of a segment that is collected by one thread, into its own part of the lists."""

    start: int
    stop: int
    base: int = 0
    count: int = 0
    sure: int = 0
    messy: bool = False


@dataclass(frozen=True)
class Problem:
    """The arguments of :func:`netsim_ddp.compression.native.numba_kernels.select_segments`, without scratch."""

    flat: F32
    grad: F32
    add: bool
    offsets: I64
    ks: I64
    values: F32
    indices: AnyInt

    def run(self, threads: int) -> int:
        """Select; answers the first segment where a selected value is not finite, or -1."""
        threads = min(threads, self.flat.shape[0] // _WORTH_A_THREAD)
        if threads < 2:
            bad, _ = self._whole_segments(0, self.ks.shape[0], 0)
            return bad
        shared = _Shared(self, threads)
        if shared.crowded:
            bad, _ = self._whole_segments(0, self.ks.shape[0], 0)
            return bad
        return shared.run()

    def _whole_segments(self, begin: int, end: int, first: int) -> tuple[int, int]:
        """Segments ``begin`` to ``end``, whose entries start at ``first``, in this thread."""
        offsets, ks = self.offsets[begin : end + 1], self.ks[begin:end]
        last = first + int(ks.sum())
        length = kernel.scratch_length(offsets, ks)
        bad, fallbacks = kernel.select_segments(
            self.flat,
            self.grad,
            self.add,
            offsets,
            ks,
            self.values[first:last],
            self.indices[first:last],
            *_scratch.lists(length),
        )
        return (bad + begin if bad >= 0 else -1), fallbacks


class _Shared:
    """One problem in the hands of several threads."""

    def __init__(self, problem: Problem, threads: int) -> None:
        self.problem, self.threads = problem, threads
        offsets, ks = problem.offsets, problem.ks
        self.firsts: NDArray[np.int64] = np.zeros(ks.shape[0] + 1, np.int64)
        np.cumsum(ks, out=self.firsts[1:])
        self.cuts = _cuts(offsets, ks, threads)
        self.bad: list[int] = []
        self.pieces: dict[int, list[_Piece]] = {}
        for begin, end in zip(self.cuts, self.cuts[1:], strict=False):
            for position in (begin, end):
                s = int(np.searchsorted(offsets, position, side="right")) - 1
                if position in (0, int(offsets[-1])) or offsets[s] == position:
                    continue
                piece = _Piece(max(begin, int(offsets[s])), min(end, int(offsets[s + 1])))
                listed = self.pieces.setdefault(s, [])
                if not listed or listed[-1].start != piece.start:  # both cuts may fall into one segment
                    listed.append(piece)
        length = 0
        for s, pieces in self.pieces.items():
            for piece in pieces:
                piece.base = length
                length += kernel.list_limit(int(ks[s])) + kernel.SLACK
        self.lists = _scratch_for_pieces.lists(length)
        self.brackets = {
            s: kernel.bracket(
                problem.flat, problem.grad, problem.add, int(offsets[s]), int(offsets[s + 1]), int(ks[s])
            )
            for s in self.pieces
        }
        self.crowded = any(
            reach > kernel.list_limit(int(ks[s])) for s, (_, _, reach) in self.brackets.items()
        )
        """So many ties that each piece's list would fill: choosing among the lists is one thread's work, and more than
        the threads save."""

    def run(self) -> int:
        stretches = list(zip(self.cuts, self.cuts[1:], strict=False))
        together(self.threads, [functools.partial(self._stretch, *stretch) for stretch in stretches])
        for s, pieces in self.pieces.items():
            self._decide(s, pieces)
        return min(self.bad, default=-1)

    def _stretch(self, begin: int, end: int) -> None:
        problem = self.problem
        offsets = problem.offsets
        for s, pieces in self.pieces.items():
            for piece in pieces:
                if begin <= piece.start < end:
                    self._collect(s, piece)
        inside = int(np.searchsorted(offsets, begin)), int(np.searchsorted(offsets, end, side="right")) - 1
        if end == offsets[-1]:
            inside = inside[0], problem.ks.shape[0]
        if inside[1] > inside[0]:
            bad, _ = problem._whole_segments(*inside, int(self.firsts[inside[0]]))
            if bad >= 0:
                self.bad.append(bad)

    def _collect(self, s: int, piece: _Piece) -> None:
        where, found, _, _ = self.lists
        k = int(self.problem.ks[s])
        limit = kernel.list_limit(k)
        here = slice(piece.base, piece.base + limit + kernel.SLACK)
        piece.count, piece.sure, piece.messy = kernel.collect(
            self.problem.flat,
            self.problem.grad,
            self.problem.add,
            piece.start,
            piece.stop,
            k,
            *self.brackets[s][:2],
            where[here],
            found[here],
            limit,
            np.empty(kernel.BUCKETS, np.int32),
        )

    def _decide(self, s: int, pieces: list[_Piece]) -> None:
        problem = self.problem
        k = int(problem.ks[s])
        first = int(self.firsts[s])
        values, indices = problem.values[first : first + k], problem.indices[first : first + k]
        bases, counts, sure = (
            np.array([getattr(piece, name) for piece in pieces], np.int64)
            for name in ("base", "count", "sure")
        )
        messy = any(piece.messy for piece in pieces)
        high = self.brackets[s][1]
        histogram = np.empty(kernel.BUCKETS, np.int32)
        kth, last, done = kernel.settle(
            problem.flat, problem.add, k, high, messy, bases, counts, sure, *self.lists, histogram
        )
        if done:
            where, found, _, _ = self.lists
            jobs: list[Callable[[], None]] = []
            at = 0
            for piece, sent in zip(pieces, counts.tolist(), strict=True):
                part, out = slice(piece.base, piece.base + piece.count), slice(at, at + sent)
                arguments = found[part], where[part], kth, last, values[out], indices[out]
                jobs.append(functools.partial(kernel.emit, *arguments))
                at += sent
            together(self.threads, jobs)
        else:
            start, stop = int(problem.offsets[s]), int(problem.offsets[s + 1])
            kernel.select_whole(problem.flat, problem.add, start, stop, k, values, indices)
        if kernel.max_key(values.view(np.int32)) >= kernel.INF_KEY:
            self.bad.append(s)


_scratch_for_pieces = _Scratch()  # the thread that decides also collects, with the other scratch


def release() -> None:
    """Give back what calls of this thread keep for the next one, helper threads included."""
    _helpers.close()
    for scratch in (_scratch, _scratch_for_pieces):
        scratch.lists(0, keep=False)


def _cuts(offsets: I64, ks: I64, threads: int) -> list[int]:
    """Ascending positions from 0 to N that share the tensor out; a cut inside a segment is worth it."""
    n = int(offsets[-1])
    cuts = [0]
    for t in range(1, threads):
        position = n * t // threads
        s = int(np.searchsorted(offsets, position, side="right")) - 1
        start, size, k = int(offsets[s]), int(offsets[s + 1] - offsets[s]), int(ks[s])
        if size < _WORTH_A_CUT or kernel.is_direct(size, k):
            position = start
        if position > cuts[-1]:
            cuts.append(position)
    return [*cuts, n]


def first_bad_segment(grad: F32, residual: F32, offsets: I64, threads: int) -> int:
    """See :func:`netsim_ddp.compression.native.numba_kernels.first_bad_segment`."""
    n = grad.shape[0]
    threads = min(threads, n // _WORTH_A_THREAD)
    if threads < 2:
        return int(kernel.first_bad_segment(grad, residual, offsets))
    # Small parts, each for whoever is free: a helper may wake late, its processor taken by a library's idle thread.
    parts = iter(range(n - 1 - (n - 1) % _CHECKED_AT_ONCE, -1, -_CHECKED_AT_ONCE))
    suspects: list[int] = []

    def look() -> None:
        for start in parts:
            if not kernel.is_harmless(grad[start : start + _CHECKED_AT_ONCE]):
                suspects.append(start)
                return

    together(threads, [look] * threads)
    return int(kernel.first_bad_segment(grad, residual, offsets)) if suspects else -1


def all_finite(flat: F32) -> bool:
    """Whether ``flat`` holds neither NaN nor inf."""
    return bool(kernel.max_key(flat.view(np.int32)) < kernel.INF_KEY)


def call_every_kernel() -> None:
    """Compile, or load from numba's cache, every signature in use, in this thread."""
    flat, grad = np.zeros(4, np.float32), np.zeros(4, np.float32)
    offsets, ks = np.array([0, 4]), np.array([1])
    lists = _four(16)
    where, found = lists[:2]
    histogram = np.zeros(kernel.BUCKETS, np.int32)
    low, high, _ = kernel.bracket(flat, grad, True, 0, 4, 1)
    kernel.scratch_length(offsets, ks)
    kernel.collect(flat, grad, True, 0, 0, 1, low, high, where, found, 1, histogram)
    one = np.zeros(1, np.int64)
    kernel.settle(flat, True, 1, high, False, one, one.copy(), one.copy(), *lists, histogram)
    positions: list[AnyInt] = [np.zeros(1, np.int32), np.zeros(1, np.int64)]
    for indices in positions:
        values = np.zeros(1, np.float32)
        kernel.select_segments(flat, grad, True, offsets, ks, values, indices, *lists)
        kernel.emit(found[:0], where[:0], 0, 0, values, indices)
        kernel.select_whole(flat, True, 0, 4, 1, values, indices)
    kernel.first_bad_segment(grad, flat, offsets)
    kernel.is_harmless(grad)
    kernel.max_key(where)
