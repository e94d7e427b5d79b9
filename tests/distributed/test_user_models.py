"""Models that strangers bring: they train as under DistributedDataParallel, or are refused before the first step."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from netsim_ddp.errors import NetsimError
from netsim_ddp.ranks.pool import Pool
from netsim_ddp.results.files import load
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.scenario import Scenario
from netsim_ddp.steps.runner import run
from tests.commands import instead, measuring
from tests.fixtures.user_models import MODELS
from tests.forking import forking

FIXTURES = Path(__file__).parent.parent / "fixtures"
ROOT = FIXTURES.parent.parent
SEARCH = f"{ROOT}{os.pathsep}{FIXTURES}"
DEADLINE_S = 300
SHORT = ["-n", "2", "--link", "none", "--threads", "1", "--timeout", "30s"]
RUN = [
    "run",
    *SHORT,
    "--baseline",
    "none",
    "--steps",
    "4",
    "--warmup",
    "1",
    "--repeats",
    "1",
    "--ratio",
    "0.1",
]
METHODS = ["dense", "topk", "topk-allgather,overlap=on"]
TRAIN = ["train", *SHORT, "--epochs", "1", "--steps-per-epoch", "4", "--ratio", "0.1"]


def netsim(folder: Path, model: str, *words: str) -> subprocess.CompletedProcess[str]:
    words = (*words, "--model", f"user_models:{model}", "--json", "out.json")
    return measuring([*words], folder, env={"PYTHONPATH": SEARCH}, timeout=DEADLINE_S)


def methods(names: list[str]) -> list[str]:
    return [word for name in names for word in ("--method", name)]


def measured(folder: Path, model: str, *words: str) -> Result:
    done = netsim(folder, model, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return load(folder / "out.json")


def refused(folder: Path, model: str, *words: str) -> str:
    done = netsim(folder, model, *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def sweep(folder: Path, matrix: dict[str, list[Any]], **settings: object) -> list[Cell]:
    """Every cell in turn, in one command; one that fails does not end it."""
    plan = {"workers": 2, "link": "none", "threads": 1, "timeout": "30s", "repeats": 1, **settings}
    if plan.get("command") != "train":
        plan["baseline"] = "none"
    (folder / "plan.json").write_text(json.dumps({"title": "Models", "matrix": matrix, **plan}))
    words = ["sweep", "plan.json", "--json", "out.json"]
    done = measuring(words, folder, env={"PYTHONPATH": SEARCH}, timeout=2 * DEADLINE_S)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    return load(folder / "out.json").cells


def sweep_working(folder: Path, models: Iterable[str], **settings: object) -> list[Cell]:
    """Every model in turn, all of them forked from one interpreter."""
    return sweep(
        folder, {"seed": [MODELS.index(each) for each in models]}, model="user_models:numbered", **settings
    )


def sweep_refused(folder: Path, models: Iterable[str], **settings: object) -> list[Cell]:
    return sweep(folder, {"model": [f"user_models:{each}" for each in models]}, **settings)


WORKING = [
    "Base",
    "Sometimes",
    "OnSomeRanks",
    "LastUnused",
    "Tied",
    "frozen",
    "lazy",
    "Embedded",
    "half",
    "mixed",
    "Penalty",
    "Noisy",
    "checkpointed",
    "from_generator",
    "from_numpy",
    "from_random",
    "from_system",
]
UNEVEN = ["Sometimes", "OnSomeRanks", "LastUnused", "from_system"]
"""Models of which not every rank has every gradient, or the same values."""


@pytest.mark.parametrize(("execution", "models"), [("concurrent", WORKING), ("replayed", UNEVEN)])
def test_run_takes_every_model_that_ddp_takes(execution: str, models: list[str], tmp_path: Path) -> None:
    cells = sweep_working(
        tmp_path, models, methods=METHODS, ratio=0.1, steps=3, warmup=1, execution=execution
    )
    assert len(cells) == len(models) * (len(METHODS) + 1)  # dense runs both ways
    assert len({cell.repeats[0].ranks[0].parameters_sha256 for cell in cells}) > len(
        models
    )  # and each is another
    assert {cell.id: cell.error for cell in cells if cell.error} == {}
    for cell in cells:
        assert [len(rank.steps) for rank in cell.repeats[0].ranks] == [3, 3]
        assert max(step.wall_s for rank in cell.repeats[0].ranks for step in rank.steps) < 10


def test_train_takes_them_too(tmp_path: Path) -> None:
    plan = {"command": "train", "methods": ["dense", "topk"], "epochs": 1, "steps_per_epoch": 3}
    models = [*UNEVEN, "half", "lazy", "from_numpy"]
    cells = sweep_working(tmp_path, models, **plan)
    assert len(cells) == len(models) * len(plan["methods"])
    assert {cell.id: cell.error for cell in cells if cell.error} == {}
    assert all(len(cell.repeats[0].epochs) == 1 for cell in cells)


REFUSED = {
    "Tuple": "gives tuple for 2 of the 1x8x8 images of digits while training, not [2, 10]",
    "Dict": "gives dict for 2 of the 1x8x8 images of digits while training, not [2, 10]",
    "Named": "gives answer for 2 of the 1x8x8 images of digits while training, not [2, 10]",
    "AlwaysDict": "gives dict for one of the 1x8x8 images of digits, not [1, 10]",
    "Loss": "gives [] for one of the 1x8x8 images of digits, not [1, 10]",
    "Keyword": "missing 1 required keyword-only argument: 'mask'",
    "Detached": "has no backward pass",
    "BadInPlace": "modified by an inplace operation",
    "LazyUnused": "idle.weight has no shape after a forward pass",
    "meta": "1.weight is on the meta device and has no values",
    "OnlyBuffers": "has no parameters to train",
    "SparseEmbedded": "the gradient of table.weight is sparse",
    "Freezing": "extra.bias no longer needs a gradient",
    "other_shapes": "1.weight [",
    "other_order": ".weight [10, 64] float32 on rank 0 is ",
    "double": "is float64, and gradients of float32, float16, bfloat16 parameters are exchanged: make the model",
    "exits": "failed while building: SystemExit: 7",
    "exits_in_forward": "cannot take the 1x8x8 images of digits: SystemExit: 7",
    "other_layers": "the ranks have built different models: more1.weight is on rank",
}


def test_what_no_rank_can_train_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One after the other from one interpreter, which a refusal leaves in order."""
    monkeypatch.setenv("PYTHONPATH", SEARCH)
    monkeypatch.chdir(tmp_path)  # some of the models write a file
    settings: dict[str, Any] = {
        "workers": 2,
        "link": "none",
        "threads": 1,
        "timeout_s": 30.0,
        "steps": 4,
        "baseline": "none",
    }
    with forking(), Pool() as pool:
        for model, said in REFUSED.items():
            scenario = Scenario(
                model="user_models:numbered",
                seed=MODELS.index(model),
                methods=("topk",),
                repeats=1,
                **settings,
            )
            saved: list[Result] = []
            with pytest.raises(NetsimError) as caught:
                run(scenario, command=["netsim"], report=lambda _: None, save=saved.append, pool=pool)
            assert said in str(caught.value), model
            assert not any(cell.repeats for result in saved for cell in result.cells), model


def test_train_refuses_them_too(tmp_path: Path) -> None:
    models = ["Tuple", "SparseEmbedded", "Freezing", "other_shapes"]
    for cell in sweep_refused(tmp_path, models, methods=["topk"], command="train", epochs=1):
        assert not cell.repeats, cell.id
        assert REFUSED[str(cell.model).partition(":")[2]] in str(cell.error)


@pytest.mark.parametrize("model", ["Tuple", "other_layers"])
def test_a_refusal_is_one_line_and_exit_code_2(model: str, tmp_path: Path) -> None:
    assert REFUSED[model] in refused(tmp_path, model, *RUN, *methods(["topk"]))


@pytest.mark.parametrize("command", [RUN, TRAIN], ids=["run", "train"])
def test_a_batch_of_one_and_batch_norm(command: list[str], tmp_path: Path) -> None:
    words = [*command, *methods(["topk"]), "--batch-size", "1"]
    line = refused(tmp_path, "batch_norm", *words)
    assert "Expected more than 1 value per channel" in line
    assert "--batch-size 2" in line


def test_what_was_found_out_is_said(tmp_path: Path) -> None:
    result = measured(tmp_path, "LastUnused", *RUN, *methods(["topk"]))
    assert any("dead.weight, dead.bias took no part" in warning for warning in result.warnings)
    result = measured(tmp_path, "from_system", *TRAIN, *methods(["dense"]))
    assert any("all start with rank 0's" in warning for warning in result.warnings)


def test_unused_parameters_stay_what_they_are_under_every_method(tmp_path: Path) -> None:
    """dense with and without overlap, and Top-K that keeps everything, train the same model."""
    words = [*RUN, *methods(["dense", "topk-allgather,ratio=1"])]
    cells = measured(tmp_path, "Sometimes", *words).cells
    digests = {cell.id: cell.repeats[0].ranks[0].parameters_sha256 for cell in cells}
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize(("model", "workers"), [("half", 3), ("mixed", 2)])
def test_dense_sends_the_parameters_types_as_ddp_does(model: str, workers: int, tmp_path: Path) -> None:
    """A dense row that sends float32 of a bfloat16 model would double what every method gains on it."""
    names = methods(["dense", "fp16"])
    for execution in ("concurrent", "replayed"):
        words = [*instead(RUN, "-n", str(workers)), "--execution", execution, *names]
        cells = {cell.id: cell for cell in measured(tmp_path, model, *words).cells}
        sent = {name: cell.repeats[0].ranks[0].payload_bytes for name, cell in cells.items()}
        own, ddp, half = sent.values()  # dense runs both ways
        assert own == ddp, sent
        if model == "half":
            assert own == half, sent
        else:
            assert half < own < 2 * half, sent
        digests = {each.parameters_sha256 for cell in cells.values() for each in cell.repeats[0].ranks}
        assert len(digests) <= len(cells)  # the ranks of each have the same bits
        trained = [cell.repeats[0].ranks[0].parameters_sha256 for cell in cells.values()]
        if workers == 2:  # two summands have one order
            assert trained[0] == trained[1]


def test_a_loss_that_is_not_a_number_is_one_line(tmp_path: Path) -> None:
    done = netsim(tmp_path, "not_a_number", *RUN, *methods(["fp16"]))
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert "failed while computing: the loss is not a number at step 0 of fp16" in line
    assert "--lr" in line


def sleepers() -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if "76543" in path.read_text():
                found.add(path.parent.name)
    return found


def servers_of(parent: int) -> list[int]:
    """The process that forks the ranks of the command ``parent``."""
    lists = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for each in lists for pid in each.read_text().split()]


@pytest.mark.parametrize("killed", [False, True])
def test_what_a_model_starts_ends_with_the_run(killed: bool, tmp_path: Path) -> None:
    before, steps = sleepers(), "100000" if killed else "2"
    words = [
        *instead(RUN, "--steps", steps),
        "--model",
        "user_models:leaves_a_process",
        *methods(["dense"]),
        "--json",
        "-",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "netsim_ddp", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": SEARCH},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while killed and len(sleepers() - before) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        if killed:
            assert sleepers() - before
            server = servers_of(process.pid)
            process.kill()
            for _ in range(3):  # as Linux may: once for each thread of the command
                for pid in server:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
        out, err = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    if not killed:
        assert process.returncode == 0, err
        assert json.loads(out)["kind"] == "steps"  # what a model prints is not in the document
        assert "built" in err
    deadline = time.monotonic() + 20
    while sleepers() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not sleepers() - before
