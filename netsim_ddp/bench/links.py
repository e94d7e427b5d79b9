"""From a scenario to a link, and from a link to what a file says of it."""

from __future__ import annotations

from collections.abc import Callable

from netsim_ddp.errors import LinkUnavailable
from netsim_ddp.link.base import HostLink, Link, LinkSpec
from netsim_ddp.link.tc import TcLink
from netsim_ddp.results.record import LinkRecord
from netsim_ddp.scenario import Scenario


def choose_link(scenario: Scenario, note: Callable[[str], None]) -> Link:
    """The link that was asked for; with ``auto`` tc where a real one can be made, else the bucket."""
    spec = LinkSpec(scenario.workers, scenario.bandwidth_bps)
    if scenario.link == "tc":
        return TcLink(spec)
    if scenario.link != "auto":
        return HostLink(spec, scenario.link)
    try:
        with TcLink(LinkSpec(1, spec.rate_bps)):
            note("link: tc, because namespaces and tbf work here")
            return TcLink(spec)
    except LinkUnavailable as error:
        note(f"link: bucket, because {error.message}")
        return HostLink(spec, "bucket")


def link_record(link: Link, measured_bps: float | None) -> LinkRecord:
    """What ``link`` was asked for and configured to."""
    shaped = link.mechanism != "none"
    rate = link.spec.rate_bps if shaped else None
    return LinkRecord(
        mechanism=link.mechanism,
        requested_bps=rate,
        configured_bps=rate,
        measured_bps=measured_bps,
        ceiling_bps=link.spec.ceiling_bps if shaped else None,
        congestion=link.congestion if isinstance(link, TcLink) else None,
    )
