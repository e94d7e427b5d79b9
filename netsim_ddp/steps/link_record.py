"""What a file says of a link."""

from __future__ import annotations

from dataclasses import asdict

from netsim_ddp.link.base import Link
from netsim_ddp.link.bucket.tcp import TcpSettings
from netsim_ddp.link.probe.probe import ProbeReport
from netsim_ddp.link.tc.link import TcLink
from netsim_ddp.results.record import LinkRecord, TcpRecord


def link_record(link: Link, measured: ProbeReport | None) -> LinkRecord:
    """What ``link`` was asked for, configured to and, where it was probed, measured at."""
    shaped = link.mechanism in ("tc", "bucket")
    spec = link.spec.at_start
    rate = spec.slowest_bps if shaped else None
    tc = link if isinstance(link, TcLink) else None
    windows = link.mechanism == "bucket" and spec.delay_s > 0
    host = TcpSettings.of_host() if windows and spec.tcp == "linux" else None
    return LinkRecord(
        mechanism=link.mechanism,
        requested_bps=rate,
        configured_bps=rate,
        measured_bps=measured.alone_bps if measured else None,
        together_bps=measured.together_bps if measured else None,
        ceiling_bps=spec.ceiling_bps if shaped else None,
        congestion=tc.congestion if tc else None,
        tcp="linux" if host else "ideal" if windows else None,
        tcp_host=TcpRecord(**asdict(host)) if host else None,
        shape=link.spec.describe() if shaped else None,
        credit_bytes=tc.credit_bytes if tc else None,
        queue_s=tc.shapes.longest_wait_s if tc else None,
        delay_s=spec.delay_s,
        delay_by=tc.delay_by if tc else None,
        varies=link.spec.varies,
    )
