"""Replayed execution: who works when, what is measured, what is played."""

from __future__ import annotations

import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from netsim_ddp.communication.executor import pipeline, stages
from netsim_ddp.communication.segments import Local, Wire
from netsim_ddp.ranks.barrier import HostBarrier
from netsim_ddp.ranks.fork_server import anonymous_file
from netsim_ddp.ranks.turn_threads import TurnThreads
from netsim_ddp.scenario import available_cores, ranks_at_once
from netsim_ddp.steps.compute_times import LEAST_PASSES, ComputeTimes, measure, once
from netsim_ddp.steps.execution import Busy, Execution, Replayed, Spend, asleep
from netsim_ddp.steps.phases import HostClock, StepTimer
from reports.replay import median_interval

RANKS = 4


class Log:
    """What all ranks did, in one order."""

    def __init__(self) -> None:
        self.events: list[tuple[int, str]] = []
        self._lock = threading.Lock()

    def add(self, rank: int, event: str) -> None:
        with self._lock:
            self.events.append((rank, event))


class LoggedWire(Wire):
    operation = "exchange"

    def __init__(self, log: Log, rank: int, name: str) -> None:
        self._log, self._rank, self._name = log, rank, name

    def start(self) -> None:
        self._log.add(self._rank, f"start {self._name}")

    def finish(self) -> None:
        self._log.add(self._rank, f"finish {self._name}")

    def messages(self) -> tuple[int, ...]:
        return (1,)

    @property
    def payload_bytes(self) -> int:
        return 1


def on_all_ranks(run: Callable[[int], Any]) -> list[Any]:
    """``run(rank)`` in a thread per rank; their answers, or the first exception."""
    answers: list[Any] = [None] * RANKS
    failures: list[Exception] = []

    def call(rank: int) -> None:
        try:
            answers[rank] = run(rank)
        except Exception as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    threads = [threading.Thread(target=call, args=(rank,), daemon=True) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    if failures:
        raise failures[0]
    return answers


def two_buckets(log: Log, rank: int) -> Callable[[Execution], None]:
    """A step with two buckets under way at once, each compressed, exchanged and decoded."""
    buckets = []
    for number in range(2):
        compress = Local("compress", lambda number=number: log.add(rank, f"compress {number}"))
        decode = Local("decompress", lambda number=number: log.add(rank, f"decode {number}"))
        buckets.append(stages([compress, LoggedWire(log, rank, str(number)), decode]))

    def play(execution: Execution) -> None:
        assert isinstance(execution, Replayed)
        execution.compute_once(lambda: log.add(rank, "backward"))
        for bucket in pipeline(execution, buckets):
            execution.filled(bucket)
        execution.local("optimizer", lambda: log.add(rank, "optimizer"))

    return play


def replayed(
    barrier: HostBarrier, rank: int, *, at_once: int = 1, computed: Any = (), steps: int = 2, log: Log
) -> list[Any]:
    cpu = torch.device("cpu")
    timer = StepTimer(HostClock())
    execution = Replayed(
        timer, barrier, rank, cpu, lambda: None, computed=computed, at_once=at_once, spend=asleep
    )
    execution.warming_up = False
    return [execution.step(two_buckets(log, rank)) for _ in range(steps)]


def test_all_work_between_two_exchanges_is_one_turn_and_the_order_of_ranks_alternates() -> None:
    log, barrier = Log(), HostBarrier(RANKS, 30)
    on_all_ranks(lambda rank: replayed(barrier, rank, computed=[[0.001, 0.001]] * 2, log=log))
    work = [(rank, event) for rank, event in log.events if event.split()[0] not in ("start", "finish")]
    before, after = ["backward", "compress 0", "compress 1"], ["decode 0", "decode 1", "optimizer"]
    expected = [
        (rank, event)
        for order in (range(RANKS)[::-1], range(RANKS))
        for part in (before, after)
        for rank in order
        for event in part
    ]
    assert work == expected


@pytest.mark.skipif(
    sys.platform != "linux" or available_cores() < 2, reason="needs Linux and two cores to place threads on"
)
def test_within_a_turn_other_threads_leave_the_callers_core_and_may_go_anywhere_afterwards() -> None:
    everywhere, end = os.sched_getaffinity(0), threading.Event()
    waiting = threading.Thread(target=end.wait)
    waiting.start()
    other = waiting.native_id
    assert other is not None
    try:
        threads = TurnThreads(2)
        threads.wake()
        assert len(everywhere - os.sched_getaffinity(other)) == 1
        assert os.sched_getaffinity(0) == everywhere
        threads.settle()
        assert os.sched_getaffinity(other) == everywhere
        alone = TurnThreads(1)
        alone.wake()
        assert os.sched_getaffinity(other) == everywhere
    finally:
        end.set()
        waiting.join()


def test_nobody_measures_while_an_exchange_is_under_way() -> None:
    log, barrier = Log(), HostBarrier(RANKS, 30)
    on_all_ranks(lambda rank: replayed(barrier, rank, at_once=2, computed=[[0.0, 0.0]] * 2, log=log))
    under_way = 0
    for _, event in log.events:
        word = event.split()[0]
        under_way += {"start": 1, "finish": -1}.get(word, 0)
        assert under_way == 0 or word in ("start", "finish")
    # Both passes send the same messages: each of two buckets twice per step and rank.
    assert sum(event.startswith("start") for _, event in log.events) == RANKS * 2 * 2 * 2


def test_so_many_ranks_are_inside_at_a_time_as_there_are_cores_for() -> None:
    barrier, inside, most = HostBarrier(RANKS, 30), [0], [0]
    lock, both = threading.Lock(), threading.Barrier(2)

    def run(rank: int) -> None:
        for step in range(3):
            barrier.wait()
            barrier.take_turn(rank, 2, backwards=step % 2 == 1)
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            both.wait(30)  # would break if the second one were not let in
            with lock:
                inside[0] -= 1
            both.wait(30)
            barrier.pass_turn(rank, 2, backwards=step % 2 == 1)

    on_all_ranks(run)
    assert most == [2]


def test_a_rank_that_does_not_come_out_ends_the_others_wait() -> None:
    barrier = HostBarrier(2, 0.2)
    with pytest.raises(TimeoutError):
        barrier.take_turn(1, 1, backwards=False)


def test_ranks_at_once_are_those_with_cores_of_their_own() -> None:
    cores = available_cores()
    assert ranks_at_once(8, cores) == 1
    assert ranks_at_once(cores + 1, 1) == cores
    assert ranks_at_once(1, 1) == 1
    assert ranks_at_once(2, 100 * cores) == 1


def test_every_step_plays_the_compute_times_of_the_run_and_no_others() -> None:
    log, barrier = Log(), HostBarrier(RANKS, 30)
    computed = [[0.020, 0.010], [0.001, 0.040]]
    samples = on_all_ranks(lambda rank: replayed(barrier, rank, computed=computed, log=log))
    for steps in samples:
        for step, chunks in zip(steps, computed, strict=True):
            played = [end - begin for phase, begin, end in step.laps if phase == "compute"]
            assert len(played) == len(chunks)
            assert all(took >= chunk for took, chunk in zip(played, chunks, strict=True))


@pytest.mark.parametrize("spend", [asleep, Busy(1)])
def test_a_piece_is_never_shorter_than_it_was_measured(spend: Spend) -> None:
    for seconds in (0.0, 1e-5, 1e-3, 0.02):
        until = time.monotonic() + seconds
        spend(until)
        assert time.monotonic() >= until


def test_a_busy_rank_computes_and_a_sleeping_one_does_not() -> None:
    used = {}
    for name, spend in (("busy", Busy(1)), ("asleep", asleep)):
        used[name] = -time.process_time()
        for _ in range(10):
            spend(time.monotonic() + 0.02)
        used[name] += time.process_time()
    assert used["busy"] > 3 * used["asleep"]


class Counted:
    def __init__(self) -> None:
        self.taken = 0

    def take(self) -> list[float]:
        self.taken += 1
        return [float(self.taken), 1.0]


def test_all_ranks_take_the_same_passes_and_alone_ones_where_they_share_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("netsim_ddp.steps.compute_times.WARM_S", 0.0)
    monkeypatch.setattr("netsim_ddp.steps.compute_times.MEASURED_S", 0.05)
    for at_once in (1, 2):
        barrier = HostBarrier(RANKS, 30)
        found = on_all_ranks(
            lambda rank, barrier=barrier, at_once=at_once: measure(Counted(), 1000, barrier, rank, at_once)
        )
        counts = {len(times.passes) for times in found}
        assert len(counts) == 1
        assert counts.pop() >= LEAST_PASSES
        assert all(len(times.alone) == (0 if at_once == 1 else len(times.passes)) for times in found)
        assert all((times.slowdowns() is None) == (at_once == 1) for times in found)


def test_slowdowns_are_what_the_others_cost() -> None:
    times = ComputeTimes([[2.0, 1.0], [2.0, 4.0]], [4.0, 2.0], [0.3, 0.3], [0.1, 0.3])
    assert times.slowdowns() == pytest.approx((4.5 / 3, 0.3 / 0.2))


def test_steps_take_their_passes_from_all_over_the_time_that_was_measured() -> None:
    times = ComputeTimes([[float(number)] for number in range(10)])
    assert times.of_steps(5) == [[0.0], [2.0], [4.0], [6.0], [8.0]]
    assert [chunk for (chunk,) in times.of_steps(20)] == sorted([*range(10), *range(10)])


def test_the_other_methods_of_a_repeat_find_the_same_compute_times() -> None:
    file = anonymous_file()
    first, second = ComputeTimes([[0.1, 0.2]], [0.3], [1.0], [1.0]), ComputeTimes([[9.0]])

    def never() -> ComputeTimes:
        raise AssertionError("measured again")

    assert once(file, {"model": "a", "repeat": 0}, bool, lambda: first) == first
    assert once(file, {"model": "a", "repeat": 0}, bool, never) == first
    # One rank that has lost them makes all measure again, or the others would wait for it for ever.
    assert once(file, {"model": "a", "repeat": 0}, lambda _: False, lambda: second) == second
    assert once(file, {"model": "a", "repeat": 1}, bool, lambda: first) == first


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.96875) == pytest.approx((1.0, 6.0))
    draw = random.Random(0)
    held = 0
    for _ in range(4000):
        low, high = median_interval([draw.gauss(0, 1) for _ in range(6)], 0.90)
        held += low <= 0 <= high
    assert math.isclose(held / 4000, 0.90, abs_tol=0.015)
    with pytest.raises(ValueError, match="no interval"):
        median_interval([1.0, 2.0], 0.90)
