"""The examples run as their first lines say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.privileged
def test_a_script_of_one_s_own_on_a_link_and_resumed_under_torchrun(tmp_path: Path) -> None:
    script = str(ROOT / "examples" / "user_loop.py")
    launch = [sys.executable, "-m", "netsim_ddp", "launch", "--workers", "2", "--bandwidth", "100mbps"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    losses: list[str] = []
    for command in (
        [*launch, "--", sys.executable, script, "--epochs", "1"],
        [*torchrun, script, "--epochs", "2", "--resume"],
    ):
        losses += _losses(command, tmp_path)
    assert [line.split(":")[0] for line in losses] == ["epoch 0", "epoch 1"]
    first, last = (float(line.split()[-1]) for line in losses)
    assert last < first
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"checkpoint-{rank}{what}.pt" for rank in (0, 1) for what in ("-before", "")]
    # Killed after rank 0 had saved epoch 2 and before rank 1 had: both go on from epoch 1, which both have.
    os.replace(tmp_path / "checkpoint-1-before.pt", tmp_path / "checkpoint-1.pt")
    assert [line.split(":")[0] for line in _losses(command, tmp_path)] == ["epoch 1"]
    os.remove(tmp_path / "checkpoint-1.pt")
    os.remove(tmp_path / "checkpoint-1-before.pt")
    with pytest.raises(AssertionError, match="there is no epoch that every rank has saved"):
        _losses(command, tmp_path)


def _losses(command: list[str], folder: Path) -> list[str]:
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return re.findall(r"epoch \d: loss \d+\.\d+", done.stdout)
