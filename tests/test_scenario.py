"""Scenarios: precedence, spellings, cells, replay."""

from __future__ import annotations

import json
import pkgutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from netsim_ddp.errors import UsageError
from netsim_ddp.methods import METHODS
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.scenario import Scenario, available_cores, build_scenario


def written(folder: Path, text: str) -> Path:
    path = folder / "scenario.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    path = written(tmp_path, "bandwidth: 100mbps\nworkers: 3\ntitle: three\nquestion: does it pay?\n")
    found = build_scenario({"workers": 2}, path)
    assert (found.workers, found.bandwidth_bps, found.steps) == (2, 100_000_000, Scenario().steps)


@pytest.mark.parametrize("text", ["bandwidth: 1gbps", "bandwidth_bps: 1000000000", "bandwidth: 1Gbit/s"])
def test_quantities_have_two_spellings(tmp_path: Path, text: str) -> None:
    assert build_scenario({}, written(tmp_path, text)).bandwidth_bps == 10**9


def test_a_flag_replaces_either_spelling(tmp_path: Path) -> None:
    path = written(tmp_path, "bandwidth_bps: 1000000000")
    assert build_scenario({"bandwidth": "10mbps"}, path).bandwidth_bps == 10**7


@pytest.mark.parametrize(
    ("text", "ratio"), [("1e-3", 0.001), ("0.05", 0.05), ("5%", 0.05), ("'1e-3'", 0.001)]
)
def test_ratios_as_yaml_reads_them(tmp_path: Path, text: str, ratio: float) -> None:
    assert build_scenario({}, written(tmp_path, f"ratio: {text}")).ratio == ratio


def test_dense_runs_both_ways_and_ratios_are_filled_in() -> None:
    found = build_scenario({"methods": ["dense", "topk", "topk,ratio=0.1"], "ratio": "2%"}).cells()
    assert [cell.id for cell in found] == [
        "dense,overlap=off",
        "dense,overlap=on",
        "fp16,overlap=on",
        "topk,ratio=0.02",
        "topk,ratio=0.1",
    ]
    chosen = build_scenario({"methods": ["dense,overlap=on"], "baseline": "none"}).cells()
    assert [cell.id for cell in chosen] == ["dense,overlap=on"]


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, ["fp16,overlap=on"]),
        ({"backend": "nccl"}, ["bf16,overlap=on"]),
        ({"device": "cuda"}, ["bf16,overlap=on"]),
        ({"device": "cuda", "backend": "gloo"}, ["fp16,overlap=on"]),
        ({"baseline": "bf16"}, ["bf16,overlap=on"]),
        ({"baseline": "none"}, []),
        ({"workers": 1}, []),
        ({"methods": ["dense,overlap=off", "topk", "fp16,overlap=on"]}, []),
        ({"methods": ["dense,overlap=off", "topk", "bf16,overlap=on"]}, []),
        (
            {"methods": ["dense,overlap=off", "topk", "bf16,overlap=on"], "baseline": "fp16"},
            ["fp16,overlap=on"],
        ),
    ],
)
def test_dense_in_16_bits_is_a_baseline_of_every_run(given: dict[str, Any], added: list[str]) -> None:
    scenario = build_scenario({"methods": ["dense,overlap=off", "topk"], **given})
    without = build_scenario({"methods": ["dense,overlap=off", "topk"], **given, "baseline": "none"})
    found = [cell.id for cell in scenario.cells()]
    assert [name for name in found if name not in {cell.id for cell in without.cells()}] == added
    assert found[0] == "dense,overlap=off"
    assert found[1:][: len(added)] == added, "behind dense"
    assert scenario.resolved().resolved().methods == scenario.resolved().methods


@pytest.mark.parametrize("way", ["on", "off", True, False])
def test_overlap_is_the_default_of_methods_that_do_not_say(way: str | bool) -> None:
    methods = ["dense", "fp16", "topk,overlap=on", "bf16,overlap=off", "my_module:factory"]
    for compute in ({}, {"compute": "50ms"}):
        cells = build_scenario({"methods": methods, "overlap": way, "baseline": "none", **compute}).cells()
        found = [(cell.name, cell.params.get("overlap", False)) for cell in cells]
        default = way in ("on", True)
        assert found == [
            ("dense", False),
            ("dense", True),
            ("fp16", default),
            ("topk", True),
            ("bf16", False),
            ("my_module:factory", default),
        ]


def test_a_replay_follows_a_changed_overlap(tmp_path: Path) -> None:
    given = {"methods": ["fp16", "topk,overlap=off"], "compute": "50ms", "baseline": "none"}
    first = build_scenario(given).resolved()
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"schema_version": 1, "scenario": first.model_dump(mode="json")}))
    assert build_scenario({}, path).cells() == first.cells()
    changed = build_scenario({"overlap": "off"}, path).cells()
    assert [cell.params.get("overlap", False) for cell in changed] == [False, False]


def test_methods_overlap_by_default_beside_an_emulated_accelerator() -> None:
    methods = ["fp16", "topk", "topk,overlap=off"]
    found = build_scenario({"methods": methods, "compute": "50ms"}).cells()
    assert [cell.params["overlap"] for cell in found] == [True, True, False]


def test_a_method_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        build_scenario({"methods": ["topk", "topk,ratio=0.01"]})


def test_more_workers_than_cores_are_replayed_with_the_host_to_themselves() -> None:
    cores = available_cores()
    many = build_scenario({"workers": cores + 1}).resolved()
    assert (many.execution, many.threads) == ("replayed", cores)
    few = build_scenario({"workers": 1}).resolved()
    assert (few.execution, few.threads) == ("concurrent", cores)
    forced = build_scenario({"workers": cores + 1, "execution": "concurrent", "threads": 3}).resolved()
    assert (forced.execution, forced.threads) == ("concurrent", 3)


def test_a_scenario_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Scenario().workers = 2  # type: ignore[misc]


def method() -> st.SearchStrategy[str]:
    ratio = st.sampled_from(["", ",ratio=0.5", ",ratio=1e-3"])
    sparse = st.sampled_from(["topk", "topk-allgather", "topk-dense"])
    return st.one_of(
        st.sampled_from(["dense", "fp16", "dense,overlap=off"]), st.builds(lambda a, b: a + b, sparse, ratio)
    )


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "workers": st.integers(1, 64),
            "bandwidth": st.sampled_from(["1mbps", "2.5gbit", "125MB/s"]),
            "ratio": st.sampled_from(["0.01", "1%", "1"]),
            "methods": st.lists(method(), min_size=1, max_size=3, unique_by=lambda text: text.split(",")[0]),
            "compute": st.sampled_from(["50ms", "1s"]),
            "seed": st.integers(0, 2**31 - 1),
            "model": st.sampled_from(["simple_cnn", "resnet50", "torchvision:vgg11", "my_module:build"]),
        },
    )
)
def test_a_resolved_scenario_survives_its_own_file(values: dict[str, Any]) -> None:
    found = build_scenario(values).resolved()
    assert found.resolved() == found
    assert Scenario.model_validate(json.loads(json.dumps(found.model_dump(mode="json")))) == found


def test_a_result_file_replays_its_scenario(tmp_path: Path) -> None:
    found = build_scenario({"workers": 2, "ratio": "3%", "compute": "20ms"}).resolved()
    path = tmp_path / "result.json"
    path.write_text(
        json.dumps({"schema_version": 1, "scenario": found.model_dump(mode="json")}), encoding="utf-8"
    )
    assert build_scenario({}, path).resolved() == found
    assert {cell.params.get("ratio") for cell in build_scenario({"ratio": "7%"}, path).cells()} == {
        None,
        0.07,
    }


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_of_the_command_line_exists(name: str) -> None:
    assert callable(pkgutil.resolve_name(METHODS[name].impl))
    assert MethodSpec(name=name).id == name
