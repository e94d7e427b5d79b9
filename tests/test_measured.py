"""A measured network becomes a link profile that delivers what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from netsim_ddp.errors import UsageError
from netsim_ddp.link.measured import Measurement, from_probe, read_measurement, write_profile
from netsim_ddp.results.record import to_json
from netsim_ddp.scenario import build_scenario
from tests.test_cli import command, complaint
from tests.test_probe import CEILING, record

NCCL = """# nThread 1 nGpus 1 minBytes 1024 maxBytes 4194304 step: 4096(bytes) warmup iters: 5 iters: 20
# Collective test starting: all_reduce_perf
#  Rank  0 Group  0 Pid   1 on  host0 device  0
#  Rank  1 Group  0 Pid   1 on  host1 device  0
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
        1024           256     float     sum      -1    800.0    0.00    0.00      0    840.0    0.00    0.00      0
     4194304       1048576     float     sum      -1  36000.0    0.12    0.118     0  35000.0    0.12    0.120     0
# Avg bus bandwidth    : 0.06
"""


def iperf3(rates: list[float], **changes: Any) -> dict[str, Any]:
    return {
        "start": {"timestamp": {"time": "Mon, 01 Jan 2026 00:00:00 GMT"}},
        "intervals": [{"sum": {"bits_per_second": rate}} for rate in rates],
        "end": {
            "streams": [{"sender": {"min_rtt": 40_000, "mean_rtt": 41_000, "max_rtt": 44_000}}],
            "sum_received": {"bits_per_second": sum(rates) / len(rates)},
        },
        **changes,
    }


def profile_of(path: Path, text: str) -> dict[str, str]:
    source, target = path / "measured", path / "mylink.yaml"
    source.write_text(text, encoding="utf-8")
    write_profile(read_measurement(source), target)
    found: dict[str, str] = yaml.safe_load(target.read_text())
    return found


def test_iperf3_becomes_a_link_with_rate_delay_and_spread(tmp_path: Path) -> None:
    found = profile_of(tmp_path, json.dumps(iperf3([90e6, 96e6, 102e6])))
    assert found["bandwidth"] == f"{96e6 * 1514 / 1448 / 1e3:.0f}kbps"
    assert found["delay"] == "20500us"
    assert found["jitter"] == "1000us"
    assert "90 Mbit/s to 102 Mbit/s" in found["about"]


def test_both_directions_of_iperf3_are_kept(tmp_path: Path) -> None:
    data = iperf3([100e6])
    data["intervals"][0]["sum_bidir_reverse"] = {"bits_per_second": 20e6}
    up, down = profile_of(tmp_path, json.dumps(data))["bandwidth"].split(":")
    assert (up, down) == (f"{100e6 * 1514 / 1448 / 1e3:.0f}kbps", f"{20e6 * 1514 / 1448 / 1e3:.0f}kbps")


def test_nccl_tests_give_the_bus_bandwidth_and_the_time_of_a_round(tmp_path: Path) -> None:
    found = profile_of(tmp_path, NCCL)
    assert found["bandwidth"] == f"{0.119 * 8e9 * 1514 / 1448 / 1e3:.0f}kbps"
    assert found["delay"] == "410us"  # two ranks: two rounds of 410 us in the mean
    assert "2 ranks" in found["source"]


def test_a_probe_of_a_perfect_link_gives_that_link_again(tmp_path: Path) -> None:
    found = profile_of(tmp_path, to_json(record()))
    assert found["bandwidth"] == "1000000kbps"
    assert "delay" not in found  # 0.1 ms there and back is the emulated link's own
    assert from_probe(record()).up_bps == [CEILING]


def test_the_written_file_is_a_link_profile(tmp_path: Path) -> None:
    path = tmp_path / "mylink.yaml"
    write_profile(Measurement([95.64e6], [], [0.02, 0.021], "test"), path)
    scenario = build_scenario({"link_profile": str(path)})
    assert scenario.link_spec().rate_bps == pytest.approx(100e6, rel=1e-3)
    assert scenario.link_spec().delay_s == pytest.approx(0.01025)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no row of nccl-tests"),
        ("{", "is not JSON"),
        ("{}", "is no TCP test of iperf3"),
        ('{"error": "unable to connect"}', "the iperf3 test failed: unable to connect"),
        (json.dumps(iperf3([0.0])), "moved nothing"),
        ('{"kind": "probe"}', "Field required"),
    ],
)
def test_what_is_no_measurement_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "measured"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_measurement(path)
    assert said in caught.value.message
    assert str(path) in caught.value.message


def test_the_command_measures_nothing_with_from(tmp_path: Path) -> None:
    (tmp_path / "iperf3.json").write_text(json.dumps(iperf3([50e6])), encoding="utf-8")
    done = command(["probe", "--from", "iperf3.json", "-o", "mylink.yaml"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mylink.yaml").exists()
    assert "add -o mylink.yaml" in complaint(["probe", "--from", "iperf3.json"], tmp_path)
    assert "cannot read nothing.json" in complaint(
        ["probe", "--from", "nothing.json", "-o", "x.yaml"], tmp_path
    )
