"""When buckets become full under --compute: as in a real backward pass, parameter by parameter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from netsim_ddp.errors import UsageError
from netsim_ddp.results.files import load as load_result
from netsim_ddp.results.ready import ReadyTimes, load
from netsim_ddp.steps.ready_task import Passes
from netsim_ddp.workloads.workload import build_workload
from tests.commands import complaint, measuring


def times(forward: float = 0.25, **parameters: float) -> ReadyTimes:
    return ReadyTimes(forward_share=forward, parameters=parameters)


def test_a_bucket_is_full_with_the_last_of_its_parameters() -> None:
    ready = times(a=0.9, b=0.1, c=0.5, d=1.0)
    # Forward takes 10 ms of 40; b's bucket waits for c, and what lies ahead of a bucket goes first.
    assert ready.bucket_times(0.040, [["b", "c"], ["a"], ["d"]]) == pytest.approx([0.025, 0.037, 0.040])
    assert ready.bucket_times(0.040, [["a"], ["b"], ["c", "d"]]) == pytest.approx([0.037, 0.037, 0.040])
    assert ready.bucket_times(0.040, []) == []


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
    st.floats(0, 1),
    st.floats(0.001, 10),
    st.integers(1, 7),
)
def test_buckets_get_full_in_order_within_backward(
    shares: list[float], forward: float, seconds: float, size: int
) -> None:
    names = [f"p{number}" for number in range(len(shares))]
    ready = ReadyTimes(forward_share=forward, parameters=dict(zip(names, shares, strict=True)))
    buckets = [names[begin : begin + size] for begin in range(0, len(names), size)]
    found = ready.bucket_times(seconds, buckets)
    assert found == sorted(found)
    assert found[-1] == seconds
    assert found[0] >= forward * seconds * (1 - 1e-12)


class Odd(nn.Module):
    """A frozen layer, a tied one, one that is checkpointed and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 200)
        self.frozen = nn.Linear(200, 200)
        self.kept = nn.Linear(200, 200)
        self.unused = nn.Linear(3, 3)
        self.last = nn.Linear(200, 10)
        self.last_again = self.last
        self.frozen.requires_grad_(requires_grad=False)

    def forward(self, images: torch.Tensor) -> Any:
        hidden = self.frozen(self.first(images.flatten(1)[:, :64]).relu())
        return self.last_again(checkpoint(self.kept, hidden, use_reentrant=False))


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    (tmp_path / "odd_model.py").write_text("from tests.test_ready import Odd\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "odd_model:Odd"


def test_every_trained_parameter_has_its_moment_in_the_order_of_backward(odd: str) -> None:
    workload = build_workload(model=odd, dataset="digits", batch_size=8)
    passes = Passes(workload, torch.device("cpu"), lambda _: None)
    inputs, targets = workload.next_batch()
    assert passes.largest_batch(inputs, targets) == 8
    forward, shares = passes.measure(inputs, targets)
    assert 0 < forward < 1
    named = dict(workload.model.named_parameters())
    assert set(shares) == {name for name, parameter in named.items() if parameter.requires_grad}
    assert 0 <= shares["last.weight"] < shares["kept.weight"] < shares["first.weight"] <= 1
    assert shares["unused.weight"] == 1.0, "nobody waits for it before backward ends"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "b", "c"], "c is not among them"),
        (["a"], "b is none of the model's"),
        (["a", "x"], "x is not among them"),
    ],
)
def test_another_models_times_are_refused_by_the_first_difference(names: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        times(a=0.1, b=1.0).check(names, "m")
    times(a=0.1, b=1.0).check(["b", "a"], "m")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "holds no ready times"),
        ("[]", "holds no ready times"),
        ('{"kind": "netsim-ready-times"}', "forward_share"),
        ('{"kind": "netsim-ready-times", "forward_share": 0.3, "parameters": {}}', "parameters"),
        ('{"kind": "netsim-ready-times", "forward_share": 0.3, "parameters": {"a": 1.5}}', "parameters.a"),
        ('{"kind": "netsim-ready-times", "forward_share": "NaN", "parameters": {"a": 1}}', "forward_share"),
        ('{"ready": {"x": 3}}', "valid"),
        ("{", "JSON"),
    ],
)
def test_a_file_that_is_none_gets_one_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        load(path, "m")


def test_ready_times_need_an_emulated_compute(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(times(a=1.0).model_dump_json(), encoding="utf-8")
    assert complaint(["run", "--ready-from", "r.json"], tmp_path) == (
        "ready times are played under --compute only: else backward passes are real (write --compute 50ms)"
    )


def test_a_run_keeps_them_and_another_plays_them(tmp_path: Path) -> None:
    short = [
        "-n",
        "2",
        "--link",
        "none",
        "--steps",
        "1",
        "--warmup",
        "0",
        "--repeats",
        "1",
        "--baseline",
        "none",
    ]
    words = ["run", *short, "--compute", "30ms", "--method", "dense"]
    done = measuring([*words, "--json", "a.json"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "buckets become full as in a real backward pass: median of 5 passes at batch 32" in done.stderr
    first = load_result(tmp_path / "a.json")
    ((key, ready),) = first.ready.items()
    assert {cell.id: cell.ready for cell in first.cells} == {
        "dense,overlap=off": [],
        "dense,overlap=on": [key],
    }
    shares = [share for name, share in ready.parameters.items() if name.endswith(".weight")]
    assert shares == sorted(shares, reverse=True), "the layers of simple_cnn stand in a row"
    assert ready.batch_size == 32

    again = measuring([*words, "--ready-from", "a.json", "--json", "b.json"], tmp_path)
    assert again.returncode == 0, again.stderr
    (played,) = load_result(tmp_path / "b.json").ready.values()
    assert played == ready.model_copy(update={"source": "a.json"})

    data = json.loads(ready.model_dump_json())
    data["parameters"].pop(next(iter(data["parameters"])))
    (tmp_path / "less.json").write_text(json.dumps(data), encoding="utf-8")
    refused = measuring([*words, "--ready-from", "less.json"], tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert "is not among them" in refused.stderr.splitlines()[-1]
