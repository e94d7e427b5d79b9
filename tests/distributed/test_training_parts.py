"""The parts of a training on their own: loss scaling that all ranks agree on, residuals for other ranks, the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from netsim_ddp import MetricsTracker
from netsim_ddp.compression.quotas import Quotas
from netsim_ddp.compression.shards import Shards
from netsim_ddp.compression.statistics import Statistics
from netsim_ddp.errors import EnvironmentFault, UsageError
from netsim_ddp.training.residuals import converted, pending_gradient
from tests.distributed.ranks import on_ranks


class Linear:
    """A workload of one layer, whose batches are all the same; ``seed`` decides what they hold."""

    seed = 1

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(8, 4)
        self.device = torch.device("cpu")

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(16, 8, generator=generator), torch.arange(16) % 4

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs.float(), targets)

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, int]:
        return (outputs.argmax(dim=-1) == targets).sum(), targets.numel()


def overflowing(rank: int, workers: int) -> dict[str, Any]:
    """Three steps, in the second of which rank 1's scaled loss overflows."""
    from netsim_ddp.communication.flat import FlatGradients
    from netsim_ddp.communication.segments import Group
    from netsim_ddp.scenario import TrainScenario
    from netsim_ddp.steps.execution import Concurrent
    from netsim_ddp.steps.phases import HostClock, StepTimer
    from netsim_ddp.training.exchange import build_exchange
    from netsim_ddp.training.loop import Trainer
    from netsim_ddp.training.precision import LossScaler

    scenario = TrainScenario(learning_rate=0.1, momentum=0.0, precision="fp16")
    workload, group = Linear(), Group(rank, workers)
    flat = FlatGradients(workload.model.named_parameters())
    exchange = build_exchange(scenario, "topk", {"ratio": 0.2, "collective": "split"}, None, flat, group)
    scaler = LossScaler()
    trainer = Trainer(workload, flat, exchange, scaler, scenario, lambda _: None, alone=False, params={})
    execution = Concurrent(StepTimer(HostClock()), lambda: None)
    found: dict[str, Any] = {"scales": [], "states": [], "parameters": []}
    for step in range(3):
        if step == 1 and rank == 1:
            usual, scaler.scale = scaler.scale, torch.finfo(torch.float32).max
        trainer.step(execution, 0.1, f"step {step + 1}")
        if step == 1 and rank == 1:
            scaler.scale = usual * 0.5
        state = exchange.state_dict()
        found["scales"].append(scaler.scale)
        kept = {**state["error_buffer"], "sums": state["sums"]}
        found["states"].append({name: value.tolist() for name, value in kept.items()})
        found["parameters"].append([p.tolist() for p in workload.model.parameters()])
    found["skipped"] = trainer.totals.skipped
    return found


def test_an_overflow_on_one_rank_is_skipped_by_all_and_leaves_feedback_untouched() -> None:
    answers = on_ranks(overflowing, 2)
    for answer in answers:
        assert answer["skipped"] == 1
        assert answer["scales"] == [65536.0, 32768.0, 32768.0]
        first, second, third = answer["states"]
        assert first == second != third
        before, after, last = answer["parameters"]
        assert before == after != last
    assert answers[0]["parameters"] == answers[1]["parameters"]


SHAPES = {"weight": (7, 5), "bias": (11,)}


def saved(ranks: int) -> list[dict[str, Any]]:
    """What the ranks of a split-reduce keep."""
    generator = torch.Generator().manual_seed(ranks)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    sizes = np.array([35, 11])
    shares = Quotas(ranks, sizes, sizes // 2).shares
    return [
        {
            "rank": rank,
            "world_size": ranks,
            "selection": {"budget": {"step": 7}, "selector": {}},
            "error_buffer": {name: draw(*shape) for name, shape in SHAPES.items()},
            "velocity": {name: draw(*shape) for name, shape in SHAPES.items()},
            "sums": draw(shares.size(rank)),
            "shares": shares.state(),
        }
        for rank in range(ranks)
    ]


@pytest.mark.parametrize(("old", "new"), [(2, 3), (4, 2), (3, 1)])
def test_sum_keeps_the_mean_of_what_is_pending_and_drop_loses_it(old: int, new: int) -> None:
    states = saved(old)
    # Another way to the same mean: position by position, each owner's sums by hand.
    expected = torch.cat(
        [sum(state["error_buffer"][name] for state in states).reshape(-1) for name in SHAPES]
    )
    shares = Shards(old, *states[0]["shares"].T.tolist())
    for owner, state in enumerate(states):
        for local, value in enumerate(state["sums"]):
            expected[int(shares.positions(owner, torch.tensor(local)))] += value
    expected /= old
    kept = [converted(states, "sum", rank, new) for rank in range(new)]
    mean = torch.cat([sum(each["error_buffer"][name] for each in kept).reshape(-1) / new for name in SHAPES])
    assert torch.allclose(mean, expected, atol=1e-6)
    assert torch.allclose(
        torch.cat([value.reshape(-1) for value in pending_gradient(states).values()]), expected, atol=1e-6
    )
    for rank, each in enumerate(kept):
        assert (each["rank"], each["world_size"]) == (rank, new)
        assert each["selection"] == states[0]["selection"]
        assert "sums" not in each  # owners start empty
    dropped = converted(states, "drop", 0, new)
    assert not any(bool(value.any()) for value in dropped["error_buffer"].values())
    assert not any(bool(value.any()) for value in dropped["velocity"].values())


def test_the_state_of_a_users_own_method_is_not_guessed_at() -> None:
    with pytest.raises(UsageError, match="mystery"):
        converted([{"mystery": 1}, {"mystery": 2}], "sum", 0, 3)


def test_the_tracker_writes_a_line_per_step_and_goes_on_where_a_checkpoint_was(tmp_path: Path) -> None:
    statistics = Statistics(2, 100, 9.0, 16.0, 7.0, payload_bytes=12)
    with MetricsTracker(tmp_path / "log", backend="jsonl") as tracker:
        assert tracker.backend == "jsonl"
        for step in range(4):
            tracker.log_step(
                step, loss=1.0 / (step + 1), phases={"compute": 0.5}, tx_bytes=10, statistics=statistics
            )
        tracker.log(3, {"validation/accuracy": 0.9, "validation/loss": float("nan"), "absent": None})
    lines = read(tmp_path)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 3]
    assert lines[1]["train/loss"] == 0.5
    assert lines[1]["time/compute"] == 0.5
    assert lines[1]["bytes/sent"] == 10
    assert lines[1]["compression/energy_kept"] == 9 / 16
    assert lines[1]["compression/residual_norm"] == pytest.approx(7**0.5)
    assert lines[4]["validation/loss"] == "nan"
    assert "absent" not in lines[4]
    with (tmp_path / "log" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tra')  # a killed rank's last words
    with MetricsTracker(tmp_path / "log", backend="jsonl", first_step=2) as tracker:
        tracker.log_step(2, loss=7.0)
    assert [line["step"] for line in read(tmp_path)] == [0, 1, 2]
    assert read(tmp_path)[-1]["train/loss"] == 7.0


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log" / "metrics.jsonl").read_text().splitlines()]


def test_a_log_that_cannot_be_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no log of kind"):
        MetricsTracker(tmp_path, backend="csv")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        MetricsTracker(tmp_path / "file", backend="jsonl")
    monkeypatch.setattr("netsim_ddp.training.tracker.find_spec", lambda _: None)
    with pytest.raises(EnvironmentFault, match="not installed") as caught:
        MetricsTracker(tmp_path / "log", backend="tensorboard")
    assert "netsim-ddp[tensorboard]" in str(caught.value.hint)
    assert MetricsTracker(tmp_path / "log").backend == "jsonl"
