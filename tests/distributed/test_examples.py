"""The examples run as their first lines say."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed as dist

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
    from tests.distributed.ranks import (
        on_ranks,  # at the top it would mark the whole as a test of the kernels
    )

    said, end = on_ranks(resumed, 2, script, str(tmp_path))[0]
    assert (re.findall(r"epoch \d: loss", said), end) == (["epoch 1: loss"], None)
    os.remove(tmp_path / "checkpoint-1.pt")
    os.remove(tmp_path / "checkpoint-1-before.pt")
    for _, end in on_ranks(resumed, 2, script, str(tmp_path)):
        assert str(end).startswith("there is no epoch that every rank has saved")


def resumed(rank: int, workers: int, script: str, folder: str) -> tuple[str, str | None]:
    """The script's second run, in the group that there is; what it printed, and why it refused."""
    del rank, workers
    sys.argv[:] = [script, "--epochs", "2", "--resume"]
    printed = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(printed),
        mock.patch.object(dist, "init_process_group"),
        mock.patch.object(dist, "destroy_process_group"),
    ):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            return printed.getvalue(), str(end)
    return printed.getvalue(), None


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
