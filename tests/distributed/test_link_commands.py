"""The lines of --show-commands, run as they stand, make the link that netsim makes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.privileged
# A world of its own, in which /run may be written to: the names of namespaces live there.
_FRESH = 'mount -t tmpfs none /run && exec sh -e "$0"'


def shown(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "netsim_ddp", "run", "--show-commands", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_a_fresh_world(folder: Path, script: str) -> str:
    """What ``script`` prints in namespaces of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    world = ["unshare", *user, "--mount", "--net", "sh", "-c", _FRESH]
    if subprocess.run([*world, "/dev/null"], capture_output=True, timeout=30, check=False).returncode != 0:
        pytest.skip("namespaces are not allowed here")
    path = folder / "link.sh"
    path.write_text(script, encoding="utf-8")
    done = subprocess.run([*world, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lines_run_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "timeline.yaml").write_text("[{at: 10ms, bandwidth: 50mbps}]", encoding="utf-8")
    link = [
        "--workers",
        "3",
        "--bandwidth",
        "100mbps:20mbps",
        "--slow-rank",
        "2=5mbps",
        "--congestion",
        "reno",
    ]
    lines = shown(*link)
    later = shown(*link, "--timeline", str(tmp_path / "timeline.yaml"))
    look = "echo; for n in netsim netsim0 netsim1 netsim2; do tc -n $n -j qdisc show; done; ip -n netsim0 route\n"
    first, last = (in_a_fresh_world(tmp_path, text + look).strip().splitlines() for text in (lines, later))
    rates = [
        {qdisc["dev"]: qdisc["options"]["rate"] * 8 for qdisc in json.loads(line) if qdisc["kind"] == "tbf"}
        for line in first[:4]
    ]
    mbit = 10**6
    bridge = {"v0": 20 * mbit, "v1": 20 * mbit, "v2": 5 * mbit}
    assert rates == [bridge, {"eth0": 100 * mbit}, {"eth0": 100 * mbit}, {"eth0": 5 * mbit}]
    assert "congctl reno" in first[4]
    after = {q["dev"]: q["options"]["rate"] * 8 for q in json.loads(last[0]) if q["kind"] == "tbf"}
    assert after == {"v0": 50 * mbit, "v1": 50 * mbit, "v2": 5 * mbit}
