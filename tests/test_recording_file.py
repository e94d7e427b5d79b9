"""A recording comes back as it was written, without torch, and whatever is none is answered in one line."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netsim_ddp.errors import UsageError
from netsim_ddp.results.recording_file import read, read_gradients
from tests.planted_recordings import file, gradients, recording, step


def test_a_recording_comes_back_as_it_was_written(tmp_path: Path) -> None:
    of = recording(ranks=2)
    found, sets = read_gradients(file(tmp_path / "r.netsim", of))
    assert found == of
    assert read(tmp_path / "r.netsim").key == of.key
    assert all(np.array_equal(a, b) for a, b in zip(sets, gradients(of), strict=True))


def test_a_recording_is_read_without_torch(tmp_path: Path) -> None:
    file(tmp_path / "r.netsim")
    code = (
        "import sys; from pathlib import Path; from netsim_ddp.results.recording_file import read_gradients; "
        "read_gradients(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "r.netsim")], check=True, timeout=60)


def test_where_a_step_went() -> None:
    of = step(exposed_s=0.1)
    assert of.computed_s == pytest.approx(0.034)
    assert of.exposed_s == pytest.approx(0.1)
    assert of.data_s == pytest.approx(0.004)
    assert of.forward_pass_s == pytest.approx(0.01)
    assert of.backward_pass_s == pytest.approx(0.02)
    assert of.after_s == pytest.approx(0.006)


def test_a_bucket_waits_for_those_before_it() -> None:
    assert step(full_s=[0.03, 0.02]).ready_s == [0.03, 0.03]
    assert step(full_s=[None, 0.02]).ready_s == [0.02, 0.02]


def _changed(path: Path, change: dict[str, Any]) -> Path:
    """A recording in which keys, by their path with dots, have other values."""
    with zipfile.ZipFile(file(path)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(content["recording.json"])
    for key, value in change.items():
        at, last = data, key.split(".")[-1]
        for part in key.split(".")[:-1]:
            at = at[int(part) if part.isdigit() else part]
        at[int(last) if last.isdigit() else last] = value
    content["recording.json"] = json.dumps(data).encode()
    return _archive(path, content)


def _archive(path: Path, content: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, each in content.items():
            archive.writestr(name, each)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "has schema version 99"),
        ({"kind": "steps"}, "does not say so"),
        ({"extra": 1}, "extra"),
        ({"ranks.0.steps.0.end_s": "NaN"}, "ranks.0.steps.0.end_s"),
        ({"ranks.0.steps.0.end_s": -1}, "ranks.0.steps.0.end_s"),
        ({"ranks.0.steps.0.end_s": 0.001}, "not in order"),
        ({"ranks.0.steps.0.full_s": [0.1]}, "does not have 2 buckets"),
        ({"ranks.0.steps": []}, "ranks.0.steps"),
        ({"buckets.0.parameters": ["nobody"]}, "not in parameters"),
        ({"buckets.0.numel": 3}, "has parameters of 2100"),
        ({"parameters.0.shape": [-1]}, "parameters.0.shape.0"),
        ({"gradients.kept": [1, 2]}, "gradients.kept"),
        ({"gradients.scales": [[1.0]]}, "gradients.scales"),
        ({"gradients.kept": [64, 64, 64]}, "has 10928 bytes"),
        ({"gradients.kept.0": 2999}, "gradients.kept"),
        ({"gradients.kept.0": 2944}, "float16"),
        ({"world_size": 0}, "world_size"),
    ],
)
def test_a_recording_that_contradicts_itself_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_gradients(_changed(tmp_path / "r.netsim", change))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def _nan(path: Path) -> None:
    of = recording()
    sets = gradients(of)
    sets[1][5] = np.nan
    with zipfile.ZipFile(file(path, of)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    for number, values in enumerate(sets):
        held = io.BytesIO()
        np.save(held, values)
        content[f"gradients/{number}.npy"] = held.getvalue()
    _archive(path, content)


def _pickled_array(path: Path) -> None:
    held = io.BytesIO()
    np.save(held, np.array([print], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(file(path)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    _archive(path, content | {"gradients/0.npy": held.getvalue()})


def _flipped(path: Path) -> None:
    whole = bytearray(file(path).read_bytes())
    whole[whole.index(b"NUMPY") + 2000] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(file(path).read_bytes()[:-500]), "its end is missing"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is a pickle"),
        (lambda path: path.write_text('{"kind": "steps"}'), "is JSON"),
        (lambda path: path.write_bytes(b"\x00" * 4096), "is not a recording"),
        (lambda path: path.mkdir(), "is no file"),
        (lambda path: _archive(path, {"archive/data.pkl": b""}), "torch.save"),
        (lambda path: _archive(path, {"a": b""}), "without recording.json"),
        (lambda path: _archive(path, {"recording.json": b"{}"}), "does not say so"),
        (lambda path: _archive(path, {"recording.json": b"\xff\xfe\xfd"}), "is not"),
        (lambda path: _archive(path, {"recording.json": b"0" * 2**20}, zipfile.ZIP_DEFLATED), "compressed"),
        (_nan, "not finite"),
        (_pickled_array, "is damaged"),
        (_flipped, "is damaged"),
    ],
)
def test_what_is_no_recording_is_refused_in_one_line(tmp_path: Path, make: Any, message: str) -> None:
    path = tmp_path / "r.netsim"
    make(path)
    with pytest.raises(UsageError, match=message) as caught:
        read_gradients(path)
    assert "\n" not in str(caught.value)


def test_a_file_without_end_and_a_huge_one_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no file"):
        read(Path("/dev/zero"))
    with pytest.raises(UsageError, match="No such file"):
        read(tmp_path / "none")
    huge = tmp_path / "huge"
    with huge.open("wb") as sparse:
        sparse.truncate(2 << 30)
    with pytest.raises(UsageError, match="is not a recording"):
        read(huge)
    with huge.open("wb") as sparse:
        sparse.truncate(20 << 30)
    with pytest.raises(UsageError, match="is 20 GiB"):
        read(huge)
