"""``-v`` and ``-vv``, what an error shows of what went before, and warnings that every rank raises."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from netsim_ddp.errors import LinkUnavailable
from tests.commands import ROOT, measuring
from tests.links import usable

MODEL = """
import warnings
from torch import nn

def build():
    warnings.warn("this model is a toy")
    return nn.Sequential(nn.Flatten(1), nn.Linear(64, 10))

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
    def forward(self, images):
        import os, torch.distributed as dist
        if dist.is_initialized() and dist.get_rank() == 1:
            os._exit(9)
        return self.layer(images.flatten(1))
"""
SHORT = [
    "--steps",
    "1",
    "--warmup",
    "0",
    "--repeats",
    "2",
    "--workers",
    "3",
    "--method",
    "topk",
    "--baseline",
    "none",
]


def netsim(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "toys.py").write_text(MODEL, encoding="utf-8")
    return measuring(
        ["run", *SHORT, *words], folder, env={"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    )


def test_a_warning_of_all_ranks_and_repeats_is_shown_once(tmp_path: Path) -> None:
    done = netsim(tmp_path, "--model", "toys:build", "--link", "none")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "this model is a toy" in line]
    assert len(lines) == 1, done.stderr
    assert "UserWarning" in lines[0]
    assert "forking" not in done.stderr


def test_a_failing_rank_is_shown_with_what_went_before(tmp_path: Path) -> None:
    done = netsim(tmp_path, "--model", "toys:Broken", "--link", "none")
    assert done.returncode == 3
    assert "forking 3 ranks for StepsTask" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("netsim: rank 1")


def test_v_says_what_is_started_and_vv_every_command(tmp_path: Path) -> None:
    try:
        with usable():
            pass
    except LinkUnavailable as error:
        pytest.skip(f"tc links cannot be made here: {error.message}")
    short = ["--link", "tc", "--model", "toys:build"]
    some = netsim(tmp_path, *short, "-v").stderr
    assert "the probe found" in some
    assert "qdisc" not in some
    every = netsim(tmp_path, *short, "-vv").stderr
    assert "in the namespace of rank 2: tc qdisc" in every
    assert "tbf" in every
    assert "started the link's helper" in every
