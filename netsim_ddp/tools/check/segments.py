"""Checks of the segments: work in locals, exchanges in wires, bytes as they are declared, and what a step takes."""

from __future__ import annotations

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from statistics import median

from netsim_ddp.communication import cost
from netsim_ddp.communication.framing import wire_bytes
from netsim_ddp.communication.segments import Local, Segment, Wire
from netsim_ddp.tools.check.context import LARGE, MIDDLE, Context, Passed, Run
from netsim_ddp.tools.check.interception import Call, OperationCounter, Recorder

STEPS = 4
FREE_ELEMENTS = 4096
"""A wire may touch so many elements per exchange: sizes, a header, a handful of scalars."""
ROUNDS = 7
CLOCKS = (("this thread", 2.0, 0.5e-3), ("the process", 1.5, 1.5e-3))
"""How many times the CPU seconds of the bare operations an exchange may take, and how many more, by each clock."""
LATE_S = 0.15
IDLE_S, IDLE_CPU_S = 0.02, 2e-3
"""After a local segment nothing of this process should work: so much CPU time in so long is a thread that does."""
PAYLOAD_TOLERANCE, PAYLOAD_SPARE = 0.02, 64


def local(context: Context) -> Passed:
    """No operation, store, socket or wait in a local segment, of whatever size; the link's counters come after."""
    recorder, run = Recorder(context.group.rank, context.group.world_size), Run(context, MIDDLE)
    found, locals_ = list[str](), set[str]()
    with recorder.installed():
        for step in range(STEPS):
            for called, segment in run.walk(run.gradient(step)):
                with recorder.at(called), OperationCounter(recorder) as counter:
                    segment.run()
                if isinstance(segment, Local):
                    locals_.add(called)
                    found += [f"{called} calls {each}" for each in counter.distributed]
        # What a step leaves behind in the background is heard before the next one.
        context.barrier.wait()
    shown = {"outside": "something outside the segments"}
    found += [
        f"{shown.get(call.where, call.where)} calls {call}"
        for call in recorder.calls
        if call.where in locals_ or call.where == "outside"
    ]
    found += [
        f"{shown.get(where, where)} talks past the process group ({what})"
        for where, what in recorder.connections
        if where != "outside" or "Store" in what
    ]
    found += [
        f"{where} waits for an exchange ({what}): wait in finish()"
        for where, what in recorder.waits
        if where in locals_
    ]
    context.agree(*(f"{each}: communication belongs into a Wire, where it is counted" for each in found))
    # One step more, with the link's counters read around each local segment.
    for _, segment in run.walk(run.gradient(STEPS)):
        if isinstance(segment, Local):
            context.count()
        segment.run()
        if isinstance(segment, Local):
            context.count()
    return Passed("local segments call nothing of torch.distributed")


def wire(context: Context) -> Passed:
    """``start`` returns at once, ``finish`` when the exchange is over, and neither computes."""
    run = Run(context, LARGE)
    run.step(0)
    _start_in_turn(context, run)
    recorder = Recorder(context.group.rank, context.group.world_size)
    with recorder.installed():
        context.agree(*_unfinished(context, run, recorder))
        recorder.forget()
        context.agree(*_computing(run, recorder))
    context.agree(*_going_on(context, run))
    spent = _cpu_work(context, run)
    return Passed(f"start() and finish() hand over and wait, no more ({spent:.1f} ms of CPU time in both)")


def _start_in_turn(context: Context, run: Run) -> None:
    """One rank after the other starts: one that waits for another here is behind, and is named."""

    def say(doing: str) -> None:
        context.progress(run.steps, doing)

    for called, segment in run.wires(1):
        say("waiting for its turn")
        for rank in range(context.group.world_size):
            if rank == context.group.rank:
                say(
                    f"in start() of {called}, which must return at once, while the other ranks have not started"
                )
                segment.start()
                say("waiting for the others to start")
            context.gather(None)
        say(f"in finish() of {called}")
        segment.finish()


def _unfinished(context: Context, run: Run, recorder: Recorder) -> Iterator[str]:
    """A step in which each rank in turn comes late: no ``finish`` may return before its exchange is over."""
    idle = dict[str, bool]()
    for late in range(context.group.world_size):
        for called, segment in run.wires(2 + late):
            context.barrier.wait()
            if context.group.rank == late:
                time.sleep(LATE_S)
            recorder.forget()
            with recorder.at("start"):
                segment.start()
            with recorder.at("finish"):
                segment.finish()
            for call in recorder.calls:
                if call.work is not None and not recorder.over(call.work):
                    yield f"finish() of {called} returns before its {call} is over"
            began = any(call.where == "start" for call in recorder.calls)
            idle[called] = idle.get(called, True) and bool(recorder.calls) and not began
    for called, never in idle.items():
        if never:
            yield (
                f"start() of {called} starts nothing, finish() does: the exchange then hides behind no other work"
            )


def _computing(run: Run, recorder: Recorder) -> Iterator[str]:
    """Steps in which torch's operations outside the locals are counted."""

    def counted(what: str, *parts: Callable[[], object]) -> Iterator[str]:
        with OperationCounter(recorder) as counter:
            for part in parts:
                part()
        if counter.elements > FREE_ELEMENTS:
            name, size = counter.largest
            yield (
                f"{what} computes (torch's {name} on {size:,} elements): work belongs into a Local, where it is timed"
            )

    for step in range(2):
        for called, segment in run.wires(10 + step):
            yield from counted(f"start() of {called}", segment.start)
            yield from counted(f"finish() of {called}", segment.finish)
            yield from counted(
                f"messages() or payload_bytes of {called}",
                segment.messages,
                functools.partial(getattr, segment, "payload_bytes"),
            )
        yield from counted("`average`", lambda: run.method.average)


def _going_on(context: Context, run: Run) -> Iterator[str]:
    """Threads at work after a local segment has returned: new ones, or CPU time in the least of several rounds."""
    after = defaultdict[str, list[float]](list)
    for step in range(3):
        for called, segment in run.walk(run.gradient(15 + step)):
            threads = set(threading.enumerate())
            segment.run()
            if isinstance(segment, Local):
                if set(threading.enumerate()) - threads:
                    yield f"{called} has returned and its thread has not: do it all before that"
                after[called].append(_spent(functools.partial(time.sleep, IDLE_S))[1])
            context.barrier.wait()
    for called, rounds in after.items():
        if (least := min(rounds)) > IDLE_CPU_S:
            yield (
                f"{called} has returned and other threads compute on"
                f" ({least * 1e3:.1f} ms of CPU time): do it all before it returns, where it is timed"
            )


def _cpu_work(context: Context, run: Run) -> float:
    """CPU time of each exchange beside that of its bare operations, in alternating order; returns milliseconds.

    The least of several rounds counts: what else runs on the machine only adds to it.

    Raises:
        CheckFailed: an exchange takes more.
    """
    recorder = Recorder(context.group.rank, context.group.world_size)
    calls = dict[str, list[Call]]()
    own, bare = (defaultdict[str, list[tuple[float, float]]](list) for _ in range(2))
    for step in range(ROUNDS):
        for called, segment in run.wires(20 + step):
            if called not in calls:
                with recorder.installed():
                    segment.run()
                calls[called] = list(recorder.calls)
                recorder.forget()
            else:
                for times, work in ((own, segment.run), (bare, functools.partial(_repeat, calls[called]))):
                    context.barrier.wait()
                    times[called].append(_spent(work))
    context.agree(
        *(
            f"{called} takes {here * 1e3:.1f} ms of CPU time in {name}, its bare"
            f" operations take {there * 1e3:.1f} ms: work belongs into a Local, where it is timed"
            for called in own
            for (name, most, spare_s), here, there in zip(
                CLOCKS, _least(own[called]), _least(bare[called]), strict=True
            )
            if here > most * there + spare_s
        )
    )
    return sum(_least(rounds)[0] for rounds in own.values()) * 1e3


def _least(rounds: list[tuple[float, float]]) -> tuple[float, float]:
    """The least of each clock over all rounds."""
    thread, process = zip(*rounds, strict=True)
    return min(thread), min(process)


def _repeat(calls: list[Call]) -> None:
    for work in [call.again() for call in calls if call.again is not None]:
        if work is not None:
            work.wait()


def _spent(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of this thread, and of the whole process."""
    thread, process = time.thread_time(), time.process_time()
    work()
    return time.thread_time() - thread, time.process_time() - process


def sends(context: Context) -> Passed:
    """What the wires declare for some steps, beside what they hand over; the counters are read around them."""
    recorder, run = Recorder(context.group.rank, context.group.world_size), Run(context, MIDDLE)
    run.step(0)
    declared, faults = 0, list[str | None]()
    context.count()
    before = context.charged()
    with recorder.installed():
        for step in range(STEPS):
            for called, segment in run.wires(step):
                recorder.forget()
                segment.run()
                faults.append(_payload_fault(context, segment, called, recorder.calls))
            declared += wire_bytes(cost.messages(run.segments))
    context.count()
    charged = context.charged() - before
    context.agree(*faults)
    return Passed("", data={"declared": declared, "charged": charged})


def _payload_fault(context: Context, segment: Wire, called: str, calls: list[Call]) -> str | None:
    if not calls:
        return None  # nothing that this can see; the counters see it
    least, most = sum(call.least for call in calls), sum(call.most for call in calls)
    told, spare = segment.payload_bytes, PAYLOAD_SPARE * context.group.world_size
    if least * (1 - PAYLOAD_TOLERANCE) - spare <= told <= most * (1 + PAYLOAD_TOLERANCE) + spare:
        return None
    handed = f"{least:,.0f}" if least == most else f"{least:,.0f} to {most:,.0f}"
    return (
        f"payload_bytes of {called} says {told:,} and rank {context.group.rank} handed over {handed}"
        f" ({', '.join(str(call) for call in calls[:3])})"
    )


def times(context: Context) -> Passed:
    """Milliseconds per step, by the clock around the segments; local ones with the host to themselves."""
    run = Run(context, LARGE)
    spent = [{"local_ms": 0.0, "wire_ms": 0.0} for _ in range(2 + 2 * STEPS)]
    for step, each in enumerate(spent):
        for _, segment in run.walk(run.gradient(step)):
            if isinstance(segment, Local):
                with context.barrier.turn():
                    each["local_ms"] += _wall_ms(segment)
            else:
                context.barrier.wait()
                each["wire_ms"] += _wall_ms(segment)
    # The first two warm caches and connections.
    return Passed("", None, {name: median(each[name] for each in spent[2:]) for name in spent[0]})


def _wall_ms(segment: Segment) -> float:
    begin = time.monotonic()
    segment.run()
    return (time.monotonic() - begin) * 1e3
