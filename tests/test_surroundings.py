"""netsim in surroundings that are not a developer's terminal: closed and ASCII streams, full disks, pipes that end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import FORKED, ROOT, answer, complaint, instead
from tests.distributed.test_run import tc_or_skip
from tests.forking import ADDRESS, address

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
    environment = os.environ | {"PYTHONPATH": str(ROOT), ADDRESS: address()} | options.pop("env", {})
    return subprocess.run(
        [*FORKED, *words],
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
    wanted = answer(["report", str(BASELINE), flag, "-"], tmp_path)
    found = netsim(["report", str(BASELINE), flag, "-"], tmp_path, env=ASCII)
    assert (found.returncode, found.stderr) == (0, b"")
    assert found.stdout.decode("utf-8") == wanted.stdout


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
    wanted = answer(words, tmp_path)
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
    (tmp_path / "base.json").write_text(
        json.dumps(_benchmarks({"t.py::x": [1e-3 + i * 1e-6 for i in range(50)]}))
    )
    (tmp_path / "new.json").write_text(
        json.dumps(_benchmarks({"t.py::x": [2e-3 + i * 1e-6 for i in range(50)]}))
    )
    assert answer(["compare", "base.json", "new.json"], tmp_path).returncode == 5
    done = shell("$NETSIM compare base.json new.json | true; echo ${PIPESTATUS[0]}", tmp_path)
    assert done.stdout.strip() == "5"


def _benchmarks(rounds: dict[str, list[float]]) -> dict[str, Any]:
    """As pytest-benchmark writes them."""
    return {
        "machine_info": {},
        "benchmarks": [
            {"fullname": name, "name": name, "stats": {"data": data}, "extra_info": {}}
            for name, data in rounds.items()
        ],
    }


def test_a_round_of_zero_seconds_leaves_out_its_benchmark_alone(tmp_path: Path) -> None:
    good = [1e-3 + i * 1e-6 for i in range(50)]
    (tmp_path / "base.json").write_text(json.dumps(_benchmarks({"t.py::x": good, "t.py::y": good})))
    (tmp_path / "new.json").write_text(json.dumps(_benchmarks({"t.py::x": [0.0, *good], "t.py::y": good})))
    done = answer(["compare", "base.json", "new.json", "--markdown", "-"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "t.py::x is left out: 1 of its 51 rounds in new.json took 0 s" in done.stdout
    assert "t.py::y" in done.stdout
    (tmp_path / "new.json").write_text(json.dumps(_benchmarks({"t.py::x": [0.0, *good]})))
    assert "t.py::x is left out" in complaint(["compare", "base.json", "new.json"], tmp_path, code=6)
    (tmp_path / "new.json").write_text(json.dumps(_benchmarks({"t.py::x": [-1.0, *good]})))
    assert answer(["compare", "base.json", "new.json"], tmp_path).returncode == 2


@pytest.mark.parametrize("command", ["run", "train"])
def test_one_worker_has_no_speedup(command: str, tmp_path: Path) -> None:
    short = (
        ["--steps", "2", "--repeats", "1"]
        if command == "run"
        else ["--epochs", "1", "--steps-per-epoch", "2"]
    )
    done = netsim([command, "-n", "1", *short, "--json", "out.json"], tmp_path, env={"COLUMNS": "120"})
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.decode().split())
    assert "One worker exchanges nothing" in said
    assert "x dense" not in said
    (result,) = [json.loads((tmp_path / "out.json").read_text())]
    for cell in result["cells"]:
        found = cell["summary"] if command == "run" else cell["training"]
        for key in ("speedup", "speedup_vs_overlapped", "wire_reduction", "verdict", "time_ratio"):
            assert found.get(key) is None, key
    documents = {
        flag: answer(["report", "out.json", flag, "-"], tmp_path)
        for flag in ("--html", "--markdown", "--csv")
    }
    for document in documents.values():
        assert document.returncode == 0, document.stderr
        assert "x dense" not in document.stdout
    assert "One worker exchanges nothing" in documents["--markdown"].stdout


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_report_with_closed_streams(closing: str, tmp_path: Path) -> None:
    wanted = answer(["report", str(BASELINE), "--csv", "-"], tmp_path).stdout
    done = shell(f"$NETSIM report {BASELINE} --csv out.csv {closing}; echo $? > code", tmp_path)
    assert (tmp_path / "code").read_text().strip() == "0", done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert (tmp_path / "out.csv").read_text() == wanted


def test_a_run_with_all_streams_closed(tmp_path: Path) -> None:
    done = shell(f"$NETSIM {' '.join(RUN)} --json out.json <&- >&- 2>&-; echo $? > code", tmp_path)
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
    done = netsim(instead(RUN, "--repeats", "2"), full)
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
    said = complaint(["report", str(BASELINE), flag, str(full / "out")], tmp_path, code=4)
    assert "cannot write" in said
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
    assert f"cannot write {target}" in complaint(["report", str(BASELINE), flag, target], tmp_path)


def test_a_private_umask_stays_private(tmp_path: Path) -> None:
    done = shell(f"umask 077; $NETSIM report {BASELINE} --csv out.csv", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o600


def unshared(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """``script`` with mounts of its own."""
    if shell("unshare -m true", folder).returncode:
        pytest.skip("mounts of its own need root")
    return shell(f"exec unshare -m bash -c '{script}'", folder)


FULL = "mount -t tmpfs -o size=4k tmpfs /dev/shm; head -c 4096 /dev/zero > /dev/shm/full"
MISSING = (
    "mount --bind /dev /mnt; mount -t tmpfs tmpfs /dev; "
    "for f in null zero urandom random; do touch /dev/$f; mount --bind /mnt/$f /dev/$f; done"
)


@pytest.mark.privileged
@pytest.mark.parametrize("how", ["full", "missing"])
def test_without_shared_memory_one_line_says_so(how: str, tmp_path: Path) -> None:
    prepare = FULL if how == "full" else MISSING
    done = unshared(f"{prepare}; $NETSIM {' '.join(RUN)}", tmp_path)
    assert done.returncode == 4, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "no semaphore for the workers can be made in /dev/shm" in last
    assert "--shm-size" in last
    assert "Traceback" not in done.stderr
    done = unshared(f"{prepare}; $NETSIM doctor shm", tmp_path)
    assert done.returncode == 4
    assert "[FAIL] shm" in done.stdout


def test_the_doctor_knows_shared_memory(tmp_path: Path) -> None:
    done = answer(["doctor", "shm"], tmp_path)
    assert done.returncode == 0
    assert "[PASS] shm" in done.stdout


@pytest.mark.parametrize("link", ["bucket", "tc"])
def test_few_descriptors_are_enough_for_two_workers(link: str, tmp_path: Path) -> None:
    if link == "tc":
        tc_or_skip()
    words = f"run -n 2 --link {link} --steps 2 --warmup 1 --repeats 1 --method topk --bandwidth 100mbps"
    done = shell(f"ulimit -n 64; $NETSIM {words}", tmp_path)
    assert done.returncode == 0, done.stderr


def test_launch_with_few_descriptors(tmp_path: Path) -> None:
    tc_or_skip()
    done = shell(
        'ulimit -n 64; $NETSIM launch -n 2 --bandwidth 50mbps -- sh -c \'ls /proc/self/fd | tr "\\n" " "\'',
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    # 0, 1, 2 and the one that ls itself reads.
    assert sorted(done.stdout.splitlines()) == ["[0] 0 1 2 3 ", "[1] 0 1 2 3 "]


def test_too_few_descriptors_are_named(tmp_path: Path) -> None:
    done = shell(f"ulimit -n 64; $NETSIM {' '.join(instead(RUN, '-n', '8'))}", tmp_path)
    assert done.returncode == 4, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "64 files open" in last
    assert "8 workers need 88" in last


def test_a_low_soft_limit_is_raised(tmp_path: Path) -> None:
    done = shell(f"ulimit -Sn 64; $NETSIM {' '.join(instead(RUN, '-n', '8'))}", tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_users_file_is_not_the_standard_library(tmp_path: Path) -> None:
    for name in ("types", "torch"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the wrong {name} was imported')\n")
    command = Path(sys.executable).parent / "netsim"
    if not command.exists():
        pytest.skip("netsim is not installed")
    done = shell(f"{command} {' '.join(RUN)}", tmp_path)
    assert done.returncode == 0, done.stderr


ODD = {
    "terminal and numbers": {
        "COLUMNS": "0",
        "LINES": "0",
        "TERM": "dumb",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "OMP_NUM_THREADS": "banana",
        "MKL_NUM_THREADS": "0,4",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONOPTIMIZE": "2",
    },
    "folders": {"HOME": "/nonexistent", "TMPDIR": "/nonexistent"},
}


@pytest.mark.parametrize("surroundings", ODD)
def test_odd_surroundings(surroundings: str, tmp_path: Path) -> None:
    done = netsim(RUN, tmp_path, env=ODD[surroundings])
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"topk" in done.stdout


def test_a_folder_with_spaces_for_temporary_files(tmp_path: Path) -> None:
    place = tmp_path / "a b" / ("c" * 120)
    place.mkdir(parents=True)
    assert shell(f"$NETSIM {' '.join(RUN)}", tmp_path, TMPDIR=str(place)).returncode == 0


def test_a_removed_folder_is_named(tmp_path: Path) -> None:
    done = shell("mkdir gone; cd gone; rmdir ../gone; $NETSIM run", tmp_path)
    assert (done.returncode, done.stderr) == (
        4,
        "netsim: the current folder has been removed (cd to another one)\n",
    )
