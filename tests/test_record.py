"""The result file: what is written is read back; what is damaged is refused in one line."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from netsim_ddp.errors import UsageError
from netsim_ddp.results import record
from netsim_ddp.results.record import Result, load, parse, save, to_json
from tests.test_summary import make_cell, make_result


@pytest.fixture
def result() -> Result:
    return make_result(
        [make_cell("dense", [1000, 1010], tx=1e6), make_cell("topk", [100], params={"ratio": 0.01})]
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

    monkeypatch.setattr(record.os, "fsync", broken)
    with pytest.raises(UsageError, match="No space left on device"):
        save(result.model_copy(update={"command": "another"}), path)
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["result.json"]


def test_an_interrupted_write_leaves_no_temporary_file(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(record.os, "replace", interrupted)
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
    monkeypatch.setattr(record, "MAX_FILE_BYTES", 3)
    (tmp_path / "large.json").write_text("{}  ")
    with pytest.raises(UsageError, match="larger than"):
        load(tmp_path / "large.json")


@pytest.mark.parametrize("data", [[], 3, None, "text", {}, {"cells": []}])
def test_another_json_document_is_no_result(data: Any) -> None:
    with pytest.raises(UsageError, match=r"x\.json is not a netsim result file"):
        parse(data, source="x.json")


@pytest.mark.parametrize("version", [3, 99, "1", 1.5])
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
    assert record.now_utc().endswith("+00:00")
