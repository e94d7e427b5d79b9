"""iperf3's JSON, of all its versions: the receiver's rate, the line's delay, and nothing that the test itself made."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from netsim_ddp.link.spec import SEGMENT_PAYLOAD, SEGMENT_WIRE
from tests.test_measured import profile_of, refusal
from tests.test_nccl_tests import PREFIXES

MBIT = 1e6


def line(goodput: float) -> str:
    """The rate of the profile for ``goodput``."""
    rate = goodput * SEGMENT_WIRE / SEGMENT_PAYLOAD
    return f"{rate / 1e3:.0f}kbps" if rate >= 1e6 else f"{rate:.0f}bps"


def a_test(
    received: float = 94 * MBIT,
    rates: list[float] | None = None,
    rtt_us: tuple[int, int, int] = (18_000, 181_000, 264_000),
) -> dict[str, Any]:
    """A test as 3.16 prints it: ``rates`` are the intervals', ``rtt_us`` the shortest, mean and longest round trip."""
    rates = [received] * 3 if rates is None else rates
    low, mean, high = rtt_us
    sent = {
        "start": 0,
        "end": 10,
        "seconds": 10,
        "bytes": received * 10.4 / 8,
        "bits_per_second": received * 1.04,
    }
    return {
        "start": {
            "connected": [{"socket": 5, "local_host": "10.0.0.1", "remote_host": "10.0.0.2"}],
            "version": "iperf 3.16",
            "timestamp": {"time": "Tue, 01 Jan 2030 00:00:00 GMT", "timesecs": 1893456000},
            "target_bitrate": 0,
            "fq_rate": 0,
            "test_start": {
                "protocol": "TCP",
                "num_streams": 1,
                "blksize": 131072,
                "omit": 0,
                "duration": 10,
                "bytes": 0,
                "reverse": 0,
                "target_bitrate": 0,
                "bidir": 0,
                "fqrate": 0,
                "interval": 1,
            },
        },
        "intervals": [
            {
                "streams": [],
                "sum": {"start": n, "end": n + 1, "bits_per_second": rate, "omitted": False, "sender": True},
            }
            for n, rate in enumerate(rates)
        ],
        "end": {
            "streams": [
                {
                    "sender": {
                        "socket": 5,
                        "min_rtt": low,
                        "mean_rtt": mean,
                        "max_rtt": high,
                        "sender": True,
                    },
                    "receiver": {"socket": 5, "bits_per_second": received, "sender": True},
                }
            ],
            "sum_sent": {**sent, "retransmits": 3, "sender": True},
            "sum_received": {**sent, "bytes": received * 10 / 8, "bits_per_second": received, "sender": True},
            "cpu_utilization_percent": {"host_total": 3.1},
        },
    }


def changed(data: dict[str, Any], **parts: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``data`` with keys of its ``start``, ``test_start`` and ``end`` replaced; None removes one."""
    data = copy.deepcopy(data)
    places = {"start": data["start"], "test_start": data["start"]["test_start"], "end": data["end"]}
    for place, values in parts.items():
        for key, value in values.items():
            if value is None:
                del places[place][key]
            else:
                places[place][key] = value
    return data


def profile(folder: Path, data: Any) -> dict[str, str]:
    return profile_of(folder, data if isinstance(data, str | bytes) else json.dumps(data))


def test_the_rate_is_the_receivers_and_the_delay_half_the_shortest_round_trip(tmp_path: Path) -> None:
    found = profile(tmp_path, a_test(20 * MBIT, [19 * MBIT, 20 * MBIT, 23 * MBIT]))
    assert found["bandwidth"] == line(20 * MBIT)
    assert found["delay"] == "9000us"
    assert "jitter" not in found  # of a queue that the test itself filled
    assert "20 Mbit/s (19 Mbit/s to 23 Mbit/s)" in found["about"]
    assert "the other way was not measured" in found["about"]
    assert "Tue, 01 Jan 2030" in found["source"]


def test_bursts_and_missing_intervals_leave_the_total(tmp_path: Path) -> None:
    for rates in ([0.0, 0.0, 0.0, MBIT, MBIT], []):
        found = profile(tmp_path, a_test(400e3, rates))
        assert found["bandwidth"] == line(400e3)
        assert "(" not in found["about"]
    omitted = a_test(20 * MBIT)
    omitted["intervals"][0]["sum"] |= {"omitted": True, "bits_per_second": 900 * MBIT}
    assert "(" not in profile(tmp_path, omitted)["about"]


def test_a_test_without_round_trips_has_no_delay(tmp_path: Path) -> None:
    assert "delay" not in profile(tmp_path, a_test(rtt_us=(0, 0, 0)))
    assert "delay" not in profile(tmp_path, changed(a_test(), end={"streams": []}))


def test_the_direction_is_said(tmp_path: Path) -> None:
    assert "from client to server" in profile(tmp_path, a_test())["about"]
    reverse = changed(a_test(), test_start={"reverse": 1})
    assert "from server to client" in profile(tmp_path, reverse)["about"]


def test_both_directions(tmp_path: Path) -> None:
    back = {"bits_per_second": 19 * MBIT, "sender": False}
    data = changed(a_test(), end={"sum_sent_bidir_reverse": back, "sum_received_bidir_reverse": back})
    for each in data["intervals"]:
        each["sum_bidir_reverse"] = {"bits_per_second": 19 * MBIT, "omitted": False, "sender": False}
    found = profile(tmp_path, data)
    assert found["bandwidth"] == f"{line(94 * MBIT)}:{line(19 * MBIT)}"
    assert "other way" not in found["about"]


def twice(first: dict[str, Any], second: dict[str, Any]) -> str:
    """The JSON of a bidirectional test of 3.7 to 3.10, in which the keys of the second direction are the same."""
    text = json.dumps(first)
    for key in ("sum_sent", "sum_received"):
        text = text[: text.rindex("}}")] + f', "{key}": {json.dumps(second["end"][key])}}}}}'
    for number, each in enumerate(first["intervals"]):
        one = json.dumps(each["sum"])
        other = json.dumps(second["intervals"][number]["sum"])
        text = text.replace(f'"sum": {one}', f'"sum": {one}, "sum": {other}', 1)
    return text


def test_repeated_keys_of_two_directions_are_both_read(tmp_path: Path) -> None:
    there, back = a_test(), a_test(19 * MBIT)
    for total in ("sum_sent", "sum_received"):
        back["end"][total]["sender"] = False
    assert json.loads(twice(there, back))["end"]["sum_received"]["bits_per_second"] == 19 * MBIT
    both = f"{line(94 * MBIT)}:{line(19 * MBIT)}"
    assert profile(tmp_path, twice(there, back))["bandwidth"] == both
    assert profile(tmp_path, twice(back, there))["bandwidth"] == both, "the flags say which way it was"


def test_a_key_that_is_repeated_without_a_reason_is_refused(tmp_path: Path) -> None:
    text = json.dumps(a_test())
    assert "'end' stands 2 times" in refusal(tmp_path, text[:-1] + ', "end": {}}')
    more = text[:-2] + ', "sum_received": {"bits_per_second": 1}, "sum_received": {"bits_per_second": 2}}}'
    assert "'sum_received' is repeated" in refusal(tmp_path, more)
    harmless = text.replace('"fq_rate": 0', '"fq_rate": 0, "sock_bufsize": 0, "sock_bufsize": 0')
    assert profile(tmp_path, harmless)["bandwidth"] == line(94 * MBIT)  # of -P 2, esnet/iperf#1491


def test_parallel_streams_share_the_line(tmp_path: Path) -> None:
    streams = [
        {"sender": {"min_rtt": rtt}, "receiver": {"bits_per_second": 20 * MBIT}}
        for rtt in (31_000, 24_000, 0)
    ]
    found = profile(tmp_path, changed(a_test(), test_start={"num_streams": 3}, end={"streams": streams}))
    assert found["bandwidth"] == line(94 * MBIT)
    assert found["delay"] == "12000us"


@pytest.mark.parametrize("version", ["named", "before 3.10", "since 3.10"])
def test_udp_is_refused(tmp_path: Path, version: str) -> None:
    data = changed(a_test(1.05 * MBIT), test_start={"protocol": "UDP" if version == "named" else None})
    if version != "named":
        data["end"]["streams"] = [{"udp": {"bits_per_second": 1.05 * MBIT, "jitter_ms": 0.05}}]
    if version == "before 3.10":
        data["end"] = {"streams": data["end"]["streams"], "sum": {"jitter_ms": 0.05, "bits_per_second": 1e6}}
    assert "is a test of UDP, whose rate its sender chose" in refusal(tmp_path, json.dumps(data))


@pytest.mark.parametrize(
    ("received", "streams", "refused"),
    [
        (10 * MBIT, 1, True),
        (9.9 * MBIT, 1, True),
        (8 * MBIT, 1, False),
        (20 * MBIT, 2, True),
        (12 * MBIT, 2, False),
    ],
)
def test_a_sender_that_reached_what_it_was_told_shows_no_rate(
    tmp_path: Path, received: float, streams: int, refused: bool
) -> None:
    data = changed(a_test(received), test_start={"target_bitrate": 10_000_000, "num_streams": streams})
    if refused:
        assert f"told to send {10 * streams} Mbit/s (-b) and did" in refusal(tmp_path, json.dumps(data))
    else:
        assert profile(tmp_path, data)["bandwidth"] == line(received)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_a_shell_makes_of_it_is_read(tmp_path: Path, encoding: str, newline: str) -> None:
    text = json.dumps(a_test(), indent=1).replace("\n", newline)
    around = newline.join(["Warning: --bidir option is in use and is experimental", text, "iperf Done.", ""])
    for each in (text, around):
        assert profile(tmp_path, each.encode(encoding))["bandwidth"] == line(94 * MBIT)


@pytest.mark.parametrize(
    "prefix", [*PREFIXES.values(), "2026-01-01T10:30:00.123456789Z stdout F ", "host0: ", "\x1b[32m"]
)
def test_what_a_launcher_puts_before_a_line_is_taken_off(tmp_path: Path, prefix: str) -> None:
    for text in (json.dumps(a_test(), indent=1), json.dumps(a_test()), "\n".join(stream(a_test()))):
        found = profile(tmp_path, "".join(f"{prefix}{each}\n" for each in text.splitlines()))
        assert found["bandwidth"] == line(94 * MBIT)


def test_text_with_prefixes_is_refused_as_what_it_is(tmp_path: Path) -> None:
    assert "is the text of iperf3" in refusal(tmp_path, "0: [ ID] Interval           Transfer     Bitrate\n")


def test_a_test_too_short_to_show_the_line_is_refused(tmp_path: Path) -> None:
    """1 MiB that is through after 2 ms was taken by buffers; 1 MiB in 10 s is a slow line."""
    for total in (
        {"bytes": 1 << 20, "seconds": 0.002, "bits_per_second": 4.19e9},
        {"bytes": 1 << 20, "bits_per_second": 4.19e9},
        {"bytes": 1 << 20, "seconds": 0.002},
    ):
        data = changed(a_test(), end={"sum_received": total})
        assert "lasted 2 ms" in refusal(tmp_path, json.dumps(data))
    slow = {"bytes": 1 << 20, "seconds": 10.0, "bits_per_second": 838_861.0}
    assert profile(tmp_path, changed(a_test(), end={"sum_received": slow}))["bandwidth"] == line(838_861)


def test_both_directions_without_the_second_ones_total_are_incomplete(tmp_path: Path) -> None:
    data = changed(a_test(), test_start={"bidir": 1})
    assert "'sum_received_bidir_reverse' is missing" in refusal(tmp_path, json.dumps(data))


def test_one_test_printed_twice_is_one_and_two_are_none(tmp_path: Path) -> None:
    one, other = json.dumps(a_test()), json.dumps(a_test(50 * MBIT))
    assert profile(tmp_path, f"{one}\n{one}\n")["bandwidth"] == line(94 * MBIT)  # esnet/iperf#1716
    (tmp_path / "mylink.yaml").unlink()
    assert "holds 2 JSON documents" in refusal(tmp_path, f"{one}\n{other}\n")
    assert "holds 2 JSON documents" in refusal(tmp_path, f"{one}{other}")


def stream(data: dict[str, Any]) -> list[str]:
    """What --json-stream prints of it."""
    events = [
        ("start", data["start"]),
        *(("interval", each) for each in data["intervals"]),
        ("end", data["end"]),
    ]
    return [json.dumps({"event": kind, "data": part}) for kind, part in events]


def test_a_stream_of_events_is_a_test(tmp_path: Path) -> None:
    lines = stream(a_test(20 * MBIT, [19 * MBIT, 21 * MBIT]))
    found = profile(tmp_path, "\n".join(lines))
    assert found["bandwidth"] == line(20 * MBIT)
    assert "19 Mbit/s to 21 Mbit/s" in found["about"]
    (tmp_path / "mylink.yaml").unlink()
    assert "'end' is missing" in refusal(tmp_path, "\n".join(lines[:-1]))
    assert "holds several tests" in refusal(tmp_path, "\n".join(lines * 2))
    failed = json.dumps({"event": "error", "data": "interrupt - the client has terminated"})
    assert "failed: interrupt" in refusal(tmp_path, "\n".join([*lines, failed]))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({**a_test(), "error": "interrupt - the client has terminated"}, "the iperf3 test failed: interrupt"),
        (a_test(0.0), "moved nothing"),
        (a_test(-5.0), "moved nothing"),
        (changed(a_test(), end={"sum_received": {"bits_per_second": "94"}}), "moved nothing"),
        (changed(a_test(), end={"sum_received": {"bits_per_second": 10**400}}), "moved nothing"),
        (changed(a_test(), end={"sum_received": None}), "'sum_received' is missing"),
        ({"start": {}, "intervals": []}, "'end' is missing"),
        ({**a_test(), "end": []}, "'end' is missing"),
        (a_test(rtt_us=(4_294_967_295, 1, 1)), "a round trip of 4294.97 s is none"),
    ],
)
def test_what_shows_no_rate_is_refused(tmp_path: Path, data: dict[str, Any], said: str) -> None:
    assert said in refusal(tmp_path, json.dumps(data))


@pytest.mark.parametrize("word", ["nan", "NaN", "-Infinity", "1e400"])
def test_what_is_no_number_is_refused(tmp_path: Path, word: str) -> None:
    text = json.dumps(changed(a_test(), end={"sum_received": {"bits_per_second": 12345}}))
    assert "is not JSON" in refusal(tmp_path, text.replace("12345", word))


def test_a_file_that_is_cut_off_says_so(tmp_path: Path) -> None:
    text = json.dumps(a_test(), indent=1)
    assert "is it cut off?" in refusal(tmp_path, text[: len(text) // 2])
