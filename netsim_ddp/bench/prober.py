"""``netsim probe``: make the link, measure it thoroughly, judge it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from statistics import median

from netsim_ddp import __version__
from netsim_ddp.bench.links import link_record
from netsim_ddp.bench.runner import Event, Report, environment
from netsim_ddp.errors import UsageError
from netsim_ddp.link.base import Link
from netsim_ddp.link.choose import choose
from netsim_ddp.link.probe import measure
from netsim_ddp.results.probe import Probe, host_limited, judge, slowest
from netsim_ddp.results.record import Tool, now_utc
from netsim_ddp.scenario import Scenario


def probe_link(scenario: Scenario, *, command: Sequence[str], report: Report) -> Probe:
    """Measure the link that ``scenario`` describes and answer everything that was found, misses included.

    Raises:
        UsageError: a single worker.
        EnvironmentFault: the link cannot be made, or a process of the probe failed.
    """
    if scenario.workers < 2:
        raise UsageError(
            "a probe needs two workers or more: one has nobody to send to", hint="write --workers 2"
        )

    def note(text: str) -> None:
        report(Event("note", text))

    with choose(scenario.link_spec(), scenario.link, note) as link:
        found = Probe(
            tool=Tool(version=__version__),
            created_utc=now_utc(),
            environment=environment(),
            command=shlex.join(command),
            workers=scenario.workers,
            link=link_record(link, None),
        )
        _by_sockets(found, link, note)
    return _judged(found)


def _by_sockets(found: Probe, link: Link, note: Callable[[str], None]) -> None:
    before = link.counters()
    measured = measure(link, lambda what: note(f"probing: {what}"))
    after = link.counters()
    found.alone, found.together = measured.alone, measured.together
    found.messages, found.round_trip = measured.messages, measured.round_trip
    if before is not None and after is not None:
        found.link.drops = sum(new.drops - old.drops for old, new in zip(before, after, strict=True))
        found.link.retransmits = sum(
            new.retransmits - old.retransmits for old, new in zip(before, after, strict=True)
        )


def _judged(found: Probe) -> Probe:
    """``found`` with what follows from its figures."""
    if (row := slowest(found.alone)) is not None:
        found.link.measured_bps = median(row.samples_bps)
    found.link.host_limited = host_limited(found)
    found.off_target = judge(found)
    return found
