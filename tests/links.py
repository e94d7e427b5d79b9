"""The links of tests."""

from __future__ import annotations

from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.link.tc.link import TcLink


def usable() -> TcLink:
    """Returns the smallest real link, whose making raises where tc does not work: no other test of that is honest."""
    return TcLink(LinkSpec(workers=1, rate_bps=10**9))


def ideal_link(workers: int, rate_bps: int, *, delay_s: float = 0.0) -> LinkSpec:
    """Returns a link on which a message takes its bytes at the line's rate and the delay, without TCP."""
    return LinkSpec(workers, rate_bps, delay_s=delay_s, tcp="ideal")


PACKET = 1514
"""Bytes of a full packet at the interface."""


def is_sent(counted: float, expected: float, retransmits: int, *, within: float = 0.02) -> bool:
    """Whether ``counted`` bytes at an interface are ``expected`` ones and what TCP sent again: on a host that wakes up
    late, packets that were not lost."""
    return (1 - within) * expected <= counted <= (1 + within) * expected + PACKET * retransmits
