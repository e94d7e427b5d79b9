"""From a measurement of a real network to a link profile: our own probe, ``iperf3 -J``, or the output of nccl-tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import yaml
from pydantic import ValidationError

from netsim_ddp import reading
from netsim_ddp.errors import UsageError
from netsim_ddp.link.measured.iperf3 import documents, from_iperf3
from netsim_ddp.link.measured.measurement import Goodput, Measurement
from netsim_ddp.link.measured.nccl_tests import from_report, from_table, is_report, looks_like
from netsim_ddp.reading import one_line
from netsim_ddp.results.probe import Probe, slowest

_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_PREFIXES = re.compile(
    r"""(?:\s*(?:
        \[[^\[\]\s]*\d+,\s?\d+\](?:<std\w+>):\ ?                                    # [1,0]<stdout>:
      | \[\d+\]\ (?=\s*[{}\[\]"#\d])                                            # [0]
      | \[[\w.-]+(?:/[\w.-]+)+\]\ ?                                             # [pod/worker-0/nccl]
      | \d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)\ ?(?:std(?:out|err)\ [FP]\ )?
      | \d{1,5}:\ ?(?=[\s{}\[\]"#\d]|$)                                         # 0:
      | [A-Za-z][\w.-]*\s*\|\ ?                                                 # worker-0  |
      | [A-Za-z][\w.-]*:\ (?=\s*[{}\[\]"#\d])                                   # host0:
    ))+""",
    re.VERBOSE,
)
_KNOWN = "name the output of netsim probe --json, iperf3 -J or nccl-tests"
_OTHERS = {
    r"^\[ *ID\] +Interval +Transfer": ("the text of iperf3", "repeat the test with -J"),
    r"^iperf3: error": ("a message of iperf3", "repeat the test with -J"),
    r"^Client connecting to .*port|^Server listening on .*port": (
        "the text of iperf",
        "repeat it with iperf3 -J",
    ),
    r"^PING |bytes from .*icmp_seq": ("the output of ping", "measure the rate with iperf3 -J"),
    r"^# OSU MPI": ("the output of OSU's micro-benchmarks", "measure with nccl-tests or iperf3 -J"),
    r"(?:RDMA|Send|SEND)[_ ]?\w* ?(?:BW|Latency) Test": (
        "the output of perftest",
        "measure TCP with iperf3 -J",
    ),
    r"^(?:MIGRATED )?(?:TCP|OMNI|UDP)[ _]\w+ TEST": ("the output of netperf", "measure with iperf3 -J"),
    r"^(?:about|bandwidth|delay|source):": ("a link profile already", "name it with --link-profile"),
}
"""What people have instead: a pattern, what it is, and what to do."""


def write_profile(measurement: Measurement, path: Path) -> None:
    """Write ``measurement`` as a file that ``--link-profile`` reads.

    Raises:
        UsageError: it cannot be written, or is no link.
    """
    try:
        path.write_text(yaml.safe_dump(measurement.profile(), sort_keys=False, width=100), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def read_measurement(path: Path) -> Measurement:
    """Read a measurement, whichever of the known kinds it is.

    Raises:
        UsageError: unreadable, or of no known kind, or a failed test.
    """
    written = reading.read_text(path, hint=_KNOWN)
    text = without_prefixes(written)
    source = one_line(str(path))
    if not text.strip():
        raise UsageError(f"{source} is empty", hint=_KNOWN)
    if looks_like(text):
        return from_table(text, source)
    try:
        found = documents(text)
    except ValueError as error:
        raise UsageError(
            f"{source} is not JSON: {one_line(str(error))}; is it cut off?", hint=_KNOWN
        ) from None
    if not found:
        raise _no_measurement(written, text, source)
    first = found[0]
    is_probe = isinstance(first, dict) and first.get("kind") == "probe"
    if (is_report(first) or is_probe) and any(each != first for each in found):
        raise UsageError(
            f"{source} holds {len(found)} JSON documents",
            hint="write each measurement into a file of its own",
        )
    if is_probe:
        return from_probe(_probe(first, source))
    return from_report(first, source) if is_report(first) else from_iperf3(found, source)


def _no_measurement(written: str, text: str, source: str) -> UsageError:
    """What the file is instead: as it was ``written``, or ``text``, without a launcher's prefixes."""
    for pattern, (what, instead) in _OTHERS.items():
        if any(re.search(pattern, each, re.MULTILINE) for each in (written, text)):
            return UsageError(f"{source} is {what}", hint=instead)
    if text.lstrip()[:1] == "[":
        return UsageError(f"{source} is a list, not one test", hint=_KNOWN)
    if reading.is_web_page(text):
        return UsageError(f"{source} is a web page", hint=_KNOWN)
    return UsageError(f"{source} is no measurement: no row of nccl-tests, and no JSON", hint=_KNOWN)


def _probe(data: object, source: str) -> Probe:
    try:
        return Probe.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = one_line(".".join(map(str, first["loc"])))
        raise UsageError(f"{source}: {where}: {one_line(first['msg'])}", hint=_KNOWN) from None


def from_probe(probe: Probe) -> Measurement:
    """What a probe found: of all pairs alone the slowest, since a collective goes at its pace. Its round trips are
    single ones on an idle line, so that half of their spread is the line's jitter.

    Raises:
        UsageError: it measured no rate.
    """
    row = slowest(probe.alone)
    if row is None:
        raise UsageError(
            "the probe measured no bulk goodput", hint="run netsim probe with two workers or more"
        )
    if min(row.samples_bps) <= 0:
        raise UsageError("the probe's bulk transfer moved nothing", hint="run netsim probe again")
    trips = probe.round_trip.samples_s if probe.round_trip else []
    return Measurement(
        Goodput.of(row.samples_bps),
        f"netsim probe, {one_line(probe.created_utc, 60)}",
        delay_s=median(trips) / 2 if trips else None,
        jitter_s=_spread(trips) / 2 if trips else None,
    )


def _spread(samples: Sequence[float]) -> float:
    """Half of the range that nine of ten samples lie in."""
    ordered, cut = sorted(samples), len(samples) // 20
    return (ordered[-1 - cut] - ordered[cut]) / 2


def without_prefixes(text: str) -> str:
    """Returns ``text`` without what launchers and log collectors put before every line of a program's output.

    mpirun and mpiexec (``--tag-output``, ``-l``), srun ``-l``, kubectl and docker compose, the timestamps of Kubernetes
    and of a workflow's log, and a terminal's colours. No line of JSON and no row of a table begins like any of them.
    Lines keep their numbers.
    """
    return "\n".join(
        line[match.end() :] if (match := _PREFIXES.match(line)) else line
        for line in _COLOUR.sub("", text).split("\n")
    )
