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
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        losses += re.findall(r"epoch \d: loss \d+\.\d+", done.stdout)
    assert [line.split(":")[0] for line in losses] == ["epoch 0", "epoch 1"]
    first, last = (float(line.split()[-1]) for line in losses)
    assert last < first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-0.pt", "checkpoint-1.pt"]
