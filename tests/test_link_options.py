"""Profiles, timelines and traces: what they become, and what a mistake in them is answered with."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsim_ddp.errors import LinkUnavailable, UsageError
from netsim_ddp.link.bucket.clock import LinkClock
from netsim_ddp.link.mechanisms import HostLink, choose
from netsim_ddp.link.profiles import PROFILES
from netsim_ddp.link.spec import SEGMENT_WIRE, Change, LinkSpec
from netsim_ddp.link.tc.plan import ROOMS, Shapes, needs_delay_by, packet_of, plan
from netsim_ddp.scenario import Scenario, build_scenario
from netsim_ddp.scenario.matrix import expand, parse


def written(folder: Path, text: str, name: str = "link.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def complaint(values: dict[str, Any], config: Path | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        build_scenario(values, config)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("name", PROFILES)
def test_every_named_link_is_one_and_says_where_it_comes_from(name: str) -> None:
    found = build_scenario({"link_profile": name})
    assert found.link_profile == name
    assert found.link_spec().slowest_bps > 0
    assert len(PROFILES[name].source) > 20


def test_flags_override_a_profile_and_a_profile_the_file(tmp_path: Path) -> None:
    config = tmp_path / "scenario.yaml"
    config.write_text("bandwidth: 5mbps\nslow_rank: 1=1mbps\nsteps: 7\n", encoding="utf-8")
    found = build_scenario({"link_profile": "wan-us-eu", "delay": "10ms"}, config)
    assert found.link_spec() == LinkSpec(4, 10**9, delay_s=0.01)
    assert found.steps == 7


def test_a_profile_in_a_file_fills_what_the_file_leaves_open(tmp_path: Path) -> None:
    config = tmp_path / "scenario.yaml"
    config.write_text("link_profile: wan-us-eu\nbandwidth: 5mbps\n", encoding="utf-8")
    assert build_scenario({}, config).link_spec() == LinkSpec(4, 5 * 10**6, delay_s=0.04)


def test_a_link_of_ones_own(tmp_path: Path) -> None:
    path = written(
        tmp_path, "name: ours\nsource: measured\nbandwidth: 100mbps:20mbps\ndelay: 3ms\ncongestion: bbr\n"
    )
    expected = LinkSpec(4, 10**8, 2 * 10**7, delay_s=0.003, congestion="bbr")
    assert build_scenario({"link_profile": path}).link_spec() == expected


def test_a_result_replays_without_the_profiles_file(tmp_path: Path) -> None:
    path = written(tmp_path, "bandwidth: 100mbps\ntimeline: [{at: 1s, bandwidth: 5mbps}]\n")
    before = build_scenario({"link_profile": path}).resolved()
    Path(path).unlink()
    result = tmp_path / "result.json"
    result.write_text(
        json.dumps({"schema_version": 1, "scenario": before.model_dump(mode="json")}), encoding="utf-8"
    )
    assert build_scenario({}, result).resolved() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bandwith: 1gbps", "unknown key 'bandwith'"),
        ("bandwidth: 100", "bandwidth '100' has no unit"),
        ("bandwidth:", "bandwidth has no value"),
        ("bandwidth: yes", "bandwidth is not a switch"),
        ("bandwidth: {up: 1gbps}", "bandwidth is a mapping, not a value"),
        ("delay: 1:30", "delay '1:30' is not a duration"),
        ("bandwidth: 10:20", "bandwidth up '10' has no unit"),
        ("loss: 0.1", "loss '0.1' has no unit"),
        ("loss: 1", "loss '1' has no unit"),
        ("bandwidth: 99999gbps", "no link has 100 Tbit/s"),
        ("bandwidth: 1bps", "no link has 1 bit/s"),
        ("slow_rank: 1=1bps", "no link has 1 bit/s"),
        ("timeline: [{at: 1s, bandwidth: 9tbps}]", "no link has 9 Tbit/s"),
        ("bandwidth: 1gbps\npeak: 2tbps\ncredit: 1GB", "no link has 2 Tbit/s"),
        ("workers: 3", "unknown key 'workers'"),
        ("delay: 1gbps", "delay '1gbps' is not a duration"),
        ("- 1", "holds no link"),
        ("", "holds no link"),
        ("a: [", "is not YAML"),
        ("bandwidth: 1gbps\nbandwidth: 10mbps", "the key 'bandwidth' stands twice"),
        ("bandwidth: !!bool maybe", "is not YAML"),
        ("bandwidth: 2026-13-45", "is not YAML"),
        ("<!DOCTYPE html><html></html>", "it is a web page"),
    ],
)
def test_a_bad_profile_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    assert said in complaint({"link_profile": written(tmp_path, text)})


def test_each_kind_of_file_has_a_hint_of_its_own(tmp_path: Path) -> None:
    hints = {}
    for key in ("link_profile", "timeline"):
        with pytest.raises(UsageError) as caught:
            build_scenario({key: written(tmp_path, "a: [")})
        hints[key] = str(caught.value.hint)
    assert "'bandwidth: 1gbps'" in hints["link_profile"]
    assert "list" not in hints["link_profile"]
    assert "write a list" in hints["timeline"]


def test_a_loss_needs_its_unit_wherever_a_person_writes_it(tmp_path: Path) -> None:
    """A bare 0.1 would be 10%, and somebody who writes it may mean 0.1%."""
    config = tmp_path / "scenario.yaml"
    config.write_text("loss: 0.1\n", encoding="utf-8")
    assert complaint({}, config).endswith("loss '0.1' has no unit")
    assert complaint({"loss": "0.1"}) == "--loss '0.1' has no unit"
    for text in ("0", "0.0", "0%"):
        assert build_scenario({"loss": text}).loss == 0
        config.write_text(f"loss: {text}\n", encoding="utf-8")
        assert build_scenario({}, config).loss == 0
    result = tmp_path / "result.json"  # which holds resolved numbers
    before = build_scenario({"loss": "0.07%"}).resolved()
    result.write_text(json.dumps({"schema_version": 1, "scenario": before.model_dump(mode="json")}))
    assert build_scenario({}, result).resolved() == before


def test_a_matrix_takes_a_loss_with_its_unit_only() -> None:
    matrix = parse({"matrix": {"loss": ["0.1%", 0.1]}}, "sweep.yaml")
    with pytest.raises(UsageError, match=r"loss '0\.1' has no unit"):
        expand(matrix, Scenario)


def test_the_queue_of_the_fastest_links_is_one_that_tc_takes() -> None:
    for spec in (LinkSpec(2, 10**12), LinkSpec(2, 10**12, queue_s=5.0)):
        assert {shape.limit for shape in Shapes.of(spec).up} == {2**32 - 1}


def test_an_unknown_profile_is_answered_with_the_near_one() -> None:
    assert complaint({"link_profile": "lan-1"}) == "link profile 'lan-1' is not known"
    assert "cannot read" in complaint({"link_profile": "gone.yaml"})


def test_a_timeline_becomes_the_links_changes(tmp_path: Path) -> None:
    text = "changes:\n- {at: 10s, bandwidth: 20mbps}\n- {at: 1min, bandwidth: 50mbps:5mbps}\nrepeat: 90s\n"
    spec = build_scenario({"timeline": written(tmp_path, text)}).link_spec()
    assert spec.timeline == (Change(10, 2 * 10**7, 2 * 10**7), Change(60, 5 * 10**7, 5 * 10**6))
    assert spec.period_s == 90
    inline = tmp_path / "scenario.yaml"
    inline.write_text("timeline: [{at: 5s, bandwidth: 20mbps}]\n", encoding="utf-8")
    assert build_scenario({}, inline).link_spec().timeline == (Change(5, 2 * 10**7, 2 * 10**7),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {at: 10s}", "entry 1 is not {at, bandwidth}"),
        ("- 5", "entry 1 is not {at, bandwidth}"),
        ("- {at: 20mbps, bandwidth: 10s}", "entry 1: bandwidth '10s' is not a rate"),
        ("- {at: 5, bandwidth: 1gbps}", "entry 1: at '5' is not a duration"),
        ("- {at: 5s, bandwidth: 1gbps}\n- {at: 5s, bandwidth: 2gbps}", "entry 2: 5s does not come after 5s"),
        ("changes: [{at: 5s, bandwidth: 1gbps}]\nrepeat: 5s", "repeats after 5s, before its last change"),
        ("changes: []", "holds no changes"),
        ("chances: []", "unknown key 'chances'"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_bad_timeline_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    assert said in complaint({"timeline": written(tmp_path, text)})


@settings(max_examples=50)
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=300))
def test_a_trace_carries_the_packets_that_it_lists(
    tmp_path_factory: pytest.TempPathFactory, times: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("trace")
    path = written(folder, "\n".join(map(str, sorted(times))) + "\n", "lte.up")
    spec = build_scenario({"trace": path}).link_spec()
    period = max(times) / 1e3
    assert spec.period_s in (period, None)
    begins = [change.at_s for change in spec.timeline]
    lengths = [end - begin for begin, end in itertools.pairwise([*begins, period])]
    bits = [change.up_bps * seconds for change, seconds in zip(spec.timeline, lengths, strict=True)]
    carried = [
        sum(begin * 1e3 < time <= (begin + seconds) * 1e3 + 1e-6 for time in times)
        for begin, seconds in zip(begins, lengths, strict=True)
    ]
    assert sum(carried) == len(times)
    packets = [max(1, each) * SEGMENT_WIRE * 8 for each in carried]  # an empty stretch trickles
    assert bits == pytest.approx(packets, abs=1)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("1", 12_112_000), ("1\n", 12_112_000), ("10\n", 1_211_200), ("1\n1\n2\n3\n", 4 * 12_112_000 // 3)],
)
def test_a_trace_shorter_than_a_stretch_wraps_around_to_one_rate(
    tmp_path: Path, text: str, rate: int
) -> None:
    spec = build_scenario({"trace": written(tmp_path, text, "constant.trace")}).link_spec()
    assert (spec.up(0), spec.down(3), spec.varies) == (rate, rate, False)
    assert spec.describe() == f"{rate / 1e6:.4g} Mbit/s"
    bucket = LinkClock(spec)
    assert (bucket._rates[0][0], bucket._steady) == (rate, True)


def test_the_shorter_of_two_traces_is_repeated_beside_the_longer(tmp_path: Path) -> None:
    up = written(tmp_path, "1", "up")
    down = written(tmp_path, "".join(f"{ms}\n" for ms in (*range(1, 501), *range(502, 1001, 2))), "down")
    spec = build_scenario({"trace": f"{up}:{down}"}).link_spec()
    assert [(each.up_bps, each.down_bps) for each in spec.timeline] == [
        (12_112_000, 12_112_000),
        (12_112_000, 6_056_000),
    ]
    assert (spec.period_s, spec.varies) == (1.0, True)


def test_a_name_with_colons_is_a_file_if_there_is_one(tmp_path: Path) -> None:
    morning = written(tmp_path, "1", "2030-01-01T10:30.trace")
    evening = written(tmp_path, "2", "2030-01-01T20:30.trace")
    assert build_scenario({"trace": morning}).link_spec().up(0) == 12_112_000
    both = build_scenario({"trace": f"{morning}:{evening}"}).link_spec()
    assert (both.up(0), both.down(0)) == (12_112_000, 6_056_000)
    gone = f"{tmp_path}/2031-01-01T10:30.trace"
    assert complaint({"trace": gone}).startswith(
        f"cannot read --trace {tmp_path}/2031-01-01T10: no such file"
    )


def test_a_trace_on_the_command_line_replaces_the_timeline_of_a_file(tmp_path: Path) -> None:
    config = tmp_path / "scenario.yaml"
    config.write_text("timeline: [{at: 5s, bandwidth: 20mbps}]\n", encoding="utf-8")
    path = written(tmp_path, "1\n1000\n", "trace")
    assert build_scenario({"trace": path}, config).link_spec().period_s == 1.0
    both = {"trace": path, "timeline": str(config)}
    assert complaint(both) == "timeline and trace both say how the link changes"


def test_a_trace_for_each_direction(tmp_path: Path) -> None:
    up = written(tmp_path, "".join(f"{ms}\n" for ms in range(1, 1001)), "up")
    down = written(tmp_path, "".join(f"{ms}\n" for ms in range(2, 1001, 2)), "down")
    spec = build_scenario({"trace": f"{up}:{down}"}).link_spec()
    assert {(change.up_bps, change.down_bps) for change in spec.timeline} == {(12_112_000, 6_056_000)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1\nx\n", "line 2: 'x' is not a time in whole milliseconds"),
        ("5\n4\n", "line 2: 4 comes after 5"),
        ("-1\n", "line 1: '-1' is not a time"),
        ("", "is empty"),
        ("0\n", "lasts 0s"),
        ("9" * 30, "is not a time in whole milliseconds"),
    ],
)
def test_a_bad_trace_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    assert said in complaint({"trace": written(tmp_path, text, "trace")})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"peak": "10gbps"}, "peak needs credit beside it"),
        ({"credit": "5GB"}, "credit needs peak beside it"),
        ({"peak": "1gbps", "credit": "5GB"}, "the peak 1 Gbit/s is no more than the bandwidth 1 Gbit/s"),
        ({"peak": "10gbps", "credit": "5gbps"}, "--credit '5gbps' is not a size"),
        ({"peak": "10gbps", "credit": "1e30GB"}, "--credit '1e30GB' must be at most"),
        ({"workers": "1", "slow_rank": "1=5mbps"}, "slow rank 1 does not exist: 1 worker is rank 0"),
        ({"slow_rank": "9" * 5000 + "=5mbps"}, "--slow-rank '99999"),
        ({"jitter": "2ms"}, "jitter 2 ms is more than the delay 0 us"),
        ({"delay": "20"}, "--delay '20' is not a duration"),
        ({"delay": "1gbps"}, "--delay '1gbps' is not a duration"),
        ({"loss": "2"}, "--loss '2' must be above 0 and at most 1"),
        ({"queue": "0"}, "--queue 0 must be more than 0"),
        ({"congestion": "vegas"}, "--congestion 'vegas' is not known here"),
        ({"bandwidth": "20ms"}, "--bandwidth '20ms' is not a rate"),
    ],
)
def test_a_link_that_makes_no_sense_is_refused(values: dict[str, str], said: str) -> None:
    assert complaint(values).startswith(said)


REFUSED = [
    ("bucket", LinkSpec(2, 10**9, loss=0.01), "the bucket link has no loss"),
    ("bucket", LinkSpec(2, 10**9, queue_s=0.1, congestion="bbr"), "no queue and no congestion control"),
    ("none", LinkSpec(2, 10**9, delay_s=0.1), "a link that is not shaped has no delay"),
    ("none", LinkSpec(2, 10**9, timeline=(Change(1, 1, 1),)), "has no timeline"),
]


@pytest.mark.parametrize(("how", "spec", "said"), REFUSED)
def test_what_a_link_cannot_do_is_refused_by_name(how: Any, spec: LinkSpec, said: str) -> None:
    with pytest.raises(LinkUnavailable, match=said) as caught, choose(spec, how, print):
        pass
    assert "--link tc" in str(caught.value.hint)


def test_the_bucket_takes_delay_and_jitter() -> None:
    with HostLink(LinkSpec(2, 10**9, delay_s=0.02, jitter_s=0.002), "bucket") as link:
        assert len(link.endpoints) == 2


def test_netem_sits_inside_the_bucket_of_what_a_rank_sends() -> None:
    spec = LinkSpec(2, 10**8, delay_s=0.02, jitter_s=0.002, loss=0.001)
    assert needs_delay_by(spec) == ["--delay", "--jitter", "--loss"]
    found = [
        step for step in plan(spec, Shapes.of(spec), ["a", "b"], "cubic", "netem") if "netem" in step.argv
    ]
    assert [step.rank for step in found] == [0, 1]
    words = " ".join(found[0].argv)
    assert "dev eth0 parent 1:1" in words
    assert words.endswith("delay 20000us 2000us rate 1000000000000bit loss 0.1%")
    assert not needs_delay_by(LinkSpec(2, 10**8, queue_s=0.1))


def test_a_lossy_link_sends_packets_of_one_segment() -> None:
    assert Shapes.of(LinkSpec(2, 10**9, loss=0.01)).gso == SEGMENT_WIRE
    assert Shapes.of(LinkSpec(2, 10**9)).gso > SEGMENT_WIRE


@given(st.integers(10**6, 10**11), st.integers(1, 16))
def test_a_burst_holds_a_packet_and_little_more(rate: int, workers: int) -> None:
    shape = Shapes.of(LinkSpec(workers, rate)).up[0]
    assert shape.burst >= min(shape.gso, SEGMENT_WIRE)
    packet = SEGMENT_WIRE * 8 / rate
    assert shape.burst * 8 / rate <= max(0.326e-3, packet + 1e-4) * 1.001
    if workers <= 4 and rate * workers <= 4e9:
        assert shape.burst * 8 / rate <= 0.166e-3 + packet, "a small message is early by as much"
    assert shape.gso <= 65536


def test_netem_holds_what_is_on_its_way_when_the_link_is_fastest() -> None:
    changes = (Change(0, 10**5, 10**5), Change(1, 10**9, 10**9))
    spec = LinkSpec(2, 10**9, delay_s=0.5, timeline=changes)
    words = next(
        step.argv
        for step in plan(spec, Shapes.of(spec), ["a", "b"], "cubic", "netem")
        if "netem" in step.argv
    )
    assert int(words[words.index("limit") + 1]) * SEGMENT_WIRE > 10**9 / 8 * 0.5


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize(
    "rates", [(10**9, 2 * 10**7), (10**8, 2 * 10**7), (4 * 10**8, 10**6, 10**8), (10**7, 10**9)]
)
def test_every_stretch_holds_the_packets_of_every_other(rates: tuple[int, ...], room: int) -> None:
    """A bucket that is smaller than the packet at the head of its queue carries nothing."""
    first, *others = rates
    changes = tuple(Change(1.0 + each, rate, rate) for each, rate in enumerate(others))
    spec = LinkSpec(4, first, timeline=changes)
    packet = packet_of(spec, room)
    assert packet is not None
    bursts = [Shapes.of(now, room, packet).up[0].burst for _, now in spec.stretches()]
    # What a device hands down is two segments at least; a bucket that holds less cuts them.
    queued = max(packet, 2 * SEGMENT_WIRE) if max(bursts) >= 2 * SEGMENT_WIRE else SEGMENT_WIRE
    assert min(bursts) >= queued
    assert packet_of(LinkSpec(4, first), room) is None
