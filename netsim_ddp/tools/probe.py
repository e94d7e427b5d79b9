"""``netsim probe``: make the link, measure it thoroughly, judge it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from statistics import median
from typing import Any

from netsim_ddp import __version__
from netsim_ddp.errors import UsageError
from netsim_ddp.link.base import Counters, Link
from netsim_ddp.link.mechanisms import choose
from netsim_ddp.link.probe.probe import MESSAGE_SIZES, make_room, measure
from netsim_ddp.ranks.hosts import Hub
from netsim_ddp.ranks.jobs import jobs_for
from netsim_ddp.ranks.launcher import Launcher
from netsim_ddp.results.fields import Tool
from netsim_ddp.results.files import now_utc
from netsim_ddp.results.probe import Probe, host_limited, judge, slowest
from netsim_ddp.scenario import Scenario, Settings
from netsim_ddp.steps.environment import environment
from netsim_ddp.steps.experiment import Event, Report
from netsim_ddp.steps.link_record import link_record

TASK = "netsim_ddp.tools.probe_task:ProbeTask"


def probe_link(
    scenario: Scenario, *, collectives: bool, command: Sequence[str], report: Report, hosts: Hub | None = None
) -> Probe:
    """Measure the link that ``scenario`` describes and answer everything that was found, misses included.

    Args:
        collectives: measure those too, by real workers.
        hosts: the real hosts whose network is measured, instead of a link of our own.

    Raises:
        UsageError: a single worker, or a link that changes while it is measured.
        EnvironmentFault: the link cannot be made, or a process of the probe failed.
    """
    if scenario.workers < 2:
        raise UsageError(
            "a probe needs two workers or more: one has nobody to send to", hint="write --workers 2"
        )

    spec = scenario.link_spec()
    if hosts is None and spec.varies:
        raise UsageError(
            f"a probe measures a link that stays as it is, and this one changes: {spec.describe()}",
            hint=f"probe one of its rates, its first with --bandwidth {spec.at_start.slowest_bps}bps",
        )

    def note(text: str) -> None:
        report(Event("note", text))

    if hosts is not None:
        note("waiting for the other ranks' commands")
        with hosts:
            found = _empty(scenario, hosts.link, command)
            note("probing: by the workers")
            _take(found, hosts, hosts.link, scenario, collectives)
        return _judged(found, scenario)
    with choose(spec, scenario.link, note) as link:
        if link.mechanism == "tc":
            note("probing the link")
            make_room(link, lambda text: report(Event("warning", text)))  # as before every run
        found = _empty(scenario, link, command)
        sockets = link.mechanism != "bucket"
        before = link.counters()
        if sockets:
            measured = measure(link, lambda what: note(f"probing: {what}"), message_sizes(scenario))
            found.alone, found.together = measured.alone, measured.together
            found.messages, found.round_trip = measured.messages, measured.round_trip
        if collectives or not sockets:
            # Ranks measure through their process group; plain sockets' figures, where there are some, stay.
            note("importing torch once for all workers")
            with Launcher(link, Settings(threads=1, timeout_s=scenario.timeout_s)) as launcher:
                note(f"probing: {'collectives' if found.alone else 'by the workers'}")
                _take(found, launcher, link, scenario.resolved(), collectives)
        _count(found, before, link.counters())
    return _judged(found, scenario)


def message_sizes(scenario: Scenario) -> Sequence[int]:
    """The sizes of the messages that are tried, bytes, ascending. With a recording they are those that its buckets make
    in a ring all-reduce, each one rank's share of a bucket: the smallest, the largest, and some between."""
    if scenario.recording is None:
        return MESSAGE_SIZES
    buckets = scenario.recording.open().buckets
    sizes = sorted({max(1, bucket.bytes // scenario.workers) for bucket in buckets})
    count = min(len(sizes), len(MESSAGE_SIZES))
    return [sizes[number * (len(sizes) - 1) // max(count - 1, 1)] for number in range(count)]


def _empty(scenario: Scenario, link: Link, command: Sequence[str]) -> Probe:
    return Probe(
        tool=Tool(version=__version__),
        created_utc=now_utc(),
        environment=environment(),
        command=shlex.join(command),
        workers=scenario.workers,
        link=link_record(link, None),
    )


def _take(found: Probe, launcher: Launcher, link: Link, scenario: Scenario, collectives: bool) -> None:
    pair = launcher.pair if isinstance(launcher, Hub) else link.spec.slowest_pair
    params = {
        "sockets": bool(found.alone),
        "collectives": collectives,
        "pair": pair,
        "sizes": message_sizes(scenario),
    }
    counted: list[list[Counters]] = []

    def gathered(point: str, values: list[Any]) -> None:
        if point == "counted" and isinstance(launcher, Hub):
            counted.append(launcher.counters(values))

    record = launcher.run(jobs_for(link, scenario, TASK, params), gathered)[0]
    if counted:
        _count(found, *counted)
    for name, value in Probe.model_validate({**found.model_dump(), **record}):
        if name in record:
            setattr(found, name, value)
    found.warnings += [
        f"{row.operation} of {row.size_bytes} bytes: {row.wrong} elements are wrong"
        for row in found.collectives
        if row.wrong
    ]


def _count(found: Probe, before: Sequence[Counters] | None, after: Sequence[Counters] | None) -> None:
    if before is not None and after is not None:
        counted = [new.since(old) for old, new in zip(before, after, strict=True)]
        found.link.drops = sum(each.drops for each in counted)
        found.link.retransmits = sum(each.retransmits for each in counted)


def _judged(found: Probe, scenario: Scenario) -> Probe:
    """``found`` with what follows from its figures."""
    if (row := slowest(found.alone)) is not None:
        found.link.measured_bps = median(row.samples_bps)
    found.link.host_limited = host_limited(found)
    spec = scenario.link_spec()
    found.off_target = judge(found, lossless=spec.loss == 0 and spec.queue_s is None, jitter_s=spec.jitter_s)
    return found
