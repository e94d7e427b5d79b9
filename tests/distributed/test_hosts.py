"""Real hosts, emulated: two namespaces, each a host with two ranks that torchrun started."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from netsim_ddp.results.files import load
from tests.commands import ROOT, command
from tests.distributed.test_failures import MODEL
from tests.distributed.test_run import MODEL_PARAMETERS, tc_or_skip

pytestmark = [pytest.mark.privileged, pytest.mark.slow]

TORCHRUN = (
    '"$0" -m torch.distributed.run --nnodes 2 --nproc-per-node 2 --node-rank $RANK --master-addr $MASTER_ADDR '
    '--master-port $MASTER_PORT -m netsim_ddp "$@"'
)
HOSTS = [
    "launch",
    "-n",
    "2",
    "--one-per-node",
    "--bandwidth",
    "200mbps",
    "--timeout",
    "100s",
    "--json",
    "launch.json",
]


@pytest.fixture(scope="module", autouse=True)
def tc() -> None:
    tc_or_skip()


def test_two_hosts_of_two_ranks_run_the_same_cells(tmp_path: Path) -> None:
    words = [
        "--steps",
        "3",
        "--warmup",
        "1",
        "--repeats",
        "1",
        "--baseline",
        "none",
        "--method",
        "dense,overlap=off",
        "--method",
        "topk",
    ]
    program = ["sh", "-c", TORCHRUN, sys.executable, "run", *words, "--json", "out.json"]
    done = command([*HOSTS, "--", *program], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    tables = [line for line in done.stdout.splitlines() if "link not shaped: the hosts' own network" in line]
    assert [line[:4] for line in tables] == ["[0] "], "rank 0 prints, and nobody else"
    assert not [line for line in done.stdout.splitlines() if line.startswith("[1] ")]
    result = load(tmp_path / "out.json")
    assert result.status == "complete"
    dense, topk = result.cells
    for cell in result.cells:
        assert cell.link.mechanism == "host"
        assert cell.link.requested_bps is None
        # Two ranks of a host share its 200 Mbit/s; of the ring's two hops between hosts each has one to itself.
        assert cell.link.measured_bps is not None
        assert 20e6 < cell.link.measured_bps < 201e6  # a tenth of the link, beside other programs too
        assert [rank.rank for rank in cell.repeats[0].ranks] == [0, 1, 2, 3]
        assert len({rank.parameters_sha256 for rank in cell.repeats[0].ranks}) == 1
    # A ring's every second hop crosses hosts: each host sends 2(P-1)/P of the gradient, half of it per rank.
    sent = sum(rank.tx_bytes for rank in dense.repeats[0].ranks) / len(dense.repeats[0].ranks) / 3
    assert sent == pytest.approx(2 * 3 / 4 * 4 * MODEL_PARAMETERS / 2, rel=0.1)
    assert topk.summary is not None
    assert topk.summary.wire_reduction is not None
    assert topk.summary.wire_reduction > 10
    launch = json.loads((tmp_path / "launch.json").read_text())
    assert launch["link"]["drops"] == 0


def test_a_failing_rank_on_one_host_ends_all_and_is_named(tmp_path: Path) -> None:
    """Started by hand-set variables, as a Kubernetes job is: no store of torchrun's to meet in."""
    text = MODEL.replace("{fault}", "os.kill(os.getpid(), 9)").replace("{at_build}", "pass")
    (tmp_path / "faulty.py").write_text(text.replace("if second", "if True"), encoding="utf-8")
    words = [
        "--model",
        "faulty:build",
        "--steps",
        "4",
        "--warmup",
        "0",
        "--repeats",
        "1",
        "--method",
        "dense,overlap=off",
    ]
    program = [sys.executable, "-m", "netsim_ddp", "run", *words]
    done = command([*HOSTS, "--", *program], tmp_path, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert done.returncode == 3, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("[0] netsim: rank 1 failed")]
    assert len(said) == 1, done.stderr
    assert "killed by SIGKILL" in said[0]
    assert "Traceback" not in done.stderr
