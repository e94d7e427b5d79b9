"""Trials of the segments: work in locals, exchanges in wires, bytes as they are declared, and what a step takes."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from statistics import median

from netsim_ddp.communication import cost
from netsim_ddp.communication.framing import wire_bytes
from netsim_ddp.communication.segments import Local, Segment, Wire
from netsim_ddp.ranks.channel import COMMUNICATING, COMPUTING
from netsim_ddp.tools.trials.bench import LARGE, MIDDLE, Bench, Found, Run
from netsim_ddp.tools.trials.watch import Arithmetic, Call, Watch

STEPS = 4
FREE_ELEMENTS = 4096
"""A wire may touch so many elements per exchange: sizes, a header, a handful of scalars."""
ROUNDS = 7
CPU_TIMES, CPU_SPARE_S = 2.0, 0.5e-3
CPU_TIMES_OF_ALL, CPU_SPARE_OF_ALL_S = 1.5, 1.5e-3
"""How much more CPU time than the bare operations an exchange may take, of its own thread and of all threads."""
LATE_S = 0.15
IDLE_S, IDLE_CPU_S = 0.02, 2e-3
"""After a local segment nothing of this process should work: so much CPU time in so long is a thread that does."""
PAYLOAD_TOLERANCE, PAYLOAD_SPARE = 0.02, 64


def _called(number: int, segment: Segment) -> str:
    """``segment`` in words."""
    if isinstance(segment, Local):
        return f"the local segment {number} ({segment.phase})"
    return f"the wire {number} ({segment.operation})"


def local(bench: Bench) -> Found:
    """No operation, store, socket or wait in a local segment, of whatever size; the link's counters come after."""
    watch = Watch(bench.group.rank, bench.group.world_size)
    run = Run(bench, MIDDLE)
    found = list[str]()
    with watch.installed():
        for step in range(STEPS):
            run.flat.data.copy_(bench.gradient(run.numel, step))
            for number, segment in enumerate(run.segments):
                doing = COMPUTING if isinstance(segment, Local) else COMMUNICATING
                bench.progress(step, doing)
                with watch.at(_called(number, segment)), Arithmetic(watch) as arithmetic:
                    segment.run()
                if isinstance(segment, Local):
                    found += [f"{_called(number, segment)} calls {each}" for each in arithmetic.distributed]
        # What a step leaves behind in the background is heard before the next one.
        bench.barrier.meet()
    locals_ = {_called(number, each) for number, each in enumerate(run.segments) if isinstance(each, Local)}
    for call in watch.calls:
        if call.where in locals_ or call.where == "outside":
            found.append(f"{_somewhere(call.where)} calls {call}")
    found += [
        f"{_somewhere(where)} talks past the process group ({what})"
        for where, what in watch.talks
        if where != "outside" or "Store" in what
    ]
    found += [
        f"{where} waits for an exchange ({what}): wait in finish()"
        for where, what in watch.waits
        if where in locals_
    ]
    bench.agree(f"{found[0]}: communication belongs into a Wire, where it is counted" if found else None)
    _count_locals(bench, run)
    return Found("local segments call nothing of torch.distributed")


def _somewhere(where: str) -> str:
    return "something outside the segments" if where == "outside" else where


def _count_locals(bench: Bench, run: Run) -> None:
    """One step more, with the link's counters read around each local segment."""
    run.flat.data.copy_(bench.gradient(run.numel, STEPS))
    for segment in run.segments:
        if isinstance(segment, Local):
            bench.count()
            segment.run()
            bench.count()
        else:
            segment.run()


def wire(bench: Bench) -> Found:
    """``start`` returns at once, ``finish`` when the exchange is over, and neither computes."""
    run = Run(bench, LARGE)
    run.step(0)
    _starts_at_once(bench, run)
    watch = Watch(bench.group.rank, bench.group.world_size)
    with watch.installed():
        bench.agree(_unfinished(bench, run, watch))
        watch.forget()
        bench.agree(_torch_work(bench, run, watch))
    bench.agree(_goes_on(bench, run))
    spent = _cpu_work(bench, run)
    return Found(f"start() and finish() hand over and wait, no more ({spent:.1f} ms of CPU time in both)")


def _starts_at_once(bench: Bench, run: Run) -> None:
    """One rank after the other starts: whoever waits for another here is behind, and named."""
    run.flat.data.copy_(bench.gradient(run.numel, 1))
    for number, segment in enumerate(run.segments):
        if isinstance(segment, Local):
            segment.run()
            continue
        bench.progress(1, "waiting for its turn")
        for rank in range(bench.group.world_size):
            if rank == bench.group.rank:
                about = "which must return at once, while the other ranks have not started"
                bench.progress(1, f"in start() of {_called(number, segment)}, {about}")
                segment.start()
                bench.progress(1, "waiting for the others to start")
            bench.gather(None)
        bench.progress(1, f"in finish() of {_called(number, segment)}")
        segment.finish()


def _unfinished(bench: Bench, run: Run, watch: Watch) -> str | None:
    """A step in which each rank in turn comes late: nobody's ``finish`` may return before its exchange is over."""
    fault, idle = None, dict[int, bool]()
    for late in range(bench.group.world_size):
        run.flat.data.copy_(bench.gradient(run.numel, 2 + late))
        for number, segment in enumerate(run.segments):
            bench.progress(2 + late, COMPUTING if isinstance(segment, Local) else COMMUNICATING)
            if isinstance(segment, Local):
                segment.run()
                continue
            bench.barrier.meet()
            if bench.group.rank == late:
                time.sleep(LATE_S)
            watch.forget()
            with watch.at("start"):
                segment.start()
            with watch.at("finish"):
                segment.finish()
            left = [call for call in watch.calls if call.work is not None and not watch.over(call.work)]
            if left:
                fault = (
                    fault or f"finish() of {_called(number, segment)} returns before its {left[0]} is over"
                )
            began = any(call.where == "start" for call in watch.calls)
            idle[number] = idle.get(number, True) and bool(watch.calls) and not began
    for number, never in idle.items():
        if never:
            fault = fault or (
                f"start() of {_called(number, run.segments[number])} starts nothing, finish() does: the exchange then"
                " hides behind no other work"
            )
    return fault


def _torch_work(bench: Bench, run: Run, watch: Watch) -> str | None:
    """A step in which torch's operations outside the locals are counted."""
    fault = None
    for step in range(2):
        run.flat.data.copy_(bench.gradient(run.numel, 10 + step))
        for number, segment in enumerate(run.segments):
            bench.progress(10 + step, COMPUTING if isinstance(segment, Local) else COMMUNICATING)
            if isinstance(segment, Local):
                segment.run()
                continue
            for half, work in (("start", segment.start), ("finish", segment.finish)):
                with watch.at(half), Arithmetic(watch) as arithmetic:
                    work()
                fault = fault or _too_much(arithmetic, f"{half}() of {_called(number, segment)}")
            with Arithmetic(watch) as arithmetic:
                segment.messages()
                _ = segment.payload_bytes
            fault = fault or _too_much(
                arithmetic, f"messages() or payload_bytes of {_called(number, segment)}"
            )
        with Arithmetic(watch) as arithmetic:
            _ = run.method.average
        fault = fault or _too_much(arithmetic, "`average`")
    return fault


def _too_much(arithmetic: Arithmetic, what: str) -> str | None:
    if arithmetic.elements <= FREE_ELEMENTS:
        return None
    name, size = arithmetic.largest
    return (
        f"{what} computes (torch's {name} on {size:,} elements): work belongs into a Local, where it is timed"
    )


def _goes_on(bench: Bench, run: Run) -> str | None:
    """Threads at work after a local segment has returned: new ones, or CPU time in the least of several rounds."""
    after, fault = dict[int, list[float]](), None
    for step in range(3):
        run.flat.data.copy_(bench.gradient(run.numel, 15 + step))
        for number, segment in enumerate(run.segments):
            bench.progress(15 + step, COMPUTING if isinstance(segment, Local) else COMMUNICATING)
            threads = set(threading.enumerate())
            segment.run()
            if isinstance(segment, Local):
                if set(threading.enumerate()) - threads:
                    fault = f"{_called(number, segment)} has returned and its thread has not: do it all before that"
                before = time.process_time()
                time.sleep(IDLE_S)
                after.setdefault(number, []).append(time.process_time() - before)
            bench.barrier.meet()
    for number, rounds in after.items():
        if (least := min(rounds)) > IDLE_CPU_S:
            fault = fault or (
                f"{_called(number, run.segments[number])} has returned and other threads compute on"
                f" ({least * 1e3:.1f} ms of CPU time): do it all before it returns, where it is timed"
            )
    return fault


def _cpu_work(bench: Bench, run: Run) -> float:
    """CPU time of each exchange beside that of its bare operations, in alternating order; answers milliseconds.

    The least of several rounds counts: what else runs on the machine only adds to it.

    Raises:
        Fault: an exchange takes more.
    """
    watch, bare = Watch(bench.group.rank, bench.group.world_size), dict[int, list[Call]]()
    mine, plain = dict[int, list[tuple[float, float]]](), dict[int, list[tuple[float, float]]]()
    for step in range(ROUNDS):
        run.flat.data.copy_(bench.gradient(run.numel, 20 + step))
        for number, segment in enumerate(run.segments):
            bench.progress(20 + step, COMPUTING if isinstance(segment, Local) else COMMUNICATING)
            if isinstance(segment, Local):
                segment.run()
            elif step == 0:
                with watch.installed():
                    segment.run()
                bare[number] = list(watch.calls)
                watch.forget()
            else:
                bench.barrier.meet()
                mine.setdefault(number, []).append(_spent(segment.run))
                bench.barrier.meet()
                plain.setdefault(number, []).append(_spent(functools.partial(_repeat, bare[number])))
    fault, total = None, 0.0
    for number, rounds in mine.items():
        for clock, name, times, spare_s in (
            (0, "this thread", CPU_TIMES, CPU_SPARE_S),
            (1, "the process", CPU_TIMES_OF_ALL, CPU_SPARE_OF_ALL_S),
        ):
            here, there = min(each[clock] for each in rounds), min(each[clock] for each in plain[number])
            if here > times * there + spare_s:
                fault = fault or (
                    f"{_called(number, run.segments[number])} takes {here * 1e3:.1f} ms of CPU time in {name}, its bare"
                    f" operations take {there * 1e3:.1f} ms: work belongs into a Local, where it is timed"
                )
            total += here if clock == 0 else 0.0
    bench.agree(fault)
    return total * 1e3


def _repeat(calls: list[Call]) -> None:
    for work in [call.again() for call in calls if call.again is not None]:
        if work is not None:
            work.wait()


def _spent(work: Callable[[], None]) -> tuple[float, float]:
    """CPU seconds of this thread, and of the whole process."""
    thread, process = time.thread_time(), time.process_time()
    work()
    return time.thread_time() - thread, time.process_time() - process


def sends(bench: Bench) -> Found:
    """What the wires declare for some steps, beside what they hand over; the counters are read around them."""
    watch = Watch(bench.group.rank, bench.group.world_size)
    run = Run(bench, MIDDLE)
    run.step(0)
    declared, fault = 0, None
    bench.count()
    before = bench.charged()
    with watch.installed():
        for step in range(STEPS):
            run.flat.data.copy_(bench.gradient(run.numel, step))
            for number, segment in enumerate(run.segments):
                bench.progress(step, COMPUTING if isinstance(segment, Local) else COMMUNICATING)
                watch.forget()
                segment.run()
                if isinstance(segment, Wire):
                    fault = fault or _payload_fault(bench, segment, number, watch.calls)
            declared += wire_bytes(cost.messages(run.segments))
    bench.count()
    charged = bench.charged() - before
    bench.agree(fault)
    return Found("", data={"declared": declared, "charged": charged})


def _payload_fault(bench: Bench, segment: Wire, number: int, calls: list[Call]) -> str | None:
    if not calls:
        return None  # nothing that this can see; the counters see it
    least, most = sum(call.least for call in calls), sum(call.most for call in calls)
    told = segment.payload_bytes
    spare = PAYLOAD_SPARE * bench.group.world_size
    if least * (1 - PAYLOAD_TOLERANCE) - spare <= told <= most * (1 + PAYLOAD_TOLERANCE) + spare:
        return None
    handed = f"{least:,.0f}" if least == most else f"{least:,.0f} to {most:,.0f}"
    return (
        f"payload_bytes of {_called(number, segment)} says {told:,} and rank {bench.group.rank} handed over {handed}"
        f" ({', '.join(str(call) for call in calls[:3])})"
    )


def times(bench: Bench) -> Found:
    """Milliseconds per step, by the clock around the segments; local ones with the host to themselves."""
    run = Run(bench, LARGE)
    local_s, wire_s = [], []
    for step in range(2 + 2 * STEPS):
        run.flat.data.copy_(bench.gradient(run.numel, step))
        spent = {Local: 0.0, Wire: 0.0}
        for segment in run.segments:
            bench.progress(step, COMPUTING if isinstance(segment, Local) else COMMUNICATING)
            if isinstance(segment, Local):
                with bench.barrier.turn():
                    begin = time.monotonic()
                    segment.run()
                    spent[Local] += time.monotonic() - begin
            else:
                bench.barrier.meet()
                begin = time.monotonic()
                segment.run()
                spent[Wire] += time.monotonic() - begin
        if step >= 2:  # the first ones warm caches and connections
            local_s.append(spent[Local])
            wire_s.append(spent[Wire])
    return Found("", None, {"local_ms": median(local_s) * 1e3, "wire_ms": median(wire_s) * 1e3})
