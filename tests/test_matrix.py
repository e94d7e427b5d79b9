"""A matrix expands as GitHub Actions' does, and every mistake in one is told with its file, key and value."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from netsim_ddp.errors import UsageError
from netsim_ddp.scenario import Scenario
from netsim_ddp.scenario.files import built_in, find
from netsim_ddp.scenario.matrix import combinations, expand, override, parse, parse_set


def matrix(text: str) -> Any:
    return parse(yaml.safe_load(text), "s.yaml")


def made(text: str) -> list[dict[str, Any]]:
    return combinations(matrix(text))


def test_the_last_axis_changes_fastest() -> None:
    assert made("matrix: {workers: [2, 4], ratio: [1%, 10%]}") == [
        {"workers": 2, "ratio": "1%"},
        {"workers": 2, "ratio": "10%"},
        {"workers": 4, "ratio": "1%"},
        {"workers": 4, "ratio": "10%"},
    ]


def test_a_scenario_without_a_matrix_is_one_point() -> None:
    assert made("model: simple_cnn") == [{}]


def test_include_does_what_githubs_own_example_shows() -> None:
    """docs.github.com, "Expanding or adding matrix configurations", with keys that exist here."""
    text = """
    matrix:
      model: [apple, pear]
      dataset: [cat, dog]
      include:
        - {backend: green}
        - {backend: pink, dataset: cat}
        - {model: apple, device: circle}
        - {model: banana}
        - {model: banana, dataset: cat}
    """
    assert made(text) == [
        {"model": "apple", "dataset": "cat", "backend": "pink", "device": "circle"},
        {"model": "apple", "dataset": "dog", "backend": "green", "device": "circle"},
        {"model": "pear", "dataset": "cat", "backend": "pink"},
        {"model": "pear", "dataset": "dog", "backend": "green"},
        {"model": "banana"},
        {"model": "banana", "dataset": "cat"},
    ]


def test_exclude_takes_away_what_agrees_with_all_it_names_and_include_comes_after() -> None:
    text = """
    matrix:
      workers: [2, 4]
      ratio: [1%, 10%]
      delay: [0, 5ms]
      exclude:
        - {workers: 4}
        - {ratio: 0.1, delay: 5ms}
      include:
        - {workers: 4, ratio: 10%, delay: 5ms}
    """
    assert made(text) == [
        {"workers": 2, "ratio": "1%", "delay": 0},
        {"workers": 2, "ratio": "1%", "delay": "5ms"},
        {"workers": 2, "ratio": "10%", "delay": 0},
        {"workers": 4, "ratio": "10%", "delay": "5ms"},
    ]


def test_a_matrix_of_inclusions_alone() -> None:
    found = made("matrix: {include: [{workers: 2}, {workers: 4, delay: 5ms}]}")
    assert found == [{"workers": 2}, {"workers": 4, "delay": "5ms"}]


def test_points_have_the_settings_of_the_file_and_of_their_axes() -> None:
    text = "{ratio: 5%, workers: 3, matrix: {bandwidth: [10mbps, '100mbps:20mbps'], methods: [topk, [dense, fp16]]}}"
    points = expand(matrix(text), Scenario)
    assert [point.settings.bandwidth_bps for point in points] == [10**7, 10**7, 10**8, 10**8]
    assert points[3].settings.bandwidth_down_bps == 2 * 10**7
    assert [[m.name for m in point.settings.methods] for point in points[:2]] == [["topk"], ["dense", "fp16"]]
    assert {(point.settings.ratio, point.settings.workers) for point in points} == {(0.05, 3)}
    assert points[0].axes == {"bandwidth": "10mbps", "methods": "topk"}


def test_a_profile_is_an_axis_too() -> None:
    points = expand(matrix("matrix: {link_profile: [lan-100m, wan-us-eu]}"), Scenario)
    assert [(p.settings.bandwidth_bps, p.settings.delay_s) for p in points] == [(10**8, 0.0), (10**9, 0.04)]


BAD = {
    "[1]": "s.yaml holds no scenario (write keys such as",
    "matrix: 3": "s.yaml: matrix 3 has no axes (write for example matrix: {bandwidth:",
    "matrix: {workers: 3}": "s.yaml: matrix: workers 3 is not a list (write workers: [3], or workers: 3 above",
    "matrix: {workers: []}": "s.yaml: matrix: workers has no values (leave workers away)",
    "matrix: {workers: [2, 2]}": "s.yaml: matrix: workers names 2 twice (name it once)",
    "matrix: {bandwidth: [1gbps, 1000mbps]}": "s.yaml: matrix: bandwidth names '1000mbps' twice: '1gbps' is the same",
    "matrix: {wrokers: [2]}": "s.yaml: matrix: unknown key 'wrokers' (did you mean 'workers'? known:",
    "matrix: {workers: [2], include: [{ratoi: 1}]}": "s.yaml: include: unknown key 'ratoi' (did you mean 'ratio'?",
    "matrix: {workers: [2], include: {workers: 3}}": "s.yaml: include {'workers': 3} is not a list of combinations",
    "matrix: {workers: [2], exclude: [{ratio: 1%}]}": "s.yaml: exclude: 'ratio' is not an axis (known: workers)",
    "matrix: {workers: [2], exclude: [{workers: 3}]}": "s.yaml: exclude: workers has no value 3 (it has 2)",
    "matrix: {workers: [2], exclude: [{workers: 2}]}": "s.yaml: the matrix is empty: everything is excluded",
    "{matrix: {workers: [2]}, exclude: [{workers: 2}]}": "s.yaml: exclude stands outside of the matrix (indent",
    "matrix: {workers: [two]}": "s.yaml: workers 'two' is not a whole number (write for example workers: 4)",
    "matrix: {bandwidth: [100]}": "s.yaml: bandwidth '100' has no unit (write 100mbps or 100gbps)",
    "matrix: {methods: [topkk]}": "s.yaml: unknown method 'topkk' (did you mean 'topk'?",
    "{command: fly, model: simple_cnn}": "s.yaml: command 'fly' is not known here (choose from run, train, predict)",
}


@pytest.mark.parametrize("text", BAD)
def test_a_mistake_is_told_with_its_file_key_and_value(text: str) -> None:
    with pytest.raises(UsageError) as error:
        expand(matrix(text), Scenario)
    assert f"{error.value.message} ({error.value.hint})".startswith(BAD[text])


def test_a_matrix_without_end_is_refused() -> None:
    axes = ", ".join(f"{key}: {list(range(1, 30))}" for key in ("workers", "steps", "seed"))
    with pytest.raises(UsageError, match="the matrix has 24389 combinations"):
        made(f"matrix: {{{axes}}}")


def test_set_changes_keys_and_axes() -> None:
    text = """
    steps: 20
    matrix:
      workers: [2, 4]
      delay: [0, 5ms]
      exclude: [{workers: 4, delay: 5ms}]
      include: [{workers: 8, delay: 0}, {workers: 2, ratio: 5%}]
    """

    def with_set(*words: str) -> list[dict[str, Any]]:
        return combinations(override(matrix(text), parse_set(words, yaml.safe_load)))

    assert override(matrix(text), parse_set(["steps=4"], yaml.safe_load)).base == {"steps": 4}
    assert with_set("workers=2") == [
        {"workers": 2, "delay": 0, "ratio": "5%"},
        {"workers": 2, "delay": "5ms", "ratio": "5%"},
    ]
    assert with_set("workers=[4]", "delay=[5ms, 9ms]") == [{"workers": 4, "delay": "9ms"}]
    assert {each["seed"] for each in with_set("seed=[1, 2]")} == {1, 2}
    assert all("ratio" not in each for each in with_set("ratio=1%"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["steps"], "--set 'steps' is not KEY=VALUE (write for example --set steps=4)"),
        (["steps=1", "steps=2"], "--set gives 'steps' twice (for several values write steps=[A, B])"),
        (["stpes=1"], "--set: unknown key 'stpes' (did you mean 'steps'?"),
        (["steps=many"], "--set: steps 'many' is not a whole number (write for example --set steps=20)"),
        (["workers=[2, x]"], "--set: workers 'x' is not a whole number (write for example --set workers=4)"),
    ],
)
def test_a_mistake_in_set_is_told_as_one(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as error:
        expand(override(matrix("workers: 2"), parse_set(words, yaml.safe_load)), Scenario)
    assert f"{error.value.message} ({error.value.hint})".startswith(said)


def test_what_is_written_down_reads_back_the_same() -> None:
    text = (
        "{title: T, ratio: 5%, matrix: {workers: [2, 4], exclude: [{workers: 4}], include: [{delay: 5ms}]}}"
    )
    first = matrix(text)
    assert parse(first.to_json(), "s.yaml") == first


def test_a_scenario_is_found_by_its_name_or_its_path() -> None:
    assert find("quick") == built_in()["quick"]
    assert str(find("my/quick.yaml")) == "my/quick.yaml"
    with pytest.raises(UsageError, match="scenario 'quikc' is not known"):
        find("quikc")
