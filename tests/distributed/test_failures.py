"""A rank that raises, hangs or dies ends the run, is named, and costs nothing that was measured before."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from netsim_ddp.results.files import load
from tests.commands import ROOT, instead, measuring

MODEL = '''
import os, time
import torch
from torch import nn
import torch.distributed as dist

class Faulty(nn.Module):
    """Rank 1 fails in its {nth} forward pass of the second method's process."""
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.calls = 0
    def forward(self, images):
        self.calls += 1
        second = os.path.exists("first-done")
        if self.calls == 3 and dist.is_initialized() and dist.get_rank() == 1:
            if second:
                {fault}
            open("first-done", "w").close()
        return self.layer(images.flatten(1))

def build():
    {at_build}
    return Faulty()
'''


def run(
    folder: Path,
    fault: str,
    *words: str,
    at_build: str = "pass",
    methods: tuple[str, str] = ("dense,overlap=off", "topk"),
) -> tuple[subprocess.CompletedProcess[str], float]:
    text = MODEL.replace("{fault}", fault).replace("{at_build}", at_build)
    (folder / "faulty.py").write_text(text, encoding="utf-8")
    command = ["run", "--model", "faulty:build", "--json", "out.json"]
    command += [
        "--steps",
        "4",
        "--warmup",
        "0",
        "--repeats",
        "1",
        "--execution",
        "concurrent",
        "--link",
        "none",
        "--baseline",
        "none",
    ]
    begin = time.monotonic()
    command = instead(command, *words)
    command += [word for method in methods for word in ("--method", method)]
    done = measuring(command, folder, env={"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])})
    return done, time.monotonic() - begin


FAULTS = {
    "raises": ('raise ValueError("the data is broken")', "ValueError: the data is broken"),
    "is killed": ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
    "leaves": ("os._exit(0)", "ended early with exit code 0"),
    "hangs": ("time.sleep(3600)", "rank 1 made no progress for 5 s"),
    "has a NaN": ("return self.layer(images.flatten(1)) * float('nan')", "not finite"),
}


@pytest.mark.parametrize(("fault", "workers"), [(name, 2 + index % 2) for index, name in enumerate(FAULTS)])
def test_a_failing_rank_is_named_and_what_was_measured_stays(
    tmp_path: Path, fault: str, workers: int
) -> None:
    line, said = FAULTS[fault]
    done, seconds = run(tmp_path, line, "--workers", str(workers), "--timeout", "5s")
    assert done.returncode == 3, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("netsim: "), done.stderr
    assert "rank 1" in last
    assert said in last
    assert seconds < 60
    # A traceback helps with an error in somebody's code, and with nothing else.
    assert ("Traceback" in done.stderr) == (fault in ("raises", "has a NaN"))
    assert "what was measured is in" in done.stderr
    result = load(tmp_path / "out.json")
    assert result.status == "partial"
    dense, topk = result.cells
    assert len(dense.repeats) == 1
    assert dense.summary is not None
    assert topk.repeats == []
    assert topk.error is not None
    assert said in topk.error


DAMAGE = '''
from netsim_ddp.communication.exchange import PeerExchange
from netsim_ddp.communication.methods.topk_allgather import TopKAllGather
from netsim_ddp.communication.methods.topk_split import TopKSplitReduce

class Gather(TopKAllGather):
    """Rank 1's third message is not what it wrote."""
    steps = 0
    def _compress(self):
        super()._compress()
        self.steps += 1
        if self.group.rank == 1 and self.steps == 3:
            self._messages[1][{where}] ^= 255

class Split(TopKSplitReduce):
    """The same of what it sends to an owner."""
    steps = 0
    def _compress(self):
        super()._compress()
        self.steps += 1
        if self.group.rank == 1 and self.steps == 3:
            self._requests.messages[0][{where}] ^= 255
'''


@pytest.mark.parametrize(
    ("kind", "where"),
    [("Gather", "slice(4, 8)"), ("Split", "slice(8, 12)")],
)
def test_a_damaged_message_names_its_sender_and_ends_the_run(tmp_path: Path, kind: str, where: str) -> None:
    (tmp_path / "damage.py").write_text(DAMAGE.replace("{where}", where), encoding="utf-8")
    words = ["--model", "simple_cnn", "--workers", "3", "--timeout", "5s"]
    done, _ = run(tmp_path, "pass", *words, methods=("dense,overlap=off", f"damage:{kind},ratio=0.01"))
    assert done.returncode == 3, done.stdout + done.stderr
    assert "rank 1 sent a damaged message" in done.stderr.strip().splitlines()[-1]
    result = load(tmp_path / "out.json")
    assert result.status == "partial"
    assert [len(cell.repeats) for cell in result.cells] == [1, 0]


def test_a_failure_before_the_first_repeat_leaves_a_failed_result(tmp_path: Path) -> None:
    done, _ = run(tmp_path, "pass", "--workers", "2", at_build='raise KeyError("weights")')
    assert done.returncode in (2, 3)
    assert "weights" in done.stderr.strip().splitlines()[-1]
    assert load(tmp_path / "out.json").status == "failed"


def test_a_model_that_cannot_be_imported_is_one_clear_line(tmp_path: Path) -> None:
    done, _ = run(tmp_path, "pass", "--workers", "2", "--model", "no_such_module:build")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "no_such_module" in done.stderr.strip().splitlines()[-1]
