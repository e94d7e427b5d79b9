"""The user-space token bucket: when would an operation be done if every rank had its own slow link?

Pure arithmetic, no torch and no clock: times are float seconds of one monotonic clock and are passed in.

A rank's link has a send side and a receive side. A message of w wire bytes from a to b keeps a's send side
busy for 8w/up_a and b's receive side for 8w/down_b; it has arrived when the slower of the two is done, the link's
delay after it left. A side does one thing at a time, in the order in which operations become
ready; a later message may use the gaps that earlier ones leave. An idle side saves nothing up: there is no
burst that would carry a small message for free.

What is sent to whom, and what waits for what, is :mod:`netsim_ddp.link.bucket.schedule`'s.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import MutableSequence, Sequence
from typing import NamedTuple

from netsim_ddp.link.bucket.rates import SECONDS, ConstantRate, CreditRate, ServiceRate, VaryingRate
from netsim_ddp.link.bucket.schedule import Operation, charges, schedule
from netsim_ddp.link.bucket.tcp import ACK_BYTES, Passage, Sender, TcpSettings
from netsim_ddp.link.spec import SEGMENT_WIRE, LinkSpec

_MEMO_ENTRIES = 256
_SPANS = 32  # separate busy spans that a side remembers; more are joined, as if the gap were taken
_INSTANT_S = 1e-9  # a gap too short for anything

Span = tuple[float, float]
_Walk = tuple[tuple[float, ...], tuple[tuple[Span, ...], ...]]
"""A completion relative to its start: when each member is done, and what its sides are busy with."""


class Completion(NamedTuple):
    """When each member is done (seconds, same clock as the calls) and what each was charged (bytes)."""

    deadlines: tuple[float, ...]
    tx_bytes: tuple[int, ...]
    rx_bytes: tuple[int, ...]

    @property
    def deadline(self) -> float:
        return max(self.deadlines)


def _occupy(busy: list[Span], earliest: float, work: float, rate: ServiceRate = SECONDS) -> float:
    """Take ``work`` of a side in the gaps from ``earliest`` on; the last moment taken."""
    if not busy or earliest > busy[-1][1]:
        last = rate.end(earliest, work)
        busy.append((earliest, last))
        return last
    start, end = busy[-1]
    if earliest >= start:
        last = rate.end(end, work)
        busy[-1] = (start, last)
        return last
    spans: list[Span] = []
    last = earliest
    for start, end in busy:
        if work > 0 and start - earliest > _INSTANT_S:
            room = rate.within(earliest, start)
            last = start if work > room else min(start, rate.end(earliest, work))
            spans.append((earliest, last))
            work = max(0.0, work - room)
        spans.append((start, end))
        earliest = max(earliest, end)
    if work > 0:
        last = rate.end(earliest, work)
        spans.append((earliest, last))
    busy[:] = spans[:1]
    for start, end in spans[1:]:
        if start - busy[-1][1] <= _INSTANT_S:
            busy[-1] = (busy[-1][0], max(end, busy[-1][1]))
        else:
            busy.append((start, end))
    return last


def _noise(number: int) -> float:
    """The ``number``-th of a fixed row of numbers spread evenly over -1 to 1 (splitmix64)."""
    mask = (1 << 64) - 1
    z = (number + 1) * 0x9E3779B97F4A7C15 & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return (z ^ z >> 31) / (1 << 63) - 1


class Way(NamedTuple):
    """The way from one rank to another: its two sides with what they are busy with, their rates, and the delay."""

    sends: list[Span]
    receives: list[Span]
    send_rate: ServiceRate
    receive_rate: ServiceRate
    delay: float

    def whole(self, ready: float, bits: float) -> tuple[float, float]:
        """When the last of ``bits`` has left, and when it has arrived."""
        sent = _occupy(self.sends, ready, bits, self.send_rate)
        # Concurrent messages share a sender's line, so the receiver's work begins before the
        # sender's turn for this one; a slow sender leaves the receiver room for others.
        received = _occupy(self.receives, ready + self.delay, bits, self.receive_rate)
        return sent, max(received, sent + self.delay)

    def piece(self, ready: float, bits: float) -> Passage:
        """The same, and when its first segment has arrived."""
        first = min(bits, SEGMENT_WIRE * 8)
        left, landed = self.whole(ready, first)
        if bits == first:
            return Passage(left, landed, landed)
        sent, arrived = self.whole(left, bits - first)
        return Passage(sent, landed, arrived)


class LinkClock:
    """Every rank's link in time; feed it operations in the order in which they become ready.

    A message leaves only when the receiver's readiness has travelled back to the sender, as Gloo does it; that costs
    one more delay where nothing else hides it. It takes what kernel TCP with the settings ``tcp`` (by default this
    host's) needs, on one connection for each two ranks (:mod:`netsim_ddp.link.bucket.tcp`). Without a delay there is no
    difference, and none is made; nor where ``spec.tcp`` is ``ideal``: it takes its bytes at the line's rate.

    ``memory`` holds ``cells(workers)`` floats, zero at first: the busy spans of every send side, then of
    every receive side; the credit that each side has spent, and until when that was counted; what TCP's sender
    of each ordered pair keeps, and what it kept when it last had nothing to send; how many random numbers were
    drawn, and when time began (see :meth:`begin`). It
    may be shared, so that several processes drive one clock (under a lock of theirs). Two clocks that are fed
    the same operations and calls give the same deadlines, bit for bit.
    """

    def __init__(
        self,
        spec: LinkSpec,
        memory: MutableSequence[float] | None = None,
        *,
        tcp: TcpSettings | None = None,
    ) -> None:
        self.spec = spec
        self.memory = [0.0] * self.cells(spec.workers) if memory is None else memory
        self._tcp = (tcp or TcpSettings.of_host()) if spec.windows else None
        ranks, stretches = range(spec.workers), list(spec.stretches())
        self._times = [at for at, _ in stretches]
        self._rates = [[*map(now.up, ranks), *map(now.down, ranks)] for _, now in stretches]
        """bit/s, by stretch of constant rates and by side."""
        self._steady = not (spec.varies or spec.jitter_s or self._tcp)
        """Whether the same operation always takes as long on an idle link."""
        self._memo: dict[tuple[Operation, tuple[int, ...]], _Walk] = {}

    @staticmethod
    def cells(workers: int) -> int:
        """Floats of memory that a clock needs."""
        return 2 * workers * (2 * _SPANS + 2) + workers * workers * 2 * Sender.FLOATS + 2

    def begin(self, now: float) -> None:
        """Time begins: the first rates hold until now, credit is full, and connections are new."""
        for cell in range(2 * self.spec.workers * 2 * _SPANS, len(self.memory) - 2):
            self.memory[cell] = 0.0
        self.memory[-1] = now

    def expected_s(self, sizes: Sequence[int], sender: int, receiver: int, now: float) -> list[float]:
        """How long after ``now`` messages of ``sizes`` bytes, sent one behind the other, would be there, as the clock
        stands: on an idle link, by a connection that has sent what it has sent. Nothing is taken."""
        clock = LinkClock(self.spec, list(self.memory), tcp=self._tcp)
        for side in range(2 * self.spec.workers):
            clock.memory[side * 2 * _SPANS + 1] = 0.0
        ready = (now, -math.inf)  # the receiver has long been waiting
        return [
            clock.complete(Operation("send", size), ready, (sender, receiver)).deadline - now
            for size in sizes
        ]

    def complete(
        self, op: Operation, calls: Sequence[float], members: Sequence[int] | None = None
    ) -> Completion:
        """Run ``op`` from the last call on, beside what already occupies the sides it needs.

        Args:
            calls: when each member called the operation (seconds).
            members: the ranks that take part, in the group's order; all of them by default.
        """
        ranks = tuple(range(self.spec.workers) if members is None else members)
        # A message's sender knows that the receiver is ready, who may have said so long before.
        start = max(calls[0], calls[1] + self.spec.delay_s) if op.kind == "send" else max(calls)
        numbers = (*ranks, *(self.spec.workers + r for r in ranks))
        cells = [side * 2 * _SPANS for side in numbers]
        sides = [self._load(cell, start) for cell in cells]
        idle = self._steady and not any(sides)
        walk = self._memo.get((op, ranks)) if idle else None
        if walk is None:
            service_rates = [self._service_rate(side, start) for side in numbers]
            walk = self._walk(op, ranks, sides, service_rates, start)
            for side, rate in zip(numbers, service_rates, strict=True):
                if isinstance(rate, CreditRate):
                    cell = self._credit_cell(side)
                    self.memory[cell], self.memory[cell + 1] = rate.spent, start + rate.since
            if idle:
                # Training repeats the same few operations on an idle link: one walk serves them all.
                if len(self._memo) >= _MEMO_ENTRIES:
                    self._memo.clear()
                self._memo[op, ranks] = walk
        done, busy = walk
        for cell, spans in zip(cells, busy, strict=True):
            self._store(cell, start, spans)
        return Completion(tuple(start + each for each in done), *charges(op, len(ranks)))

    def _service_rate(self, side: int, start: float) -> ServiceRate:
        """How fast a side works, in times relative to ``start`` and work in bits."""
        rates = [stretch[side] for stretch in self._rates]
        if self.spec.peak_bps is not None:
            cell = self._credit_cell(side)
            spent, since = self.memory[cell], self.memory[cell + 1]
            peak, credit = max(rates[0], self.spec.peak_bps), (self.spec.credit_bytes or 0) * 8
            return CreditRate(rates[0], peak, credit, spent, since - start)
        if self.spec.varies:
            return VaryingRate(self._times, rates, self.spec.period_s, start - (self.memory[-1] or math.inf))
        return ConstantRate(rates[0])

    def _credit_cell(self, side: int) -> int:
        return 2 * self.spec.workers * 2 * _SPANS + 2 * side

    def _sender_cell(self, sender: int, receiver: int) -> int:
        return (
            2 * self.spec.workers * (2 * _SPANS + 2)
            + (sender * self.spec.workers + receiver) * 2 * Sender.FLOATS
        )

    def _sender(self, sender: int, receiver: int, start: float, *, beside: bool) -> Sender:
        """TCP of the connection between two ranks, as far as the first one sends, in times relative to ``start``.

        Args:
            beside: what is sent does not queue behind what the connection still has to send at ``start``: the messages
                of two exchanges take turns on it. Each of them then finds the window that was there before both.
        """
        assert self._tcp is not None
        cell, delay = self._sender_cell(sender, receiver), self.spec.delay_s
        quiet = cell + Sender.FLOATS
        if self.memory[cell + Sender.LAST] <= start:
            self.memory[quiet : quiet + Sender.FLOATS] = self.memory[cell:quiet]
        elif beside:
            cell = quiet
        return Sender(
            self._tcp,
            self.memory[cell : cell + Sender.FLOATS],
            start,
            back_s=delay,
            trip_s=2 * delay,
            ack_s=ACK_BYTES * 8 / min(self._rates[0][receiver], self._rates[0][self.spec.workers + sender]),
        )

    def _delay(self) -> float:
        """How long the next message is on its way."""
        if not self.spec.jitter_s:
            return self.spec.delay_s
        self.memory[-2] += 1
        return self.spec.delay_s + self.spec.jitter_s * _noise(int(self.memory[-2]) - 1)

    def _load(self, cell: int, start: float) -> list[Span]:
        """A side's busy spans after ``start``, relative to it. A span that ends at 0 ends the list."""
        spans: list[Span] = []
        for i in range(cell, cell + 2 * _SPANS, 2):
            end = self.memory[i + 1]
            if end == 0:
                break
            if end > start:
                spans.append((self.memory[i] - start, end - start))
        return spans

    def _store(self, cell: int, start: float, spans: Sequence[Span]) -> None:
        spare = len(spans) - _SPANS
        if spare > 0:
            spans = ((spans[0][0], spans[spare][1]), *spans[spare + 1 :])
        for begin, end in spans:
            self.memory[cell], self.memory[cell + 1] = start + begin, start + end
            cell += 2
        if len(spans) < _SPANS:
            self.memory[cell] = self.memory[cell + 1] = 0.0

    def _walk(
        self,
        op: Operation,
        ranks: Sequence[int],
        sides: list[list[Span]],
        service_rates: Sequence[ServiceRate],
        start: float,
    ) -> _Walk:
        """The schedule of ``op`` on sides (all send sides, then all receive sides) with busy spans; its times begin at
        0, which is ``start`` on the caller's clock."""
        size, message = len(ranks), op.kind == "send"
        landed: dict[tuple[int, int], float] = {}
        done = [0.0] * size
        senders: dict[tuple[int, int], Sender] = {}
        for phase in schedule(op, size):
            issue = list(done)  # Gloo drains its pipeline between phases
            received: list[list[float]] = []
            for i, messages in enumerate(phase.rounds):
                if i >= phase.window:
                    issue = list(map(max, issue, received[i - phase.window]))
                got = [0.0] * size
                for a, b, wire in messages:
                    ready = issue[a] if message else max(issue[a], issue[b] + self.spec.delay_s)
                    line = Way(
                        sides[a], sides[size + b], service_rates[a], service_rates[size + b], self._delay()
                    )
                    if self._tcp is not None:
                        if (a, b) not in senders:
                            senders[a, b] = self._sender(ranks[a], ranks[b], start, beside=not message)
                        sent, _, arrived = senders[a, b].send(ready, wire, line.piece)
                    else:
                        sent, arrived = line.whole(ready, wire * 8)
                    # A stream delivers in order, whatever the jitter.
                    arrived = landed[a, b] = max(arrived, landed.get((a, b), 0.0))
                    got[b] = max(got[b], arrived)
                    done[a], done[b] = max(done[a], sent), max(done[b], arrived)
                received.append(got)
        for (a, b), sender in senders.items():
            cell, state = self._sender_cell(ranks[a], ranks[b]), sender.state(start)
            if state[Sender.LAST] >= self.memory[cell + Sender.LAST]:
                self.memory[cell : cell + Sender.FLOATS] = array("d", state)
        return tuple(done), tuple(map(tuple, sides))
