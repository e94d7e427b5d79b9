"""A model, data, loss and optimizer of the user's own, in real processes: what is accepted trains, and is refused
otherwise in one line with exit code 2."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from netsim_ddp.results.files import load
from tests.commands import ROOT, instead, measuring

MODULE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

def points(count, dim=8):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(count, dim, generator=generator)
    return inputs, inputs @ torch.randn(dim, 1, generator=generator)

def data(n: int = 64):
    return TensorDataset(*points(n))

ready = data(40)

def pair():
    return data(64), data(24)

def loaders(size=4):
    return DataLoader(data(64), size, shuffle=True), [points(8), points(8)]

def split(rank, world_size, batch_size):
    inputs, targets = points(60 + 8 * rank)
    return DataLoader(TensorDataset(inputs, targets), batch_size), DataLoader(data(24), 8)

class Classes(Dataset):
    num_classes = 5
    def __init__(self, n=80):
        self.n = n
    def __len__(self):
        return self.n
    def __getitem__(self, i):
        return torch.full((6,), float(i % 5)), i % 5

class Dicts(Classes):
    def __getitem__(self, i):
        return {"x": torch.zeros(6), "y": 1}

class Breaks(Classes):
    def __getitem__(self, i):
        if i > 10:
            raise OSError("disk\\nfull")
        return super().__getitem__(i)

class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(8), torch.zeros(1)

class Short:
    def __len__(self):
        return 8
    def __iter__(self):
        return iter([points(4)] * 2)

def nothing():
    return None

def empty():
    return TensorDataset(torch.zeros(0, 8), torch.zeros(0, 1))

def streamed():
    return DataLoader(Stream(), 4), DataLoader(Stream(), 4)

def short():
    return Short(), Short()

def build(dim: int = 16, deep: bool = False):
    more = [nn.ReLU(), nn.Linear(dim, dim)] if deep else []
    return nn.Sequential(nn.Linear(8, dim), *more, nn.Linear(dim, 1))

class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, num_classes))

def loss(outputs, targets, power: float = 2.0):
    return (outputs - targets).abs().pow(power).mean()

def vector(outputs, targets):
    return (outputs - targets).flatten()

def nan(outputs, targets):
    return (outputs * float("nan")).mean()

def number(outputs, targets):
    return 3.0

def made(beta=1.0):
    return nn.SmoothL1Loss(beta=beta)

class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
    def forward(self, outputs, targets):
        return self.weight * (outputs - targets).square().mean()
"""
RUN = [
    "run",
    "--steps",
    "2",
    "--warmup",
    "0",
    "--repeats",
    "1",
    "--baseline",
    "none",
    "--execution",
    "concurrent",
]
TRAIN = ["train", "--epochs", "3", "--lr", "0.02"]
SMALL = [
    "--workers",
    "2",
    "--link",
    "none",
    "--batch-size",
    "4",
    "--method",
    "dense",
    "--method",
    "topk,ratio=0.2",
]


def netsim(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "mine.py").write_text(MODULE, encoding="utf-8")
    (folder / "bad.py").write_text("raise RuntimeError('no\\nluck')", encoding="utf-8")
    path = os.pathsep.join([str(folder), str(ROOT)])
    return measuring([*words, *SMALL, "--json", "out.json"], folder, env={"PYTHONPATH": path})


@pytest.mark.parametrize(
    ("data", "loss"),
    [
        ("mine:data,n=48", "mine:loss,power=1.5"),
        ("mine:ready", "mse"),
        ("mine:pair", "mine:made,beta=0.5"),
        ("mine:loaders,size=8", "torch.nn:SmoothL1Loss"),
        ("mine:split", "mine:loss"),
    ],
)
def test_own_data_and_loss_train_and_the_loss_falls(tmp_path: Path, data: str, loss: str) -> None:
    done = netsim(tmp_path, *TRAIN, "--model", "mine:build,dim=12", "--dataset", data, "--loss", loss)
    assert done.returncode == 0, done.stderr
    result = load(tmp_path / "out.json")
    assert (result.scenario["dataset"], result.scenario["loss_function"]) == (data, loss)
    assert f"loss {loss}" in " ".join(done.stdout.split())
    for cell in result.cells:
        (repeat,) = cell.repeats
        first, *_, last = repeat.epochs
        assert last.train_loss < first.train_loss
        assert last.validation_accuracy is None
        assert len({rank.parameters_sha256 for rank in repeat.ranks}) == 1


def test_a_step_is_measured_with_own_model_data_loss_and_adamw(tmp_path: Path) -> None:
    own = ["--model", "mine:build,deep=on,dim=12", "--dataset", "mine:data", "--loss", "mine:loss"]
    done = netsim(tmp_path, *RUN, *own, "--optimizer", "adamw", "--weight-decay", "0.1")
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert "mine:build,deep=on,dim=12 " in shown
    assert " on mine:data | " in shown
    assert "| adamw | weight decay 0.1 | loss mine:loss" in shown
    assert "Under adamw topk sent parameters of fewer than 20,000 entries whole" in shown
    result = load(tmp_path / "out.json")
    assert result.scenario["learning_rate"] == 0.001
    assert result.cells[-1].params["dense_below"] == 20_000
    assert [code.name for code in result.code] == ["netsim", "mine"]
    again = measuring(["run", "--config", "out.json", "--json", "again.json"], tmp_path)
    assert again.returncode == 0, again.stderr
    assert load(tmp_path / "again.json").cells[-1].id == result.cells[-1].id


def test_classes_of_own_data_reach_the_model_and_give_an_accuracy(tmp_path: Path) -> None:
    done = netsim(tmp_path, *TRAIN, "--model", "mine:Net", "--dataset", "mine:Classes,n=60")
    assert done.returncode == 0, done.stderr
    epochs = load(tmp_path / "out.json").cells[0].repeats[0].epochs
    assert all(epoch.validation_accuracy is not None for epoch in epochs)


BUILD = ["--model", "mine:build"]
NET = ["--model", "mine:Net"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            [*BUILD, "--dataset", "mine:nothing"],
            "dataset 'mine:nothing' is NoneType (name a torch Dataset, or a",
        ),
        ([*BUILD, "--dataset", "mine:empty"], "dataset 'mine:empty' is empty"),
        ([*BUILD, "--dataset", "mine:data,n=2"], "mine:data,n=2 has too few examples for 2 ranks"),
        ([*BUILD, "--dataset", "mine:Stream"], "dataset 'mine:Stream' is Stream (name a torch Dataset"),
        ([*BUILD, "--dataset", "mine:streamed"], "'mine:streamed': a loader has no length"),
        (
            [*BUILD, "--dataset", "mine:short", "--loss", "mse"],
            "a loader ended before it had given its 8 batches",
        ),
        ([*BUILD, "--dataset", "mine:loaders,size=64"], "a loader has 1 batch for 2 ranks"),
        ([*BUILD, "--dataset", "mine:data,m=3"], "has no option 'm' (it takes n=64)"),
        ([*BUILD, "--dataset", "mine:ready,n=3"], "dataset 'mine:ready,n=3' is made already"),
        ([*BUILD, "--dataset", "bad:data"], "importing 'bad' failed: RuntimeError: no luck"),
        ([*BUILD, "--dataset", "gone:data"], "there is no module 'gone'"),
        ([*BUILD, "--dataset", "mine:data"], "targets of floating point"),
        ([*NET, "--dataset", "mine:Dicts"], "gives batches that are dict with the keys x, y"),
        ([*NET, "--dataset", "mine:Breaks"], "failed: OSError: disk full"),
        (["--model", "mine:build,dmi=3"], "has no option 'dmi' (did you mean 'dim'?"),
        (["--model", "simple_cnn", "--dataset", "mine:data"], "does not say how many classes it has"),
        ([*BUILD, "--dataset", "mine:data", "--loss", "mine:vector"], "returned a [2] (float32) for outputs"),
        (
            [*BUILD, "--dataset", "mine:data", "--loss", "mine:nan"],
            "loss 'mine:nan' is nan for the first targets",
        ),
        ([*BUILD, "--dataset", "mine:data", "--loss", "mine:number"], "returned a float for outputs"),
        ([*BUILD, "--dataset", "mine:data", "--loss", "mine:Weighted"], "has parameters of its own"),
        (["--loss", "mse"], "loss 'mse' cannot take outputs [2, 10] (float32) and targets [2] (int64)"),
    ],
)
def test_what_cannot_be_trained_is_one_line(tmp_path: Path, words: list[str], said: str) -> None:
    done = netsim(tmp_path, *instead(RUN, "--steps", "8"), *words)
    assert done.returncode == 2, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("netsim: ")
    assert said in last
    assert "Traceback" not in done.stderr
