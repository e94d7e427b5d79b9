"""What a probe found, and whether it is what the link was asked for.

A probe's file is one JSON document like a result's: SI units in the key names, every raw sample kept. ``judge``
holds the figures against the targets; it needs nothing but the record.
"""

from __future__ import annotations

from math import log2
from statistics import median
from typing import Annotated, Literal

from pydantic import Field

from netsim_ddp.results.fields import Strict, Tool
from netsim_ddp.results.record import LinkRecord
from netsim_ddp.units import format_bytes, format_duration, format_rate

BULK_TOLERANCE = 0.01
HOST_TOLERANCE = 0.10
MESSAGE_TOLERANCE, MESSAGE_FLOOR_S = 0.03, 0.1e-3
PACKET_PAYLOAD = 1448  # bytes: what a bucket lets through at once, however slow it is
ROUND_TRIP_TOLERANCE, ROUND_TRIP_FLOOR_S = 0.03, 0.3e-3


Samples = Annotated[list[Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)]


class Bulk(Strict):
    """Goodput of one sender and receiver; several at once stand in one list. ``ceiling_bps``: the TCP goodput that
    the slower of the two sides leaves after headers; None on a network of unknown rate."""

    sender: int
    receiver: int
    ceiling_bps: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    samples_bps: Samples

    @property
    def median_bps(self) -> float:
        return median(self.samples_bps)


class Message(Strict):
    """Times of one message after idle, from the call to the last byte's arrival. ``ideal_s``: its bytes with headers
    at the line's rate, and the line's delay."""

    sender: int
    receiver: int
    size_bytes: int
    ideal_s: float | None
    samples_s: list[float]

    @property
    def median_s(self) -> float:
        return median(self.samples_s)


class RoundTrip(Strict):
    """One byte there and back. ``asked_s``: the delay that the link was asked for, both ways."""

    asked_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    samples_s: Samples

    @property
    def median_s(self) -> float:
        return median(self.samples_s)


class Collective(Strict):
    """One line of the table that nccl-tests prints; ``wrong`` counts elements that are not what they must be.

    ``algbw_bps`` is size / time; ``busbw_bps`` is what each rank's link carried each way, to hold against its rate.
    """

    operation: str
    size_bytes: int
    count: int
    type: str
    samples_s: list[float]
    bus_factor: float
    wrong: int

    @property
    def time_s(self) -> float:
        return median(self.samples_s)

    @property
    def algbw_bps(self) -> float:
        return self.size_bytes * 8 / self.time_s

    @property
    def busbw_bps(self) -> float:
        return self.algbw_bps * self.bus_factor


class Probe(Strict):
    """A whole probe. ``alone``: pairs that sent one after the other; ``together``: every rank to its successor, all
    at once."""

    schema_version: Literal[1] = 1
    kind: Literal["probe"] = "probe"
    tool: Tool
    created_utc: str
    environment: dict[str, object]
    command: str
    workers: int
    link: LinkRecord
    alone: list[Bulk] = Field(default_factory=list)
    together: list[Bulk] = Field(default_factory=list)
    messages: list[Message] = Field(default_factory=list)
    round_trip: RoundTrip | None = None
    collectives: list[Collective] = Field(default_factory=list)
    off_target: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)


def slowest(rows: list[Bulk]) -> Bulk | None:
    """The pair that is furthest below its ceiling; where none is known, the one with the lowest goodput."""
    return min(rows, key=lambda row: row.median_bps / (row.ceiling_bps or 1.0), default=None)


def host_limited(probe: Probe) -> bool:
    """Whether this host cannot carry all ranks' links at their full rate at once."""
    row = slowest(probe.together)
    return bool(row and row.ceiling_bps and row.median_bps < (1 - HOST_TOLERANCE) * row.ceiling_bps)


def judge(probe: Probe, *, lossless: bool = True, jitter_s: float = 0.0) -> list[str]:
    """Every figure that is off its target, one clause each, by how much; ``jitter_s`` is how much that the link was
    asked for.

    A message is on target within max(3%, 0.1 ms) of the line's time. It may be later by this host's own way, half a
    round trip less the delay that was asked for; and earlier, on tc, by one packet, which the kernel
    lets no bucket hold.

    That all ranks at once get less than one alone says what the host carries and is no fault of the link: see
    :func:`host_limited`.
    """
    found = []
    for row in probe.alone:
        if row.ceiling_bps and abs(row.median_bps / row.ceiling_bps - 1) > BULK_TOLERANCE:
            found.append(
                f"bulk from rank {row.sender} to {row.receiver} gets {format_rate(row.median_bps)}, "
                f"{_off(row.median_bps, row.ceiling_bps)} the ceiling of {format_rate(row.ceiling_bps)}"
            )
    first = slowest(probe.alone)
    packet_s = PACKET_PAYLOAD * 8 / first.ceiling_bps if first is not None and first.ceiling_bps else 0.0
    for message in probe.messages:
        ideal = message.ideal_s
        if ideal is None or (message.median_s > ideal and not lossless):
            continue  # what TCP sends again comes late
        off_s = message.median_s - ideal
        if off_s > 0:
            own_s = _slow_start_s(message.size_bytes, probe.link.delay_s) + _host_way_s(probe.round_trip)
        else:
            own_s = packet_s if probe.link.mechanism == "tc" else 0.0
        if abs(off_s) > max(MESSAGE_TOLERANCE * ideal, MESSAGE_FLOOR_S) + jitter_s + own_s:
            found.append(
                f"a message of {format_bytes(message.size_bytes)} after idle takes "
                f"{format_duration(message.median_s)}, {_off(message.median_s, ideal)} the line's "
                f"{format_duration(ideal)}"
            )
    trip = probe.round_trip
    if trip is not None and trip.asked_s is not None:
        error = trip.median_s - trip.asked_s
        if abs(error) > max(ROUND_TRIP_FLOOR_S, ROUND_TRIP_TOLERANCE * trip.asked_s) + 2 * jitter_s:
            found.append(
                f"the round trip takes {format_duration(trip.median_s)}, asked for "
                f"{format_duration(trip.asked_s)}"
            )
    if lossless and probe.link.drops:
        found.append(f"the link dropped {probe.link.drops} packets")
    return found


def _slow_start_s(size_bytes: int, delay_s: float) -> float:
    """How long TCP at most waits for acknowledgements, when it sends ``size_bytes`` from its first window (RFC 6928: 10
    segments) and doubles that every round trip."""
    return 2 * delay_s * int(log2(size_bytes / (10 * PACKET_PAYLOAD) + 1))


def _host_way_s(trip: RoundTrip | None) -> float:
    return 0.0 if trip is None else max(0.0, trip.median_s - (trip.asked_s or 0.0)) / 2


def _off(value: float, target: float) -> str:
    error = value / target - 1
    return f"{abs(error):.1%} {'below' if error < 0 else 'above'}"
