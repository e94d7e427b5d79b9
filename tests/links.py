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
