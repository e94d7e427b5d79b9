"""A measured network becomes a link profile that delivers what was measured; what is none is refused as what it is."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
from pathlib import Path

import pytest
import yaml

from netsim_ddp.errors import UsageError
from netsim_ddp.link.measured.measurement import Goodput, Measurement
from netsim_ddp.link.measured.profile import from_probe, read_measurement, write_profile
from netsim_ddp.results.files import to_json
from netsim_ddp.results.probe import Bulk, RoundTrip
from netsim_ddp.scenario import build_scenario
from tests.commands import answer, complaint
from tests.test_probe import CEILING, record


def profile_of(folder: Path, content: str | bytes) -> dict[str, str]:
    """What ``netsim probe --from`` writes of ``content``, which netsim itself must take."""
    source, target = folder / "measured", folder / "mylink.yaml"
    source.write_bytes(content.encode() if isinstance(content, str) else content)
    write_profile(read_measurement(source), target)
    build_scenario({"link_profile": str(target)})
    found: dict[str, str] = yaml.safe_load(target.read_text())
    return found


def refusal(folder: Path, content: str | bytes) -> str:
    """The one line with which ``content`` is refused."""
    source = folder / "measured"
    source.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError) as caught:
        write_profile(read_measurement(source), folder / "mylink.yaml")
    assert not (folder / "mylink.yaml").exists()
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


def test_a_probe_of_a_perfect_link_gives_that_link_again(tmp_path: Path) -> None:
    found = profile_of(tmp_path, to_json(record()))
    assert found["bandwidth"] == "1000000kbps"
    assert "delay" not in found  # 0.1 ms there and back is the emulated link's own
    assert from_probe(record()).up == Goodput(CEILING)


def test_a_probes_round_trips_are_delay_and_jitter(tmp_path: Path) -> None:
    trip = RoundTrip(asked_s=None, samples_s=[0.02, 0.021, 0.022])
    found = profile_of(tmp_path, to_json(record(round_trip=trip)))
    assert (found["delay"], found["jitter"]) == ("10500us", "500us")


@pytest.mark.parametrize("rates", [[0.0], [1e9, 0.0]])
def test_a_probe_that_moved_nothing_is_no_link(tmp_path: Path, rates: list[float]) -> None:
    bulk = Bulk(sender=0, receiver=1, ceiling_bps=None, samples_bps=rates)
    assert "moved nothing" in refusal(tmp_path, to_json(record(alone=[bulk])))


@pytest.mark.parametrize("rate", [1.0, 900.0, 1e12, 9e14])
def test_a_rate_that_no_link_has_becomes_none(tmp_path: Path, rate: float) -> None:
    with pytest.raises(UsageError, match="no link has"):
        write_profile(Measurement(Goodput(rate), "test"), tmp_path / "mylink.yaml")


def test_two_probes_in_one_file_are_refused(tmp_path: Path) -> None:
    other = to_json(record(alone=[Bulk(sender=0, receiver=1, ceiling_bps=None, samples_bps=[1e7])]))
    assert "holds 2 JSON documents" in refusal(tmp_path, f"{to_json(record())}\n{other}\n")


def test_the_written_file_is_a_link_profile(tmp_path: Path) -> None:
    path = tmp_path / "mylink.yaml"
    write_profile(Measurement(Goodput(95.64e6), "test", delay_s=0.01025), path)
    scenario = build_scenario({"link_profile": str(path)})
    assert scenario.link_spec().rate_bps == pytest.approx(100e6, rel=1e-3)
    assert scenario.link_spec().delay_s == pytest.approx(0.01025)


@pytest.mark.parametrize("rate", [1e3, 400e3, 1e6, 94.3e6, 9.4e9, 9e11])
def test_no_rate_is_rounded_away(tmp_path: Path, rate: float) -> None:
    write_profile(Measurement(Goodput(rate), "test"), tmp_path / "mylink.yaml")
    found = build_scenario({"link_profile": str(tmp_path / "mylink.yaml")}).link_spec()
    assert found.rate_bps == pytest.approx(rate * 1514 / 1448, rel=1e-3, abs=0.5)


@pytest.mark.parametrize(
    "measured",
    [
        Measurement(Goodput(1e-9), "test"),
        Measurement(Goodput(1e30), "test"),
        Measurement(Goodput(1e6), "test", Goodput(0.0)),
        Measurement(Goodput(1e6), "test", delay_s=11.0),
    ],
)
def test_a_profile_that_netsim_would_refuse_is_not_written(tmp_path: Path, measured: Measurement) -> None:
    with pytest.raises(UsageError, match=r"^test: "):
        write_profile(measured, tmp_path / "mylink.yaml")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("  \r\n\n", "is empty"),
        ("{", "is not JSON"),
        ("{}", "is no test of iperf3"),
        ('{"kind": "probe"}', "Field required"),
        ("[1, 2]", "is a list"),
        ("hello", "is no measurement: no row of nccl-tests, and no JSON"),
        ("<!DOCTYPE html>\n<html>404</html>", "is a web page"),
        (gzip.compress(b"{}", mtime=0), "is not text: it is compressed (gzip)"),
        (b"PK\x03\x04rest", "it is a zip archive"),
        (b"\x00\x01\x02", "it holds zero bytes"),
        (b"\xe9t\xe9", "is not text in UTF-8: byte 0 is none"),
        (b"\xff\xfe{", "is not text in UTF-16"),
        ("[ ID] Interval           Transfer     Bitrate\n", "is the text of iperf3"),
        ("iperf3: error - unable to connect to server\n", "is a message of iperf3"),
        (
            "PING a (10.0.0.1) 56(84) bytes of data.\n64 bytes from a: icmp_seq=1 ttl=64 time=9 ms",
            "output of ping",
        ),
        ("# OSU MPI Latency Test v5.8\n", "output of OSU"),
        ("bandwidth: 1gbps\n", "is a link profile already"),
        ("[" * 100_000, "is a list"),
        ('{"a":' * 100_000, "is nested too deeply"),
        ('{"start": ' + "9" * 5000 + "}", "is not JSON"),
    ],
)
def test_what_is_no_measurement_is_refused_as_what_it_is(
    tmp_path: Path, content: str | bytes, said: str
) -> None:
    found = refusal(tmp_path, content)
    assert said in found
    assert str(tmp_path / "measured") in found


def test_no_kind_of_file_makes_a_reader_wait_or_break(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    began = time.monotonic()
    for name, said in {
        str(tmp_path): "Is a directory",
        str(tmp_path / "pipe"): "a pipe that nobody writes to",
        str(tmp_path / "loop"): "symbolic links",
        str(tmp_path / "gone"): "No such file",
        "/dev/null": "is empty",
        "/dev/zero": "is larger than 64 MiB",
        "a\0b": "no file has such a name",
        "x" * 5000: "name too long",
    }.items():
        with pytest.raises(UsageError) as caught:
            read_measurement(Path(name))
        assert said in caught.value.message
        if name not in ("a\0b", "/dev/zero", "/dev/null"):
            with pytest.raises(UsageError):
                build_scenario({"link_profile": name})
            with pytest.raises(UsageError):
                build_scenario({"trace": name})
    assert time.monotonic() - began < 30


def test_a_pipe_whose_writer_is_slow_is_read_to_its_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    def write() -> None:
        with (tmp_path / "pipe").open("w") as pipe:
            for part in to_json(record()).partition("workers"):
                pipe.write(part)
                pipe.flush()
                time.sleep(1.2)

    writing = threading.Thread(target=write)
    writing.start()
    assert read_measurement(tmp_path / "pipe").up == Goodput(CEILING)
    writing.join(10)


def test_the_command_measures_nothing_with_from(tmp_path: Path) -> None:
    (tmp_path / "probe.json").write_text(to_json(record()), encoding="utf-8")
    done = answer(["probe", "--from", "probe.json", "-o", "mylink.yaml"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mylink.yaml").exists()
    assert "add -o mylink.yaml" in complaint(["probe", "--from", "probe.json"], tmp_path)
    assert "cannot read nothing.json" in complaint(
        ["probe", "--from", "nothing.json", "-o", "x.yaml"], tmp_path
    )
    (tmp_path / "bad.json").write_text(json.dumps({"error": "unable to connect"}), encoding="utf-8")
    assert "the iperf3 test failed: unable to connect" in complaint(
        ["probe", "--from", "bad.json", "-o", "x.yaml"], tmp_path
    )
