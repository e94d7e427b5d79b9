"""Bytes at the interface for Gloo's messages, every header counted: arithmetic, without torch."""

from __future__ import annotations

from collections.abc import Iterable

from netsim_ddp.link.bucket.schedule import HEADER_BYTES, NOTICE_BYTES, message_bytes
from netsim_ddp.link.spec import SEGMENT_WIRE


def wire_bytes(messages: Iterable[int]) -> int:
    """Bytes that a rank sends for Gloo ``messages``, at the interface: each has a preamble and is cut into TCP
    segments. Before a message its sender says that it is ready, and so does its receiver: a rank that sends and
    receives as many messages sends two such notices for each.
    """
    return sum(message_bytes(size) + 2 * NOTICE_BYTES for size in messages)


def acknowledgement_bytes(received_wire_bytes: float, aggregate_bytes: int) -> float:
    """Bytes of pure acknowledgements that a rank sends for what it receives.

    The receiver acknowledges every second full segment, or every aggregated (GSO) packet where those are larger.
    """
    return received_wire_bytes / max(2 * SEGMENT_WIRE, aggregate_bytes) * HEADER_BYTES
