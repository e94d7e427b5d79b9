"""The links of tests."""

from __future__ import annotations

from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.link.tc.link import TcLink


def usable() -> TcLink:
    """Returns the smallest real link, whose making raises where tc does not work: no other test of that is honest."""
    return TcLink(LinkSpec(workers=1, rate_bps=10**9))
