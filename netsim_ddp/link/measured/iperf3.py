"""Reads what ``iperf3 -J`` and ``iperf3 --json-stream`` print, of versions 3.0 to 3.19.

The rate is the receiver's total: between the ends bytes wait in buffers, and on a slow line most seconds see no block
complete. The delay is half of the shortest round trip, ``min_rtt``: the mean and the longest are those of the queue
that the test itself filled. Versions 3.7 to 3.10 repeat the keys of the second direction of ``--bidir``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from netsim_ddp.errors import UsageError
from netsim_ddp.link.measured.measurement import Goodput, Measurement
from netsim_ddp.reading import finite, no_number, one_line, positive
from netsim_ddp.units import format_duration

KNOWN_KEYS = frozenset({"start", "intervals", "end", "event", "error"})
PACED = 0.95  # of what a sender was told to send: what it then reached is no link's rate
MAX_RTT_S = 20.0
SHORTEST_S = 0.5
"""In less time what was counted is the start of a transfer and what fits into the sockets' buffers, not the line: 1 MiB
(``-n 1M``) may be through after 2 ms. How many bytes there were says nothing: slow lines move few of them in 10 s."""
_AGAIN = "repeat the test"


class Repeated(list[Any]):
    """The values of a key that stands in an object more than once, in their order."""


def documents(text: str) -> list[Any]:
    """Every JSON document of ``text`` that begins on a line of its own; other lines, which iperf3 or a shell wrote
    between them, are passed over. Keys that stand twice are kept as :class:`Repeated`.

    Raises:
        ValueError: a document that is not JSON, or nested too deeply.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=no_number, parse_float=finite)
    found, at = [], 0
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        start = at + len(text[at:end]) - len(text[at:end].lstrip())
        if text[start : start + 1] != "{":
            at = end + 1
            continue
        try:
            document, at = decoder.raw_decode(text, start)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        found.append(document)
    return found


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Repeated] = {}
    for key, value in pairs:
        found.setdefault(key, Repeated()).append(value)
    return {key: values if len(values) > 1 else values[0] for key, values in found.items()}


def from_iperf3(found: Sequence[Any], source: str) -> Measurement:
    """The measurement in ``found``, the documents of the file ``source``.

    Raises:
        UsageError: several tests, a failed one, or one that shows no link's rate: UDP, or paced by ``-b``.
    """
    data = _one_test(found, source)
    if "error" in data:
        raise UsageError(
            f"{source}: the iperf3 test failed: {one_line(str(data['error']))}", hint="repeat the test"
        )
    start, end = _part(data, "start", source, {}), _part(data, "end", source)
    test = _part(start, "test_start", source, {})
    _is_tcp(test, end, source)
    both = _directions(test, end, source)
    rates = [_received(received, source) for received in both]
    _not_paced(start, test, rates, source)
    goodputs = [Goodput(rate, *spread) for rate, spread in zip(rates, _spreads(data, rates), strict=True)]
    when = _part(start, "timestamp", source, {}).get("time", "time unknown")
    way = "server to client" if test.get("reverse") == 1 else "client to server"
    return Measurement(
        goodputs[0],
        f"iperf3, {one_line(str(when), 60)}",
        goodputs[1] if len(goodputs) > 1 else None,
        delay_s=_delay(end, source),
        remarks=() if len(both) > 1 else (f"from {way}; the other way was not measured",),
    )


def _one_test(found: Sequence[Any], source: str) -> Mapping[str, Any]:
    events = [each for each in found if isinstance(each, dict) and isinstance(each.get("event"), str)]
    if events and len(events) == len(found):
        return _of_stream(events, source)
    different = [each for number, each in enumerate(found) if each not in found[:number]]
    if len(different) > 1:  # 3.16 and 3.17 may print one test twice
        raise UsageError(
            f"{source} holds {len(different)} JSON documents, a single test has one",
            hint="write each test into a file of its own",
        )
    data = different[0]
    if not isinstance(data, dict) or not KNOWN_KEYS & data.keys():
        raise UsageError(f"{source} is no test of iperf3: it has no start, intervals and end", hint=_AGAIN)
    return data


def _of_stream(events: Sequence[Mapping[str, Any]], source: str) -> Mapping[str, Any]:
    """The document of a test whose parts were printed as they came."""
    data: dict[str, Any] = {"intervals": []}
    for each in events:
        kind, part = each["event"], each.get("data")
        if kind == "interval":
            data["intervals"].append(part)
        elif kind in data:
            raise UsageError(f"{source} holds several tests", hint="write each test into a file of its own")
        else:
            data[kind] = part
    return data


def _part(data: Mapping[str, Any], key: str, source: str, default: Any = None) -> Mapping[str, Any]:
    value = data.get(key, default)
    if isinstance(value, Repeated):
        raise UsageError(
            f"{source} is no single test of iperf3: {key!r} stands {len(value)} times", hint=_AGAIN
        )
    if not isinstance(value, dict):
        raise UsageError(f"{source} is no complete TCP test of iperf3: {key!r} is missing", hint=_AGAIN)
    return value


def _is_tcp(test: Mapping[str, Any], end: Mapping[str, Any], source: str) -> None:
    """Refuse what is no TCP: since 3.10 a test of UDP has a receiver's total too, of what the sender chose to send."""
    protocol = test.get("protocol")
    if protocol is None:
        streams = end.get("streams")
        udp = (
            isinstance(streams, list) and any(isinstance(each, dict) and "udp" in each for each in streams)
        ) or any(isinstance(each, dict) and "jitter_ms" in each for each in end.values())
        protocol = "UDP" if udp else "TCP"
    if protocol != "TCP":
        raise UsageError(
            f"{source} is a test of {one_line(str(protocol), 20)}, whose rate its sender chose",
            hint="repeat it with TCP: iperf3 -c HOST -J",
        )


def _directions(test: Mapping[str, Any], end: Mapping[str, Any], source: str) -> list[Mapping[str, Any]]:
    """The receiver's total of the one direction, or of both: from the client first."""
    there, back = end.get("sum_received"), end.get("sum_received_bidir_reverse")
    if isinstance(there, Repeated):
        if len(there) != 2 or back is not None or not all(isinstance(each, dict) for each in there):
            raise UsageError(f"{source} is no single test of iperf3: 'sum_received' is repeated", hint=_AGAIN)
        return (
            list(reversed(there)) if [each.get("sender") for each in there] == [False, True] else list(there)
        )
    found = [_part(end, "sum_received", source)]
    if back is None and positive(test.get("bidir")):
        raise UsageError(
            f"{source} is no complete test of both directions (--bidir): 'sum_received_bidir_reverse' is missing",
            hint=_AGAIN,
        )
    return [*found, _part(end, "sum_received_bidir_reverse", source)] if back is not None else found


def _received(total: Mapping[str, Any], source: str) -> float:
    rate, counted, seconds = (positive(total.get(key)) for key in ("bits_per_second", "bytes", "seconds"))
    if counted and seconds and "bits_per_second" not in total:
        rate = positive(counted * 8 / seconds)
    if rate is None:
        raise UsageError(
            f"{source}: the iperf3 test moved nothing, as far as its receiver's total tells",
            hint="repeat the test, and take the client's output",
        )
    seconds = seconds or (counted * 8 / rate if counted else None)
    if seconds is not None and seconds < SHORTEST_S:
        raise UsageError(
            f"{source}: the iperf3 test lasted {format_duration(seconds)}: that shows its start and the sockets' "
            "buffers, not the line",
            hint="repeat it for 10 s: iperf3 -t 10",
        )
    return rate


def _not_paced(
    start: Mapping[str, Any],
    test: Mapping[str, Any],
    rates: Sequence[float],
    source: str,
) -> None:
    """Refuse a test that reached what ``-b`` or ``--fq-rate`` told its sender: the line may carry more."""
    streams = positive(test.get("num_streams")) or 1
    told = [part.get(key) for part in (test, start) for key in ("target_bitrate", "fqrate", "fq_rate")]
    targets = [rate for rate in map(positive, told) if rate]
    if targets and max(rates) >= PACED * min(targets) * streams:
        raise UsageError(
            f"{source}: the sender was told to send {min(targets) * streams / 1e6:g} Mbit/s (-b) and did; "
            "that is not what the line carries",
            hint="repeat the test without -b",
        )


def _spreads(data: Mapping[str, Any], rates: Sequence[float]) -> list[tuple[float, float] | tuple[()]]:
    """Between which values the intervals' rates lie, in each direction; nothing where some saw no block complete, or
    where they are not the receiver's."""
    samples: list[list[float | None]] = [[] for _ in rates]
    intervals = data.get("intervals")
    for each in intervals if isinstance(intervals, list) else []:
        if not isinstance(each, dict):
            continue
        there = each.get("sum")
        for side, one in zip(
            samples,
            list(there) if isinstance(there, Repeated) else [there, each.get("sum_bidir_reverse")],
            strict=False,
        ):
            if isinstance(one, dict) and not one.get("omitted"):
                side.append(positive(one.get("bits_per_second")))
    found: list[tuple[float, float] | tuple[()]] = []
    for side, total in zip(samples, rates, strict=True):
        known = [rate for rate in side if rate is not None]
        whole = len(known) == len(side) and len(known) > 1 and min(known) <= total <= max(known)
        found.append((min(known), max(known)) if whole else ())
    return found


def _delay(end: Mapping[str, Any], source: str) -> float | None:
    """Half of the shortest round trip that a sender saw; only Linux and a few others tell it."""
    streams = end.get("streams")
    found = [
        positive(each["sender"].get("min_rtt"))
        for each in (streams if isinstance(streams, list) else [])
        if isinstance(each, dict) and isinstance(each.get("sender"), dict)
    ]
    shortest = min((trip / 1e6 for trip in found if trip), default=None)
    if shortest is None:
        return None
    if shortest > MAX_RTT_S:
        raise UsageError(f"{source}: a round trip of {shortest:g} s is none", hint="remove its min_rtt")
    return shortest / 2
