"""``netsim train`` on real ranks: it learns, it counts, it stops where it must, and it goes on where it stopped."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netsim_ddp.errors import RankError, UsageError
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.ranks.pool import Pool
from netsim_ddp.report.export.trace import ROWS, trace_json
from netsim_ddp.results.files import load, save
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.results.trace import TracedLap
from netsim_ddp.results.training_record import EpochRecord
from netsim_ddp.scenario import TrainScenario, build
from netsim_ddp.steps.experiment import Event
from netsim_ddp.training.checkpoint import Checkpoints, Manifest
from netsim_ddp.training.runner import train
from tests import forking
from tests.commands import ROOT, measuring

DEADLINE_S = 120
SMALL = {"epochs": 2, "steps_per_epoch": 6, "workers": 2, "methods": ["topk"], "momentum": 0.9}


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """One fork server for all trainings; without a link it starts any number of ranks."""
    with forking.forking(), Pool() as pool:
        yield pool


def run(
    pool: Pool,
    *,
    report: Callable[[Event], None] = lambda _: None,
    trace: Callable[[Any], None] | None = None,
    saved: list[Result] | None = None,
    **values: Any,
) -> Result:
    scenario = build(TrainScenario, {**SMALL, "threads": 1, **values})

    def keep(result: Result) -> None:
        if saved is not None:
            saved[:] = [result.model_copy(deep=True)]

    return train(scenario, command=["test"], report=report, save=keep, trace=trace, pool=pool)


def curve(cell: Cell) -> list[EpochRecord]:
    return cell.repeats[0].epochs


def digest(result: Result, index: int = 0) -> str:
    """Of the parameters, which all ranks share."""
    ranks = result.cells[index].repeats[0].ranks
    (found,) = {rank.parameters_sha256 for rank in ranks}
    assert found is not None
    return found


def without_times(cell: Cell) -> list[dict[str, Any]]:
    return [epoch.model_dump(exclude={"elapsed_s", "phases_s"}) for epoch in curve(cell)]


@pytest.mark.parametrize("workers", [1, 3])
def test_it_learns_on_any_number_of_ranks(pool: Pool, workers: int) -> None:
    result = run(
        pool,
        workers=workers,
        methods=["dense", "topk,ratio=0.1"],
        learning_rate=0.3,
        momentum=0,
        epochs=3,
        steps_per_epoch=8,
    )
    assert result.kind == "training"
    assert result.status == "complete"
    for cell in result.cells:
        epochs = curve(cell)
        assert [epoch.steps for epoch in epochs] == [8, 8, 8]
        assert epochs[-1].train_loss < 0.7 * epochs[0].train_loss
        assert epochs[-1].validation_accuracy is not None
        assert epochs[-1].validation_accuracy > 0.5
        assert [epoch.elapsed_s for epoch in epochs] == sorted(epoch.elapsed_s for epoch in epochs)
        assert all((epoch.tx_bytes > 0) == (workers > 1) for epoch in epochs)
        assert len(cell.repeats[0].ranks) == workers
        assert cell.training is not None
    # Which collective ran is a finding: with nobody to exchange with, none did.
    assert result.cells[1].params.get("collective") == (None if workers == 1 else "allgather")
    assert "collective" not in result.cells[0].params
    if workers == 1:  # nothing is exchanged, so nothing is compressed
        assert digest(result, 0) == digest(result, 1)
    else:
        topk = result.cells[1].training
        assert topk is not None
        assert topk.wire_reduction is not None
        assert topk.wire_reduction > 4


def test_accumulated_batches_are_one_larger_batch(pool: Pool) -> None:
    whole = run(pool, methods=["dense"], batch_size=32)
    split = run(pool, methods=["dense"], batch_size=16, accumulate=2)
    for ours, theirs in zip(curve(split.cells[0]), curve(whole.cells[0]), strict=True):
        assert ours.steps == theirs.steps
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-3)
        assert ours.tx_bytes == theirs.tx_bytes  # exchanged once a step


def test_a_learning_rate_is_tuned_on_a_seed_of_its_own(pool: Pool) -> None:
    lines: list[str] = []
    result = run(
        pool,
        methods=["dense", "topk,lr=0.05"],
        momentum=0,
        steps_per_epoch=3,
        tune_lr="0.001,0.3,1e6",
        report=lambda event: lines.append(event.text) if event.kind == "line" else None,
    )
    dense, topk = (cell.recipe for cell in result.cells)
    assert dense is not None
    assert topk is not None
    assert dense.learning_rate == 0.3
    assert dense.tune_seed not in (None, 0)
    assert [each.learning_rate for each in dense.tuned] == [0.001, 0.3, 1e6]
    assert dense.tuned[2].validation_loss is None  # it diverged, which is a finding
    assert (topk.learning_rate, topk.tuned) == (0.05, [])  # it has one of its own
    assert any("diverges" in line for line in lines)


def test_a_method_that_diverges_at_every_rate_is_not_trained_at_another(pool: Pool, tmp_path: Path) -> None:
    values = {"methods": ["dense"], "tune_lr": "1e8,1e9", "steps_per_epoch": 3, "checkpoint": str(tmp_path)}
    for again in (False, True):
        with pytest.raises(RankError, match=r"no learning rate of 1e\+08, 1e\+09 trains"):
            run(pool, resume=again, **values)


def test_a_loss_that_is_not_finite_ends_the_run_with_step_rank_and_layer(pool: Pool) -> None:
    saved: list[Result] = []
    with pytest.raises(RankError) as caught:
        run(pool, methods=["dense"], learning_rate=1e9, schedule="constant", saved=saved)
    message = caught.value.message
    assert "rank " in message
    assert "not finite" in message
    assert " of epoch 1" in message
    assert "layer features.0" in message or "classifier" in message or "features" in message
    assert saved[0].status in ("partial", "failed")
    assert saved[0].cells[0].error == message


def test_mixed_precision_learns_nearly_the_same(pool: Pool) -> None:
    few = {"methods": ["topk,ratio=0.1"], "steps_per_epoch": 3, "batch_size": 8}
    full, brain, half = (run(pool, precision=name, **few) for name in ("fp32", "bf16", "fp16"))
    for other in (brain, half):
        assert digest(other) != digest(full)
        for ours, theirs in zip(curve(other.cells[0]), curve(full.cells[0]), strict=True):
            assert ours.train_loss == pytest.approx(theirs.train_loss, rel=0.02)
            assert ours.skipped_steps == 0
    # The scale costs no message of its own: the exchange itself says that a gradient overflowed.
    assert curve(half.cells[0])[0].tx_bytes == pytest.approx(curve(brain.cells[0])[0].tx_bytes, rel=0.02)


def test_adam_compresses_its_momentum_once_the_second_moment_is_frozen(pool: Pool) -> None:
    result = run(
        pool,
        optimizer="adamw",
        momentum=0,
        methods=["topk,ratio=0.05,dense_below=0", "topk,ratio=0.05,freeze_after=15"],
        steps_per_epoch=20,
        batch_size=16,
    )
    for cell in result.cells:
        assert curve(cell)[-1].train_loss < 0.7 * curve(cell)[0].train_loss
        assert cell.params["collective"] in ("split", "allgather"), (
            "known once the first compressed step is taken"
        )
    averaged, frozen = (curve(cell) for cell in result.cells)
    assert averaged[0].tx_bytes == pytest.approx(averaged[1].tx_bytes, rel=0.01)
    assert frozen[0].tx_bytes > 3 * frozen[1].tx_bytes  # fifteen of its twenty steps were dense


# What is killed goes on to the bits of a training that nobody disturbed.
EVERY: dict[str, Any] = {"checkpoint_every": "2steps", "methods": ["topk,values=int8-stochastic"]}


@pytest.fixture(scope="module")
def undisturbed(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    return run(pool, checkpoint=str(folder), **EVERY), folder


def test_checkpoints_disturb_nothing_and_only_two_stay(pool: Pool, undisturbed: tuple[Result, Path]) -> None:
    result, folder = undisturbed
    plain = run(pool, methods=EVERY["methods"])
    assert digest(plain) == digest(result)
    assert without_times(plain.cells[0]) == without_times(result.cells[0])
    (slot,) = folder.glob("*/seed-0")
    assert sorted(path.name for path in slot.iterdir()) == ["latest", "step-000010", "step-000012"]
    assert load(folder / "run.json").cells == result.cells


def test_a_rank_killed_in_mid_epoch(pool: Pool, undisturbed: tuple[Result, Path], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    killer = threading.Thread(target=_kill_a_rank, args=(pool, folder, "step-000008"), daemon=True)
    killer.start()
    saved: list[Result] = []
    with pytest.raises(RankError, match=r"rank \d .*killed by SIGKILL"):
        run(pool, checkpoint=str(folder), saved=saved, **EVERY)
    killer.join()
    assert saved[0].status == "partial"
    assert [epoch.epoch for epoch in saved[0].cells[0].repeats[0].epochs] == [1]
    resumed = run(pool, checkpoint=str(folder), resume=True, **EVERY)
    assert digest(resumed) == digest(undisturbed[0])
    assert without_times(resumed.cells[0]) == without_times(undisturbed[0].cells[0])
    mine, theirs = (r.cells[0].repeats[0].ranks[0] for r in (resumed, undisturbed[0]))
    assert (mine.tx_bytes, mine.payload_bytes) == (theirs.tx_bytes, theirs.payload_bytes)


def test_a_damaged_or_missing_file_is_named(
    pool: Pool, undisturbed: tuple[Result, Path], tmp_path: Path
) -> None:
    folder = _copy(undisturbed[1], tmp_path)
    (newest,) = folder.glob("*/seed-0/step-000012")
    data = bytearray((newest / "rank-1.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "rank-1.pt").write_bytes(data)
    with pytest.raises(UsageError, match=r"rank-1\.pt is damaged") as caught:
        run(pool, checkpoint=str(folder), resume=True, **EVERY)
    assert "step-000010" in str(caught.value.hint)
    (newest / "rank-1.pt").unlink()
    with pytest.raises(UsageError, match=r"rank-1\.pt cannot be read"):
        run(pool, checkpoint=str(folder), resume=True, **EVERY)
    # The hint does what it says.
    (newest.parent / "latest").write_text("step-000010\n")
    result = load(folder / "run.json")
    result.cells[0].repeats = []  # or there would be nothing left to do
    save(result, folder / "run.json")
    resumed = run(pool, checkpoint=str(folder), resume=True, **EVERY)
    assert digest(resumed) == digest(undisturbed[0])


def test_what_must_not_change_is_refused(
    pool: Pool, undisturbed: tuple[Result, Path], tmp_path: Path
) -> None:
    folder = undisturbed[1]
    with pytest.raises(UsageError, match="batch_size 16, not 8"):
        run(pool, checkpoint=str(folder), resume=True, batch_size=8, **EVERY)
    with pytest.raises(UsageError, match=r"learning_rate 0.1, not 0.2"):
        run(pool, checkpoint=str(folder), resume=True, learning_rate=0.2, **EVERY)
    with pytest.raises(UsageError, match="2 workers, not 3") as caught:
        run(pool, checkpoint=str(folder), resume=True, **{**EVERY, "workers": 3})
    assert "--resume-residuals sum" in str(caught.value.hint)
    with pytest.raises(UsageError, match="has 2 epochs behind it, and --epochs is 1") as caught:
        run(pool, checkpoint=str(folder), resume=True, **{**EVERY, "epochs": 1})
    assert "--epochs 2 or more" in str(caught.value.hint)
    with pytest.raises(UsageError, match="has ended with 2 workers: its curve is not one of 3"):
        run(pool, checkpoint=str(folder), resume=True, resume_residuals="sum", **{**EVERY, "workers": 3})
    with pytest.raises(UsageError, match="another run") as caught:
        run(pool, checkpoint=str(folder), **EVERY)
    assert "--resume" in str(caught.value.hint)
    with pytest.raises(UsageError, match="nothing to resume"):
        run(pool, checkpoint=str(tmp_path), resume=True, **EVERY)


@pytest.mark.parametrize(("workers", "rule"), [(3, "sum"), (1, "sum"), (3, "drop")])
def test_another_number_of_ranks_goes_on_by_a_rule(
    pool: Pool, undisturbed: tuple[Result, Path], tmp_path: Path, workers: int, rule: str
) -> None:
    folder = _copy(undisturbed[1], tmp_path)
    result = run(
        pool,
        checkpoint=str(folder),
        resume=True,
        resume_residuals=rule,
        **{**EVERY, "workers": workers, "epochs": 4},
    )
    epochs = curve(result.cells[0])
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4]
    assert epochs[-1].train_loss < epochs[1].train_loss
    assert len(result.cells[0].repeats[0].ranks) == workers


def test_the_tool_killed_goes_on_from_the_command_line(
    undisturbed: tuple[Result, Path], tmp_path: Path
) -> None:
    """And what the command leaves: table, JSON, log, trace."""
    words = ["--epochs", "2", "--steps-per-epoch", "6", "--workers", "2", "--momentum", "0.9"]
    words += [
        "--method",
        EVERY["methods"][0],
        "--checkpoint",
        "kept",
        "--checkpoint-every",
        "2steps",
    ]
    words += ["--threads", "1", "--log-dir", "log"]
    with subprocess.Popen(
        [sys.executable, "-m", "netsim_ddp", "train", *words],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as tool:
        _await(lambda: list(tmp_path.glob("kept/*/seed-0/step-000004")), tool.poll)
        tool.kill()
    resume = ["train", "--resume", "kept", "--json", "out.json", "--trace-steps", "steps.json"]
    done = measuring(resume, tmp_path, env={"COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    assert "going on from epoch" in done.stderr
    assert "epoch 2/2 | loss" in done.stderr
    assert max(map(len, done.stdout.splitlines()[:5])) <= 80
    result = load(tmp_path / "out.json")
    assert result.status == "complete"
    assert digest(result) == digest(undisturbed[0])
    trace = json.loads((tmp_path / "steps.json").read_text())
    assert {event["pid"] for event in trace["traceEvents"]} == {0, 1}
    (log,) = tmp_path.glob("log/*/seed-0")
    if (log / "metrics.jsonl").exists():
        lines = [json.loads(line) for line in (log / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "train/loss" in line] == list(range(12))
    else:
        assert list(log.glob("events.out.tfevents.*"))


def test_the_steps_of_a_trace_are_there_for_every_rank_and_phase(pool: Pool) -> None:
    laps: list[TracedLap] = []
    run(pool, trace=laps.extend, epochs=1)
    events = json.loads(trace_json(laps))["traceEvents"]
    named = {(event["pid"], event["args"]["name"]) for event in events if event["name"] == "thread_name"}
    assert named == {(rank, phase) for rank in (0, 1) for phase in ROWS}
    steps = [event for event in events if event["ph"] == "X"]
    assert {event["name"] for event in steps} >= {"compute", "compress", "wire", "decompress", "optimizer"}
    assert min(event["ts"] for event in steps) == 0
    for rank in (0, 1):
        rows = sorted((e["ts"], e["dur"]) for e in steps if e["pid"] == rank and e["args"]["step"] == 0)
        for (begin, took), (after, _) in itertools.pairwise(rows):
            assert begin + took == pytest.approx(after, abs=0.01)  # contiguous, microseconds


def _copy(folder: Path, to: Path) -> Path:
    target = to / "checkpoints"
    shutil.copytree(folder, target)
    return target


def _await(ready: Callable[[], Any], ended: Callable[[], Any] = lambda: None) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not ready():
        assert time.monotonic() < deadline
        assert ended() is None
        time.sleep(0.002)


def _kill_a_rank(pool: Pool, folder: Path, checkpoint: str) -> None:
    """SIGKILL one of the fork server's ranks once ``checkpoint`` is there."""
    _await(lambda: list(folder.glob(f"*/seed-0/{checkpoint}")))
    (launcher,) = pool._launchers.values()
    server = launcher._server
    pid = server._child.pid  # type: ignore[union-attr]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)


def test_slots_of_two_methods_are_apart(tmp_path: Path) -> None:
    one, other = build(TrainScenario, {"methods": ["topk", "my_module:factory,rank=2"]}).cells()
    assert Checkpoints(tmp_path, one, 0).folder != Checkpoints(tmp_path, other, 0).folder
    assert Checkpoints(tmp_path, one, 0).folder != Checkpoints(tmp_path, one, 1).folder
    assert tmp_path in Checkpoints(tmp_path, other, 0).folder.parents


def test_the_newest_checkpoints_stay_when_their_numbers_grow_a_digit(tmp_path: Path) -> None:
    method = MethodSpec(name="topk")
    slot = Checkpoints(tmp_path, method, 0)
    slot.clear_parts()
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        part = slot.part(step)
        part.mkdir()
        manifest = Manifest(
            method="topk",
            params={},
            seed=0,
            learning_rate=0.1,
            world_size=1,
            threads=1,
            epoch=0,
            step=step,
            global_step=step,
            settings={},
            tx_epoch=[0],
            tx_total=[0],
            rx_total=[0],
            payload=[0],
            files={},
        )
        slot.commit(manifest)
    found = {path.name for path in slot.folder.glob("step-*")}
    assert found == {"step-1000000", "step-1000001"}
    newest = slot.latest()
    assert newest is not None
    assert newest[1].global_step == 1_000_001
    (slot.folder / "step-1000001" / "manifest.json").write_text("{")
    with pytest.raises(UsageError, match="write step-1000000 into"):
        slot.latest()
