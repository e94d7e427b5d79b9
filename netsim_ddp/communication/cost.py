"""What a method's segments must send: payload, messages, and the least time that they take."""

from __future__ import annotations

from collections.abc import Iterable

from netsim_ddp.communication.framing import wire_bytes
from netsim_ddp.communication.segments import Segment, Wire


def payload_bytes(segments: Iterable[Segment]) -> int:
    """What a step hands to its wire operations."""
    return sum(segment.payload_bytes for segment in segments if isinstance(segment, Wire))


def messages(segments: Iterable[Segment]) -> list[int]:
    """The sizes of every message of a step, in order."""
    return [size for segment in segments if isinstance(segment, Wire) for size in segment.messages()]


def ideal_seconds(segments: Iterable[Segment], rate_bps: float) -> float:
    """Bytes / line rate: the least time that a step's messages take, one after another."""
    return wire_bytes(messages(segments)) * 8 / rate_bps
