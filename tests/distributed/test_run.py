"""``netsim run`` on real links: what it measures is what the formulas and the line rate say."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from netsim_ddp.errors import LinkUnavailable
from netsim_ddp.results.files import load
from netsim_ddp.results.limits import exchange
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.results.summary import PHASES
from tests.commands import measuring
from tests.links import is_sent, usable

DEADLINE_S = 240
MODEL_PARAMETERS = 1_078_666


def tc_or_skip() -> None:
    try:
        with usable():
            return
    except LinkUnavailable as error:
        pytest.skip(f"tc links cannot be made here: {error.message}")


def netsim(
    folder: Path, *words: str, python: str = sys.executable, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-m", "netsim_ddp", "run", *words, "--json", str(folder / "out.json")],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        **options,
    )


def forked(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The same where its start is not the point, on the host's loopback."""
    return measuring(["run", *words, "--json", str(folder / "out.json")], folder, timeout=DEADLINE_S)


def measured(folder: Path, *words: str, start: Callable[..., Any] = netsim) -> Result:
    done = start(folder, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    result = load(folder / "out.json")
    assert result.status == "complete"
    return result


SLOW = ["--bandwidth", "100mbps", "--steps", "4", "--warmup", "1", "--repeats", "1"]
METHODS = ["dense", "fp16", "topk-allgather", "topk", "topk,values=fp16,overlap=on"]


@pytest.fixture(scope="module", params=[pytest.param("tc", marks=pytest.mark.privileged), "bucket"])
def slow_link(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Four workers at 100 Mbit/s, every method."""
    if request.param == "tc":
        tc_or_skip()
    methods = [word for method in METHODS for word in ("--method", method)]
    start = netsim if request.param == "tc" else forked
    return measured(tmp_path_factory.mktemp("slow"), *SLOW, "--link", request.param, *methods, start=start)


@pytest.mark.alone
def test_every_cell_is_there_and_complete(slow_link: Result) -> None:
    assert [(cell.method, cell.overlap) for cell in slow_link.cells] == [
        ("dense", False),
        ("dense", True),
        ("fp16", True),  # what every run is held against
        ("fp16", False),
        ("topk-allgather", False),
        ("topk", False),
        ("topk", True),
    ]
    for cell in slow_link.cells:
        assert [len(repeat.ranks) for repeat in cell.repeats] == [4]
        assert all(len(rank.steps) == 4 for rank in cell.repeats[0].ranks)
        assert cell.summary is not None
        assert cell.link.drops == 0
    assert slow_link.model_parameters == MODEL_PARAMETERS


@pytest.mark.alone
def test_bytes_at_the_interface_are_what_the_formula_says(slow_link: Result) -> None:
    for cell in slow_link.cells:
        for rank in cell.repeats[0].ranks:
            assert rank.predicted_tx_bytes is not None
            assert is_sent(rank.tx_bytes, rank.predicted_tx_bytes, cell.link.retransmits), (
                cell.id,
                rank.rank,
            )


@pytest.mark.alone
def test_dense_communicates_as_fast_as_the_line_allows(slow_link: Result) -> None:
    dense = slow_link.cells[0]
    payload = 2 * 3 / 4 * 4 * MODEL_PARAMETERS
    line = payload * 1514 / 1448 * 8 / 100e6
    communicate = median(step.communicate_s for rank in dense.repeats[0].ranks for step in rank.steps)
    assert line * 0.95 < communicate
    assert communicate < line * 1.15 or dense.link.host_limited
    found = exchange(dense)
    assert found is not None
    assert found.model_s == pytest.approx(line, rel=0.05)  # acknowledgements, preambles
    assert found.took_s == pytest.approx(communicate, rel=0.1)


@pytest.mark.alone
def test_the_link_delivers_what_was_asked(slow_link: Result) -> None:
    for cell in slow_link.cells:
        assert cell.link.requested_bps == cell.link.configured_bps == 100_000_000
        assert cell.link.measured_bps == pytest.approx(100e6 * 1448 / 1514, rel=0.05)


@pytest.mark.alone
def test_phases_add_up_to_the_step(slow_link: Result) -> None:
    for cell in slow_link.cells:
        for rank in cell.repeats[0].ranks:
            for step in rank.steps:
                assert sum(getattr(step, phase) for phase in PHASES) == pytest.approx(step.wall_s, rel=1e-6)
                assert min(getattr(step, phase) for phase in PHASES) >= 0
        assert cell.summary is not None
        total = sum(getattr(cell.summary, phase) for phase in PHASES)
        assert total == pytest.approx(cell.summary.step_s.median)


@pytest.mark.alone
def test_compression_sends_less_and_is_faster_on_a_slow_link(slow_link: Result) -> None:
    dense, overlapped, half, fp16, gathered, topk, topk_fp16 = (_summary(cell) for cell in slow_link.cells)
    assert half.wire_reduction == pytest.approx(2, rel=0.02)
    assert half.step_s.median > 2 * topk.step_s.median
    assert dense.step_s.median > 4 * topk.step_s.median
    assert overlapped.wire_reduction == pytest.approx(1, rel=0.02)
    assert fp16.wire_reduction == pytest.approx(2, rel=0.02)
    # 2(P-1)/P 4N bytes against (P-1) k b and 2(P-1)/P k b, with b = 5.05 bytes per packed entry; 3.05 with fp16
    # values, but bucket by bucket more of them are headers.
    assert gathered.wire_reduction == pytest.approx(39.6, rel=0.05)
    assert topk.wire_reduction == pytest.approx(79.2, rel=0.05)
    assert 1.2 < topk_fp16.wire_reduction / topk.wire_reduction < 5.05 / 3.05
    assert dense.residual_bytes == 0
    assert gathered.residual_bytes == 4 * MODEL_PARAMETERS
    # The owner's sums are another quarter.
    assert topk.residual_bytes == pytest.approx(5 * MODEL_PARAMETERS, rel=0.01)


@pytest.mark.alone
def test_a_speedup_is_the_ratio_of_two_steps_unless_this_host_limited_both(slow_link: Result) -> None:
    """On a host that others use any of the cells may be limited, and a ratio of two such says nothing."""
    dense, half = slow_link.cells[0], slow_link.cells[2]
    for cell in slow_link.cells:
        found = _summary(cell)
        for baseline, speedup in ((dense, found.speedup), (half, found.speedup_vs_dense16)):
            if cell.link.host_limited and baseline.link.host_limited:
                assert speedup is None
            else:
                expected = _summary(baseline).step_s.median / found.step_s.median
                assert speedup == pytest.approx(expected, rel=1e-6)


def _summary(cell: Cell) -> Any:
    assert cell.summary is not None
    return cell.summary


@pytest.mark.alone
def test_all_ranks_end_with_the_same_parameters(slow_link: Result) -> None:
    for cell in slow_link.cells:
        assert len({rank.parameters_sha256 for rank in cell.repeats[0].ranks}) == 1
    ends = {cell.id: cell.repeats[0].ranks[0].parameters_sha256 for cell in slow_link.cells}
    assert len(set(ends.values())) >= 6, "methods differ; only fp16 may be the same in buckets and whole"
    assert len(set(ends.values()) - {ends["fp16"], ends["fp16,overlap=on"]}) == 5


@pytest.mark.kernels
@pytest.mark.parametrize("workers", [1, 3])
def test_loss_falls_on_the_digits(tmp_path: Path, workers: int) -> None:
    words = ["--link", "none", "--workers", str(workers), "--steps", "40", "--warmup", "0", "--repeats", "1"]
    words += ["--execution", "concurrent"]
    result = measured(tmp_path, *words, "--ratio", "0.05", start=forked)
    for cell in result.cells:
        losses = [
            sum(rank.steps[i].loss or 0.0 for rank in cell.repeats[0].ranks) / workers for i in range(40)
        ]
        assert losses[0] == pytest.approx(2.3, abs=0.1)  # log 10: an untrained guess
        assert sum(losses[-5:]) / 5 < 0.8 * losses[0], cell.id


@pytest.mark.alone
@pytest.mark.kernels
def test_emulated_compute_takes_the_time_it_was_given(tmp_path: Path) -> None:
    words = ["--link", "bucket", "--workers", "2", "--compute", "50ms", "--bandwidth", "1gbps"]
    words += ["--steps", "4", "--warmup", "1", "--repeats", "1"]
    result = measured(tmp_path, *words, start=forked)
    for cell in result.cells:
        assert len({rank.parameters_sha256 for rank in cell.repeats[0].ranks}) == 1
        for rank in cell.repeats[0].ranks:
            assert min(step.compute_s for step in rank.steps) >= 0.05
            assert all(step.loss is None for step in rank.steps)


@pytest.mark.kernels
@pytest.mark.slow
def test_repeats_are_kept_apart_and_agree(tmp_path: Path) -> None:
    words = ["--link", "none", "--workers", "2", "--steps", "3", "--warmup", "1", "--repeats", "2"]
    result = measured(tmp_path, *words, "--method", "topk", "--method", "dense,overlap=on", start=forked)
    for cell in result.cells:
        first, second = cell.repeats
        # The same seeds in fresh processes: the same bits.
        assert first.ranks[0].parameters_sha256 == second.ranks[0].parameters_sha256
        assert [s.loss for s in first.ranks[1].steps] == [s.loss for s in second.ranks[1].steps]
        assert first.ranks[0].steps[0].wall_s != second.ranks[0].steps[0].wall_s


def ordinary_user() -> tuple[int, str, dict[str, str]]:
    """A user without privileges, an interpreter that it may run, and the environment for it."""
    user = pwd.getpwnam("nobody").pw_uid
    paths = os.pathsep.join([str(Path(__file__).parents[2]), sysconfig.get_paths()["purelib"]])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        words = [python, "-c", "import torch, netsim_ddp.steps.worker"]
        try:
            done = subprocess.run(
                words,
                user=user,
                group=user,
                extra_groups=[],
                env=environment,
                capture_output=True,
                timeout=120,
                check=False,
            )
        except OSError:
            continue
        if done.returncode == 0:
            return user, python, environment
    pytest.skip("no interpreter that an ordinary user may run: this one lies in a private folder")


@pytest.mark.alone
@pytest.mark.privileged
@pytest.mark.skipif(os.geteuid() != 0, reason="these tests run as an ordinary user already")
def test_an_ordinary_user_gets_the_same_link() -> None:
    tc_or_skip()
    user, python, environment = ordinary_user()
    with tempfile.TemporaryDirectory() as home:  # pytest's own folders are root's alone
        os.chown(home, user, user)
        _run_as(user, python, environment, Path(home))


def _run_as(user: int, python: str, environment: dict[str, str], home: Path) -> None:
    words = ["--link", "tc", "--workers", "2", "--bandwidth", "200mbps", "--steps", "3", "--repeats", "1"]
    words += ["--method", "dense,overlap=off", "--method", "topk"]
    as_user = {"user": user, "group": user, "extra_groups": [], "env": environment | {"HOME": str(home)}}
    done = netsim(home, *words, python=python, **as_user)
    if "namespaces are not allowed here" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    result = json.loads((home / "out.json").read_text())
    assert (home / "out.json").stat().st_uid == user
    for cell in result["cells"]:
        assert cell["link"]["mechanism"] == "tc"
        for rank in cell["repeats"][0]["ranks"]:
            assert is_sent(rank["tx_bytes"], rank["predicted_tx_bytes"], cell["link"]["retransmits"])


def test_a_trace_of_a_quarter_of_an_hour_reaches_the_workers_whole(tmp_path: Path) -> None:
    """Its 1,600 stretches, for each worker, are more than a socket's buffer holds."""
    times = (ms for ms in range(1, 800_001) if ms % 2 or ms % 1000 < 500)
    (tmp_path / "trace").write_text("".join(f"{ms}\n" for ms in times), encoding="utf-8")
    words = [
        "--trace",
        "trace",
        "--link",
        "bucket",
        "--workers",
        "3",
        "--method",
        "topk",
        "--baseline",
        "none",
    ]
    result = measured(tmp_path, *words, "--steps", "2", "--repeats", "2", "--timeout", "60s", start=forked)
    assert result.cells[0].link.varies
    assert result.cells[0].bandwidth_bps == pytest.approx(12_112_000, rel=0.01)
