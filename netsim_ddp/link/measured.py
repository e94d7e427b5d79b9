"""From a measurement of a real network to a link profile: our own probe, ``iperf3 -J``, or the output of nccl-tests.

What they measure is goodput. The profile's rate is the line rate whose TCP goodput that is, so that a link made from
the profile delivers what was measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from pydantic import ValidationError

from netsim_ddp.errors import UsageError
from netsim_ddp.link.spec import SEGMENT_PAYLOAD, SEGMENT_WIRE
from netsim_ddp.results.probe import Probe, slowest
from netsim_ddp.results.record import write_whole
from netsim_ddp.units import format_duration, format_rate

MAX_FILE_BYTES = 64 * 1024 * 1024
SHORTEST_DELAY_S = 0.1e-3  # below it the emulated link's own round trip is as long
_KNOWN = "name the output of netsim probe --json, iperf3 -J or nccl-tests"
_ROUNDS = {
    "all_reduce": lambda n: 2 * (n - 1),
    "all_gather": lambda n: n - 1,
    "reduce_scatter": lambda n: n - 1,
}


@dataclass(frozen=True)
class Measurement:
    """Goodput samples in bit/s each way (``down_bps`` empty: the same), round trips in seconds, and their source."""

    up_bps: Sequence[float]
    down_bps: Sequence[float]
    round_trips_s: Sequence[float]
    source: str

    def profile(self) -> dict[str, str]:
        """The keys of a link profile. The spread stands in ``about``; that of the delay is the jitter too."""
        values = {"about": self._about(), "source": self.source}
        rates = [
            median(side) * SEGMENT_WIRE / SEGMENT_PAYLOAD for side in (self.up_bps, self.down_bps) if side
        ]
        values["bandwidth"] = ":".join(dict.fromkeys(f"{rate / 1e3:.0f}kbps" for rate in rates))
        if self.round_trips_s:
            one_way, spread = median(self.round_trips_s) / 2, _spread(self.round_trips_s) / 2
            if one_way >= SHORTEST_DELAY_S:
                values["delay"] = f"{one_way * 1e6:.0f}us"
                if spread >= SHORTEST_DELAY_S:
                    values["jitter"] = f"{min(spread, one_way) * 1e6:.0f}us"
        return values

    def _about(self) -> str:
        parts = [
            f"goodput {way}{_range(side, format_rate)}"
            for way, side in (("", self.up_bps), ("back ", self.down_bps))
            if side
        ]
        if self.round_trips_s:
            parts.append(f"round trip {_range(self.round_trips_s, format_duration)}")
        return ", ".join(parts)


def _range(samples: Sequence[float], show: Any) -> str:
    text: str = show(median(samples))
    return text if len(samples) < 2 else f"{text} ({show(min(samples))} to {show(max(samples))})"


def _spread(samples: Sequence[float]) -> float:
    """Half of the range that nine of ten samples lie in."""
    ordered = sorted(samples)
    cut = len(ordered) // 20
    return (ordered[len(ordered) - 1 - cut] - ordered[cut]) / 2


def write_profile(measurement: Measurement, path: Path) -> None:
    """Write ``measurement`` as a file that ``--link-profile`` reads.

    Raises:
        UsageError: it cannot be written.
    """
    write_whole(yaml.safe_dump(measurement.profile(), sort_keys=False, width=100), path)


def read_measurement(path: Path) -> Measurement:
    """Read a measurement, whichever of the known kinds it is.

    Raises:
        UsageError: unreadable, or of no known kind, or a failed test.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB", hint=_KNOWN)
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint=_KNOWN) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text", hint=_KNOWN) from error
    if not text.lstrip().startswith("{"):
        return _from_nccl_tests(text, path)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}", hint=_KNOWN) from error
    if data.get("kind") == "probe":
        try:
            return from_probe(Probe.model_validate(data))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UsageError(f"{path}: {where}: {first['msg']}") from error
    return _from_iperf3(data, path)


def from_probe(probe: Probe) -> Measurement:
    """What a probe found: of all pairs alone the slowest, since a collective goes at its pace."""
    row = slowest(probe.alone)
    if row is None:
        raise UsageError(
            "the probe measured no bulk goodput", hint="run netsim probe with two workers or more"
        )
    trips = probe.round_trip.samples_s if probe.round_trip else []
    return Measurement(row.samples_bps, [], trips, f"netsim probe, {probe.created_utc}")


def _from_iperf3(data: Mapping[str, Any], path: Path) -> Measurement:
    if "error" in data:
        raise UsageError(f"{path}: the iperf3 test failed: {data['error']}", hint="repeat the test")
    try:
        up = [
            float(each["sum"]["bits_per_second"])
            for each in data["intervals"]
            if not each["sum"].get("omitted")
        ]
        down = [
            float(each["sum_bidir_reverse"]["bits_per_second"])
            for each in data["intervals"]
            if "sum_bidir_reverse" in each
        ]
        total = float(data["end"]["sum_received"]["bits_per_second"])
        trips = [
            stream["sender"][key] / 1e6
            for stream in data["end"]["streams"]
            for key in ("min_rtt", "mean_rtt", "max_rtt")
            if stream.get("sender", {}).get(key)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no TCP test of iperf3: {error} is missing", hint=_KNOWN) from error
    if total <= 0 or not up:
        raise UsageError(f"{path}: the iperf3 test moved nothing", hint="repeat the test")
    when = data.get("start", {}).get("timestamp", {}).get("time", "time unknown")
    # Between the ends bytes wait in buffers: the receiver's total is the truth, the intervals are its spread.
    scale = total / (sum(up) / len(up))
    return Measurement([rate * scale for rate in up], down, trips, f"iperf3, {when}")


def _from_nccl_tests(text: str, path: Path) -> Measurement:
    """The bus bandwidth of the largest size, out of place and in place; and for a collective whose rounds are known,
    half a round trip as the smallest size's time per round, which holds the software's share too."""
    rows = [match.groups() for match in map(_NCCL_ROW.match, text.splitlines()) if match]
    if not rows:
        raise UsageError(f"{path} holds no row of nccl-tests", hint=_KNOWN)
    ordered = sorted(rows, key=lambda row: int(row[0]))
    rates = [float(rate) * 8e9 for rate in (ordered[-1][2], ordered[-1][4]) if rate]
    if not rates or min(rates) <= 0:
        raise UsageError(f"{path}: the largest size has no bus bandwidth", hint="repeat the test with -e 64M")
    trips: list[float] = []
    ranks = len(re.findall(r"^#\s+Rank\s+\d+", text, re.MULTILINE))
    operation = re.search(r"(all_reduce|all_gather|reduce_scatter)_perf", text)
    if operation and ranks > 1:
        rounds = _ROUNDS[operation[1]](ranks)
        trips = [2 * float(time) / 1e6 / rounds for time in (ordered[0][1], ordered[0][3]) if time]
    return Measurement(rates, [], trips, f"nccl-tests, {len(rows)} sizes, {ranks or 'unknown'} ranks")


_FIGURE = r"([\d.]+)"
_NCCL_ROW = re.compile(
    r"\s*(\d+)\s+\d+\s+\w+\s+\S+\s+-?\d+\s+"  # size, count, type, redop, root
    rf"{_FIGURE}\s+[\d.]+\s+{_FIGURE}\s+\S+"  # out of place: time, algbw, busbw, #wrong
    rf"(?:\s+{_FIGURE}\s+[\d.]+\s+{_FIGURE}\s+\S+)?"  # in place
)
