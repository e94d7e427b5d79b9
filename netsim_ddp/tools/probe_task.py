"""A probe by the workers themselves, through their process group: where only that is shaped (the bucket), where ranks
are on hosts of their own, and for the collectives everywhere.

All ranks run the same script and meet out of band between its parts, so every rank knows every figure.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from netsim_ddp.communication.exchange import PeerExchange
from netsim_ddp.communication.framing import wire_bytes
from netsim_ddp.communication.segments import Group
from netsim_ddp.communication.shaped.group import shaped_group
from netsim_ddp.link.hosts import interface_counters
from netsim_ddp.link.probe.probe import (
    BULK_RUNS,
    BULK_S,
    IDLE_DELAYS,
    IDLE_S,
    WARM_UP,
    ideal_seconds,
    message_count,
    targets,
)
from netsim_ddp.link.spec import goodput
from netsim_ddp.ranks.process_group import join
from netsim_ddp.ranks.rank import Task
from netsim_ddp.results.probe import Bulk, Collective, Message, RoundTrip
from netsim_ddp.units import format_bytes

CHUNKS = 16  # messages of one bulk transfer, all posted at once
CHUNK_BYTES = (16 * 1024, 16 * 1024**2)
GUESS_BPS = 1e9  # a real network's rate before the first transfer
PINGS = 50
COLLECTIVE_SIZES = (1024, 16 * 1024, 256 * 1024, 4 * 1024**2, 16 * 1024**2)
COLLECTIVE_RUNS, COLLECTIVE_ROUNDS = 3, 5
COLLECTIVE_BUDGET_S = 0.5  # per call: a slow link is spared the large sizes

Pair = tuple[int, int]


class ProbeTask(Task):
    """``params``: ``sockets`` (leave out what plain sockets have measured already), ``collectives``, the ``pair`` that
    sends alone, and the ``sizes`` of its messages after idle."""

    def run(self) -> None:
        torch.set_num_threads(1)
        self.say("joining the process group")
        self.group, _ = join(self.channel, self.job, self.shared, torch.device("cpu"))
        real = self.job.mechanism == "host"
        now = self.job.spec.at_start
        self.spec = targets(self.job.spec, self.job.mechanism)
        self.windows = self.job.mechanism == "bucket" and self.job.spec.windows
        self.rate = GUESS_BPS if self.job.mechanism in ("host", "none") else float(now.slowest_bps)
        self.idle_s = max(IDLE_S, IDLE_DELAYS * now.delay_s)
        found: dict[str, Any] = {}
        self._count()
        if not self.job.params["sockets"]:
            first, ring = tuple(self.job.params["pair"]), list(self.job.spec.ring())
            if real:
                self.rate = max(1e5, min(row.median_bps for row in self._bulk([first], 1, 0.05)))
            found["alone"] = [row.model_dump() for row in self._bulk([first], BULK_RUNS, BULK_S)]
            found["together"] = [row.model_dump() for row in self._bulk(ring, BULK_RUNS, BULK_S)]
            trip = self._pings(first)
            found["round_trip"] = trip.model_dump()
            late = median(trip.samples_s) / 2 if real else None
            found["messages"] = [
                self._messages(first, size, late).model_dump() for size in self.job.params["sizes"]
            ]
        if self.job.params["collectives"]:
            found["collectives"] = [row.model_dump() for row in self._collectives()]
        self._count()
        self.channel.result(found)
        self.say("leaving")
        self.channel.gather("done")

    def _count(self) -> None:
        """Hand over what this rank's interface has counted, on a real network; elsewhere the command reads it."""
        self.channel.gather(
            "counted",
            asdict(interface_counters(self.job.endpoint.interface)) if self.job.mechanism == "host" else None,
        )

    def _bulk(self, pairs: Sequence[Pair], runs: int, seconds: float) -> list[Bulk]:
        """Goodput of each pair, all at once, over the time between a receiver's first and last message."""
        self.say(f"sending in bulk from {len(pairs)} rank{'s' * (len(pairs) > 1)}")
        size = min(max(int(self.rate / 8 * seconds / CHUNKS), CHUNK_BYTES[0]), CHUNK_BYTES[1])
        data, room = torch.zeros(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
        me = self.group.rank
        samples: list[list[float]] = []
        ceilings: list[list[float | None]] = []
        for _ in range(runs):
            works = [dist.irecv(room, a, tag=i) for a, b in pairs if b == me for i in range(CHUNKS)]
            self.channel.gather("bulk")
            expected = [self._expected_bps(size, a, b) for a, b in pairs if a == me]
            sends = [dist.isend(data, b, tag=i) for a, b in pairs if a == me for i in range(CHUNKS)]
            first = 0.0
            for work in works:
                _wait(work)
                first = first or time.monotonic()
            took = time.monotonic() - first
            for work in sends:
                _wait(work)
            bps = (CHUNKS - 1) * size * 8 / took if works else 0.0
            told = self.channel.gather("bulk done", [bps, *expected])
            samples.append([float(each[0]) for each in told])
            ceilings.append([each[1] if each[1:] else None for each in told])
        return [
            Bulk(
                sender=a,
                receiver=b,
                ceiling_bps=median(run[a] or 0.0 for run in ceilings) if self.spec else None,
                samples_bps=[run[b] for run in samples],
            )
            for a, b in pairs
        ]

    def _expected_bps(self, size: int, a: int, b: int) -> float | None:
        """What a bulk transfer that begins now gets if the host keeps up: what the line leaves after headers, less what
        TCP's window costs on a delayed bucket link."""
        if self.spec is None:
            return None
        line = goodput(self.spec.pair_bps(a, b))
        if not self.windows:
            return line
        there = shaped_group().expected_s([size] * CHUNKS, a, b)
        return min(line, (CHUNKS - 1) * size * 8 / (there[-1] - there[0]))

    def _pings(self, pair: Pair) -> RoundTrip:
        self.say("measuring the round trip")
        times: list[float] = []
        byte, back = torch.zeros(1, dtype=torch.uint8), torch.empty(1, dtype=torch.uint8)
        self.channel.gather("pings")
        for _ in range(WARM_UP + PINGS):
            if self.group.rank == pair[0]:
                answer = dist.irecv(back, pair[1])
                begin = time.monotonic()
                _wait(dist.isend(byte, pair[1]))
                _wait(answer)
                times.append(time.monotonic() - begin)
            elif self.group.rank == pair[1]:
                _wait(dist.irecv(back, pair[0]))
                _wait(dist.isend(byte, pair[0]))
        samples: list[float] = self.channel.gather("pings done", times[WARM_UP:])[pair[0]]
        return RoundTrip(asked_s=2 * self.spec.delay_s if self.spec else None, samples_s=samples)

    def _messages(self, pair: Pair, size: int, late: float | None) -> Message:
        """Messages after idle. Ranks of one host share a clock; between hosts an answer comes back, and ``late``
        seconds, half a round trip, are taken off."""
        self.say(f"sending messages of {format_bytes(size)} after idle")
        spec, me = self.spec, self.group.rank
        ideal = ideal_seconds(spec, pair, size) if spec else None
        expected: list[float] = []
        count = WARM_UP + message_count(ideal if spec else size * 8 / self.rate)
        data, byte = torch.zeros(size, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
        moments: list[float] = []
        self.channel.gather("messages")
        for _ in range(count):
            if me == pair[0]:
                time.sleep(self.idle_s)
                answer = dist.irecv(byte, pair[1])
                if self.windows:
                    expected += shaped_group().expected_s([size], *pair)
                begin = time.monotonic()
                _wait(dist.isend(data, pair[1]))
                _wait(answer)
                moments.append(begin if late is None else time.monotonic() - begin - late)
            elif me == pair[1]:
                _wait(dist.irecv(data, pair[0]))
                moments.append(time.monotonic())
                _wait(dist.isend(byte, pair[0]))
        told = self.channel.gather("messages done", moments)
        if spec and self.windows:
            ideal = median(self.channel.gather("messages expected", expected)[pair[0]][WARM_UP:])
        times = told[pair[0]]
        if late is None:
            times = [end - begin for begin, end in zip(told[pair[0]], told[pair[1]], strict=True)]
        return Message(
            sender=pair[0], receiver=pair[1], size_bytes=size, ideal_s=ideal, samples_s=times[WARM_UP:]
        )

    def _collectives(self) -> list[Collective]:
        """Each operation at each size that the link carries in reasonable time."""
        rows = []
        for build in (_AllReduce, _AllGather, _Exchange):
            for size in COLLECTIVE_SIZES:
                operation = build(self.group, size)
                ideal = wire_bytes([int(size * operation.bus_factor)]) * 8 / self.rate
                if ideal <= COLLECTIVE_BUDGET_S:
                    rows.append(self._collective(operation))
        return rows

    def _collective(self, operation: _Operation) -> Collective:
        """The slowest rank's time per call, calls following each other, as nccl-tests measures it."""
        self.say(f"timing {operation.name} of {operation.size} bytes")
        operation.run()
        wrong = sum(self.channel.gather("checked", operation.wrong()))
        samples = []
        for _ in range(COLLECTIVE_RUNS):
            self.channel.gather("collective")
            begin = time.monotonic()
            for _ in range(COLLECTIVE_ROUNDS):
                operation.run()
            took = (time.monotonic() - begin) / COLLECTIVE_ROUNDS
            samples.append(max(self.channel.gather("collective done", took)))
        return Collective(
            operation=operation.name,
            size_bytes=operation.size,
            count=operation.size // 4,
            type="float",
            samples_s=samples,
            bus_factor=operation.bus_factor,
            wrong=wrong,
        )


class _Operation:
    """One collective on float32 data whose result is known: element i of rank r holds r + i mod 7.

    ``gathered`` has room for every rank's ``each`` elements.
    """

    name: str

    def __init__(self, group: Group, size: int) -> None:
        self.ranks, self.each = group.world_size, max(1, size // 4 // group.world_size)
        self.size = 4 * self.each * self.ranks
        self.bus_factor = (self.ranks - 1) / self.ranks
        """What each rank's link carries each way, in units of ``size``."""
        self.data = self.pattern(group.rank, self.each)
        self.gathered = [torch.empty(self.each) for _ in range(self.ranks)]

    def pattern(self, rank: int, count: int) -> torch.Tensor:
        return torch.arange(count, dtype=torch.float32).remainder_(7).add_(rank)

    def run(self) -> None:
        raise NotImplementedError

    def wrong(self) -> int:
        """Returns how many elements are not what they should be after the first :meth:`run`."""
        return sum(
            int((part != self.pattern(rank, self.each)).sum()) for rank, part in enumerate(self.gathered)
        )


class _AllReduce(_Operation):
    name = "all_reduce"

    def __init__(self, group: Group, size: int) -> None:
        super().__init__(group, size)
        self.bus_factor *= 2
        self.data = self.pattern(group.rank, self.size // 4)

    def run(self) -> None:
        dist.all_reduce(self.data)

    def wrong(self) -> int:
        expected = sum(self.pattern(rank, self.size // 4) for rank in range(self.ranks))
        return int((self.data != expected).sum())


class _AllGather(_Operation):
    name = "all_gather"

    def run(self) -> None:
        dist.all_gather(self.gathered, self.data)


class _Exchange(_Operation):
    """The exchange of split-reduce: one message to every peer."""

    name = "exchange"

    def __init__(self, group: Group, size: int) -> None:
        super().__init__(group, size)
        self.gathered[group.rank].copy_(self.data)
        incoming = [part.view(torch.uint8) for part in self.gathered]
        self.wire = PeerExchange(
            "exchange", group, [self.data.view(torch.uint8)] * self.ranks, incoming, 4 * self.each
        )

    def run(self) -> None:
        self.wire.run()


def _wait(work: dist.Work | None) -> None:
    assert work is not None
    work.wait()
