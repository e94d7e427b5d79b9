"""``netsim record``: a program runs as it would, and its recording is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from netsim_ddp.results.recording_file import read, read_gradients
from tests.commands import ROOT, command, complaint

TRAINING = str(ROOT / "tests" / "fixtures" / "own_training.py")
PYTHON = [sys.executable]


def recorded(folder: Path, *program: str, **options: object) -> subprocess.CompletedProcess[str]:
    return command(["record", "-o", "a.netsim", "--steps", "2", "--", *program], folder, **options)


def test_a_script_without_ddp_and_all_that_surrounds_it(tmp_path: Path) -> None:
    """Its output and parameters, its data loader's workers, and a sitecustomize of the user's."""
    (tmp_path / "sitecustomize.py").write_text("import os; os.environ['OWN'] = 'yes'\n")
    (tmp_path / "main.py").write_text(
        "import os, runpy, sys\nprint('own', os.environ['OWN'], sys.stdin.read())\n"
        f"sys.argv[0] = {TRAINING!r}\nrunpy.run_path({TRAINING!r}, run_name='__main__')\n"
    )
    words = ["main.py", "--steps", "12", "--data-workers", "1", "--out"]
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "input": "typed", "timeout": 120}
    plain = subprocess.run([*PYTHON, *words, "plain"], env=env, check=True, **options)  # type: ignore[call-overload]
    done = recorded(
        tmp_path, *PYTHON, *words, "recorded", input="typed", env={"PYTHONPATH": env["PYTHONPATH"]}
    )
    assert (done.returncode, done.stdout) == (0, plain.stdout), done.stderr
    assert "own yes typed" in done.stdout
    ended = [torch.load(tmp_path / f"{name}-0.pt") for name in ("plain", "recorded")]
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])
    lines = done.stderr.splitlines()
    assert lines[0].startswith("netsim: Sequential, 1.13M parameters in 2 buckets (no DDP")
    assert any("holds no data and no parameters" in line and "gradients" in line for line in lines)
    assert (
        lines[-1] == "netsim: next: netsim show a.netsim, netsim run --recording a.netsim --bandwidth 1gbps"
    )
    recording, sets = read_gradients(tmp_path / "a.netsim")
    assert recording.source == "plain"
    assert [len(each) for each in sets] == [recording.numel] * 3
    assert recording.environment["torch"]
    assert not recording.notes


def test_ranks_that_a_program_spawns_are_merged_and_stopped(tmp_path: Path) -> None:
    """None of them knows its rank before init_process_group; the program would run for hours."""
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    words = ["--ddp", "--spawn", "2", "--steps", "1000000", "--hook", "--accumulate", "2"]
    begun = ["record", "-o", "a.netsim", "--steps", "2", "--stop", "--", *PYTHON, TRAINING, *words]
    done = command(begun, tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    recording = read(tmp_path / "a.netsim")
    assert recording.world_size == 2
    assert recording.hook == "mean"
    assert [each.rank for each in recording.ranks] == [0, 1]
    numbers = [[step.number for step in each.steps] for each in recording.ranks]
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) == 2
    first = [each.steps[0] for each in recording.ranks]
    assert min(step.begin_s for step in first) == 0
    assert abs(first[0].begin_s - first[1].begin_s) < 60, "one clock of the host"
    assert all(len(step.passes) == 2 and None not in step.done_s for step in first)
    assert recording.gradients.kind == "full"
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
    assert not left.stdout


def test_a_training_that_fails_keeps_its_exit_code_and_what_was_seen(tmp_path: Path) -> None:
    done = command(
        ["record", "-o", "a.netsim", "--", *PYTHON, "-m", "torch.distributed.run", "--nproc-per-node", "1",
         "--master-port", str(_free_port()), TRAINING, "--ddp", "--fail-at", "6"], tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the training fails here" in done.stderr
    recording = read(tmp_path / "a.netsim")
    assert (recording.source, recording.world_size) == ("ddp", 1)
    (note,) = recording.notes
    assert note.startswith("the program ended early; missing: ")
    assert "of 10 watched steps" in note
    assert len(recording.ranks[0].steps) >= 1


@pytest.mark.parametrize(
    ("program", "code", "message"),
    [
        (["-c", "pass"], 2, "no process of the program imported torch"),
        (["-I", "-c", "pass"], 2, "started no Python that could be watched"),
        (["-c", "raise SystemExit(7)"], 7, "the program failed (exit code 7)"),
        (["-c", "import os; os.kill(os.getpid(), 9)"], 137, "the program failed (exit code 137)"),
        (
            ["-c", "import sys; sys.modules['torch'] = None; import json"],
            2,
            "no process of the program imported torch",
        ),
    ],
)
def test_a_program_without_a_training(program: list[str], code: int, message: str, tmp_path: Path) -> None:
    done = recorded(tmp_path, *PYTHON, *program)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert not (tmp_path / "a.netsim").exists()


def test_a_python_without_netsim(tmp_path: Path) -> None:
    """The base interpreter, which finds nothing that is installed in this one's environment."""
    base = Path(sys.base_prefix) / "bin" / "python3"
    if base.resolve() == Path(sys.executable).resolve() and sys.prefix == sys.base_prefix:
        pytest.skip("this Python is the base interpreter itself")
    done = recorded(
        tmp_path, "env", "-C", "/", str(base), "-c", "pass", how=_from_checkout(), env={"PYTHONPATH": ""}
    )
    assert done.returncode == 2
    assert f"{base} has no netsim_ddp" in done.stderr.replace(str(base.resolve()), str(base))


def _from_checkout() -> list[str]:
    found = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'netsim'"
    return [*PYTHON, "-c", f"{found}; from netsim_ddp import cli; cli.main()"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_program_and_nothing_is_left(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)', sys.argv[1]])\n"
        "try:\n    print('ready', flush=True)\n    time.sleep(99)\n"
        "except KeyboardInterrupt:\n    print('interrupted', flush=True)\n    sys.exit(3)\n"
    )
    words = ["-m", "netsim_ddp", "record", "--", sys.executable, "waits.py", str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*PYTHON, *words], cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == (3 if number == signal.SIGINT else 128 + signal.SIGTERM)
    assert out == ("interrupted\n" if number == signal.SIGINT else "")
    deadline = time.monotonic() + 10
    while subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--", "no-such-program"], "no such program"),
        (["-o", "/nowhere/a.netsim", "--", "true"], "no folder /nowhere"),
        (["--gradients", "some", "--", "true"], "--gradients 'some' (sampled, full or none)"),
        (["--steps", "0", "--", "true"], "--steps 0 (a whole number, 1 to 1000)"),
        (["--steps", "x", "--", "true"], "--steps x (a whole number, 1 to 1000)"),
        ([], "nothing to record (write netsim record -- python train.py"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_the_program_starts(
    words: list[str], message: str, tmp_path: Path
) -> None:
    assert message in complaint(["record", *words], tmp_path)


def test_a_launch_whose_recording_has_no_name_starts_nothing(tmp_path: Path) -> None:
    words = ["launch", "-n", "2", "--record", "--", "touch", "started"]
    assert "write --record r.netsim" in complaint(words, tmp_path)
    assert not (tmp_path / "started").exists()


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
