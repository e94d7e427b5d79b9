"""The result file: what is written is read back; what is damaged is refused in one line."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from netsim_ddp.errors import EnvironmentFault, UsageError
from netsim_ddp.results import files
from netsim_ddp.results.compare import Rules, compare
from netsim_ddp.results.files import load, parse, save, to_json
from netsim_ddp.results.record import Result, Summary
from netsim_ddp.results.sides import side_of
from netsim_ddp.results.summary import summarise
from tests.results_factory import make_cell, make_result


@pytest.fixture
def result() -> Result:
    return make_result(
        [
            make_cell("dense", [1000, 1010], tx=1e6, loss=2.3, predicted=1e6),
            make_cell("topk", [100], params={"ratio": 0.01}),
        ]
    )


def document(result: Result) -> Any:
    return json.loads(to_json(result))


def test_round_trip(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    save(result, path)
    assert load(path) == result
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    save(load(path), path)
    assert load(path) == result
    assert os.listdir(tmp_path) == ["result.json"], "no temporary file stays behind"


def test_a_diverged_loss_stays_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    save(make_result([make_cell("topk", [100], loss=math.nan)]), path)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    loss = load(path).cells[0].repeats[0].ranks[0].steps[0].loss
    assert loss is not None
    assert math.isnan(loss)


def test_a_failed_write_keeps_the_old_file(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    save(result, path)
    before = path.read_text()

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(EnvironmentFault, match="No space left on device"):
        save(result.model_copy(update={"command": "another"}), path)
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["result.json"]


def test_an_interrupted_write_leaves_no_temporary_file(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(result, tmp_path / "result.json")
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_named(result: Result, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent/result\.json"):
        save(result, tmp_path / "absent" / "result.json")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"not json", b"\xff\xfe\x00", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
    ids=["empty", "cut", "text", "binary", "deep", "digits"],
)
def test_damaged_files_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"damaged\.json is not JSON") as caught:
        load(path)
    assert "\n" not in caught.value.message


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*absent\.json: No such file"):
        load(tmp_path / "absent.json")
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path)
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 3)
    (tmp_path / "large.json").write_text("{}  ")
    with pytest.raises(UsageError, match="larger than"):
        load(tmp_path / "large.json")


def test_a_file_without_an_end_is_not_read_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(100 * 10**6)
    with pytest.raises(UsageError, match=r"huge\.json is larger than 64 MiB: not a result file"):
        load(tmp_path / "huge.json")
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1 << 20)
    with pytest.raises(UsageError, match="/dev/zero is larger than 1 MiB"):
        load(Path("/dev/zero"))  # which says that it is empty


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("key", ["wall_s", "loss", "predicted_tx_bytes", "tx_bytes", "measured_bps"])
def test_what_is_no_number_is_refused_where_it_would_spread(
    key: str, word: str, result: Result, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    text = re.sub(rf'("{key}": )[^,\n]+', rf"\g<1>{word}", to_json(result), count=1)
    path.write_text(text)
    if key == "loss":  # a diverged loss is a finding; this one was written by another tool
        assert not math.isfinite(load(path).cells[0].repeats[0].ranks[0].steps[0].loss or 0)
        return
    with pytest.raises(UsageError, match=r"x\.json is not JSON: -?\w+ is no number"):
        load(path)
    path.write_text(text.replace(word, f'"{word}"'))  # as pydantic writes it, which strict JSON lets through
    with pytest.raises(UsageError, match=key):
        load(path)


def test_what_a_hostile_file_says_is_quoted_on_one_printable_line(result: Result) -> None:
    evil = "\x1b[31m<script>\n" + "x" * 10_000
    cases: list[dict[str, Any]] = [
        {evil: 1},
        {"schema_version": evil},
        {"schema_version": [evil] * 100},
        {"kind": evil},
        {"status": evil},
    ]
    for change in cases:
        with pytest.raises(UsageError) as caught:
            parse({**document(result), **change}, source="x.json")
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 300


def test_deep_nesting_ends_in_a_line_and_not_in_a_crash(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    for depth in (500, 5_000, 200_000):
        deep = "[" * depth + "]" * depth
        path.write_text(to_json(result).replace('"environment": {', f'"environment": {{"deep": {deep},', 1))
        with suppress(UsageError):
            load(path)


FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize(("version", "model"), [(1, None), (2, "simple_cnn"), (3, "simple_cnn")])
def test_files_of_every_version_are_read(version: int, model: str | None) -> None:
    found = load(FIXTURES / f"result-v{version}.json")
    assert found.schema_version == version
    assert [cell.id for cell in found.cells] == ["dense,overlap=off", "dense,overlap=on", "topk,ratio=0.01"]
    assert {cell.model for cell in found.cells} == {model}
    assert all(len(cell.repeats) == 2 for cell in found.cells)
    # Older files have no bounds, and no ratios where the host limited dense.
    ratios = {name for name in Summary.model_fields if name.startswith("speedup")}
    summaries = [cell.summary.model_dump(exclude=ratios) for cell in found.cells if cell.summary]
    again = [cell.summary for cell in summarise(found.cells) if cell.summary]
    assert len(summaries) == 3
    assert [summary.model_dump(exclude=ratios) for summary in again] == summaries
    for before, after in zip(found.cells, again, strict=True):
        if before.summary and before.summary.speedup is not None:
            assert after.speedup == before.summary.speedup


def test_files_of_two_versions_are_comparable() -> None:
    sides = [side_of(FIXTURES / f"result-v{version}.json") for version in (1, 2)]
    found = compare(sides[0], sides[1], Rules(only=frozenset({"bytes"})))
    assert len(found.pairs) == 3
    assert {row.figure for pair in found.pairs for row in pair.figures if not row.changed} == {
        "payload bytes",
        "sent bytes",
        "residual bytes",
        "parameters",
    }
    assert found.failures == []


@pytest.mark.parametrize("data", [[], 3, None, "text", {}, {"cells": []}])
def test_another_json_document_is_no_result(data: Any) -> None:
    with pytest.raises(UsageError, match=r"x\.json is not a netsim result file"):
        parse(data, source="x.json")


@pytest.mark.parametrize("version", [5, 99, "1", 1.5])
def test_a_newer_schema_says_so(version: Any, result: Result) -> None:
    with pytest.raises(UsageError, match=f"schema version {version}") as caught:
        parse({**document(result), "schema_version": version}, source="x.json")
    assert caught.value.hint == "upgrade netsim"


def test_an_older_schema_than_the_first_is_refused(result: Result) -> None:
    with pytest.raises(UsageError, match="schema_version"):
        parse({**document(result), "schema_version": 0}, source="x.json")


@pytest.mark.parametrize("key", ["tool", "status", "environment", "scenario", "command", "created_utc"])
def test_a_missing_key_is_named(key: str, result: Result) -> None:
    data = document(result)
    del data[key]
    with pytest.raises(UsageError, match=rf"x\.json: {key}: Field required") as caught:
        parse(data, source="x.json")
    assert "\n" not in caught.value.message


def test_a_wrong_value_is_named_where_it_stands(result: Result) -> None:
    data = document(result)
    data["cells"][1]["repeats"][0]["ranks"][1]["steps"][2]["wall_s"] = "soon"
    with pytest.raises(UsageError, match=r"cells\.1\.repeats\.0\.ranks\.1\.steps\.2\.wall_s"):
        parse(data, source="x.json")


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, "NaN"])
def test_a_time_that_is_no_time_is_refused(value: Any, result: Result) -> None:
    data = document(result)
    data["cells"][0]["repeats"][0]["ranks"][0]["steps"][0]["wall_s"] = value
    with pytest.raises(UsageError, match="wall_s"):
        parse(data, source="x.json")


def test_an_unknown_key_is_refused(result: Result) -> None:
    with pytest.raises(UsageError, match=r"x\.json: surprise"):
        parse({**document(result), "surprise": 1}, source="x.json")


def test_the_time_of_creation_is_utc() -> None:
    assert files.now_utc().endswith("+00:00")
