"""What a method must send: payload, messages, and bytes at the interface with every header counted."""

from __future__ import annotations

from collections.abc import Iterable

from netsim_ddp.communication.segments import Segment, Wire
from netsim_ddp.link.spec import SEGMENT_PAYLOAD, SEGMENT_WIRE

HEADER_BYTES = SEGMENT_WIRE - SEGMENT_PAYLOAD  # Ethernet 14 + IPv4 20 + TCP 32
GLOO_PREAMBLE_BYTES = 48


def wire_bytes(messages: Iterable[int]) -> int:
    """Bytes that a rank sends for Gloo ``messages``, at the interface: each has a preamble and is cut into TCP
    segments. Before a message its sender says that it is ready, and so does its receiver: a rank that sends and
    receives as many messages sends two such notices for each.
    """
    return sum(_message_bytes(size) for size in messages)


def _message_bytes(size: int) -> int:
    notice = GLOO_PREAMBLE_BYTES + HEADER_BYTES
    size += GLOO_PREAMBLE_BYTES
    return size + HEADER_BYTES * -(-size // SEGMENT_PAYLOAD) + 2 * notice


def acknowledgement_bytes(received_wire_bytes: float, aggregate_bytes: int) -> float:
    """Bytes of pure acknowledgements that a rank sends for what it receives.

    The receiver acknowledges every second full segment, or every aggregated (GSO) packet where those are larger.
    """
    return received_wire_bytes / max(2 * SEGMENT_WIRE, aggregate_bytes) * HEADER_BYTES


def payload_bytes(segments: Iterable[Segment]) -> int:
    """What a step hands to its wire operations."""
    return sum(segment.payload_bytes for segment in segments if isinstance(segment, Wire))


def messages(segments: Iterable[Segment]) -> list[int]:
    """The sizes of every message of a step, in order."""
    return [size for segment in segments if isinstance(segment, Wire) for size in segment.messages()]


def ideal_seconds(segments: Iterable[Segment], rate_bps: int) -> float:
    """Bytes / line rate: the least time that a step's messages take, one after another."""
    return wire_bytes(messages(segments)) * 8 / rate_bps
