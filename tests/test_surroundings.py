"""netsim in surroundings that are not a developer's terminal: closed and ASCII streams, full disks, pipes that end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BASELINE = ROOT / "reports" / "baseline.json"
RUN = [
    "run",
    "-n",
    "2",
    "--link",
    "none",
    "--steps",
    "2",
    "--warmup",
    "0",
    "--repeats",
    "1",
    "--method",
    "topk",
]
DEADLINE_S = 240


def netsim(words: list[str], folder: Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    return subprocess.run(
        [sys.executable, "-m", "netsim_ddp", *words],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=options.pop("stderr", subprocess.PIPE),
        timeout=DEADLINE_S,
        check=False,
        **options,
    )


def shell(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """``script`` in bash, where NETSIM is the command."""
    variables = {"NETSIM": f"{sys.executable} -m netsim_ddp", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


ASCII = {"PYTHONIOENCODING": "ascii"}
EXPORTERS = [
    "--markdown",
    "--html",
    "--csv",
    "--junit",
    "--latex",
    "--bibtex",
    "--github-benchmark",
    "--bencher",
]


@pytest.mark.parametrize("flag", EXPORTERS)
def test_a_document_is_utf8_on_an_ascii_stdout(flag: str, tmp_path: Path) -> None:
    wanted = netsim(["report", str(BASELINE), flag, "-"], tmp_path)
    found = netsim(["report", str(BASELINE), flag, "-"], tmp_path, env=ASCII)
    assert (found.returncode, found.stderr) == (0, b"")
    assert found.stdout == wanted.stdout
    found.stdout.decode("utf-8")


@pytest.mark.parametrize(
    "words",
    [
        ["report", str(BASELINE)],
        ["compare", str(BASELINE), str(BASELINE)],
        ["compare", str(BASELINE), str(BASELINE), "--markdown", "-"],
        ["compare", str(BASELINE), str(BASELINE), "--json", "-"],
        ["sweep", str(ROOT / "scenarios" / "ratio.yaml"), "--dry-run"],
        ["run", "--bandwidth", "1µbps"],
        ["report", "ergebnis–1.json"],
        ["--help"],
    ],
)
def test_no_command_breaks_on_ascii_streams(words: list[str], tmp_path: Path) -> None:
    wanted = netsim(words, tmp_path)
    found = netsim(words, tmp_path, env=ASCII)
    assert found.returncode == wanted.returncode
    assert b"Traceback" not in found.stderr
    if "-" not in words:
        assert found.stdout.isascii()
        assert found.stderr.isascii()


@pytest.mark.parametrize(
    "words",
    [
        f"report {BASELINE}",
        f"report {BASELINE} --html -",
        f"compare {BASELINE} {BASELINE} --json -",
        "--help",
        "run --help",
        "schema",
        "scenarios",
        "doctor cores",
    ],
)
def test_a_reader_that_leaves_changes_nothing(words: str, tmp_path: Path) -> None:
    done = shell(f"$NETSIM {words} | true; echo ${{PIPESTATUS[0]}}", tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("0", "")


def test_a_gate_stays_red_when_its_reader_leaves(tmp_path: Path) -> None:
    slower = json.loads(BASELINE.read_text())
    for cell in slower["cells"]:
        for repeat in cell["repeats"]:
            for rank in repeat["ranks"]:
                for step in rank["steps"]:
                    step["wall_s"] *= 2
    (tmp_path / "slower.json").write_text(json.dumps(slower))
    done = shell(f"$NETSIM compare {BASELINE} slower.json | true; echo ${{PIPESTATUS[0]}}", tmp_path)
    assert done.stdout.strip() == netsim_code(["compare", str(BASELINE), "slower.json"], tmp_path)


def netsim_code(words: list[str], folder: Path) -> str:
    code = netsim(words, folder).returncode
    assert code == 5
    return str(code)


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closing: str, tmp_path: Path) -> None:
    done = shell(f"$NETSIM {' '.join(RUN)} --json out.json {closing}; echo $? > code", tmp_path)
    assert (tmp_path / "code").read_text().strip() == "0", done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["status"] == "complete"


def test_a_full_stdout_is_said(tmp_path: Path) -> None:
    for words in (["report", str(BASELINE)], ["report", str(BASELINE), "--csv", "-"], ["--help"]):
        with open("/dev/full", "wb") as full:
            done = netsim(words, tmp_path, stdout=full)
        assert done.returncode == 4, words
        assert done.stderr.count(b"\n") == 1, done.stderr
        assert b"No space left on device" in done.stderr


@pytest.fixture
def full(tmp_path: Path) -> Any:
    """A folder on a disk that takes 8 KiB."""
    folder = tmp_path / "full"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k,nr_inodes=60", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no small disk can be mounted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.privileged
def test_a_full_disk_does_not_lose_the_table(full: Path) -> None:
    (full / "fill").write_bytes(b"x" * 8192)
    done = netsim([*RUN, "--repeats", "2"], full)
    said = done.stderr.decode()
    assert done.returncode == 0, said
    assert b"topk" in done.stdout
    assert b"saved" not in done.stdout
    assert "this run is not saved" in said
    assert "what was measured is in" not in said
    assert said.count("No space left on device") <= 2
    assert not [path for path in (full / ".netsim").glob("*.json") if not path.is_symlink()]


@pytest.mark.privileged
def test_a_file_that_was_asked_for_and_cannot_be_written_is_an_error(full: Path, tmp_path: Path) -> None:
    (full / "fill").write_bytes(b"x" * 8192)
    done = netsim([*RUN, "--json", str(full / "out.json")], tmp_path)
    said = done.stderr.decode()
    assert done.returncode == 4, said
    assert b"topk" in done.stdout
    assert "cannot write" in said.splitlines()[-1]
    assert not (full / "out.json").exists()
    saved = [path for path in (tmp_path / ".netsim").glob("*.json") if not path.is_symlink()]
    assert json.loads(saved[0].read_text())["status"] == "complete"


@pytest.mark.privileged
@pytest.mark.parametrize("flag", EXPORTERS)
def test_an_export_to_a_full_disk_is_one_line(flag: str, full: Path, tmp_path: Path) -> None:
    (full / "fill").write_bytes(b"x" * 8192)
    done = netsim(["report", str(BASELINE), flag, str(full / "out")], tmp_path)
    assert done.returncode == 4
    assert done.stderr.count(b"\n") == 1
    assert b"cannot write" in done.stderr
    assert [path.name for path in full.iterdir()] == ["fill"]


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    done = shell(f"ulimit -f 1; $NETSIM report {BASELINE} --html page.html", tmp_path)
    assert done.returncode == 4
    assert "ulimit -f" in done.stderr
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("target", ["missing/out", "folder"])
@pytest.mark.parametrize("flag", ["--csv", "--html"])
def test_a_path_that_cannot_be_is_refused_first(flag: str, target: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    done = netsim(["report", str(BASELINE), flag, target], tmp_path)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert f"cannot write {target}".encode() in done.stderr


def test_a_private_umask_stays_private(tmp_path: Path) -> None:
    done = shell(f"umask 077; $NETSIM report {BASELINE} --csv out.csv", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o600
