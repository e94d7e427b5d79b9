"""A training step on real ranks, without the command around it: decay, what waits, what is skipped, what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netsim_ddp.communication.sgd import CorrectedSGD
from netsim_ddp.errors import NetsimError
from tests.distributed.ranks import on_ranks
from tests.distributed.test_training_parts import Linear

SCENARIO: dict[str, Any] = {
    "learning_rate": 0.1,
    "weight_decay": 0.0,
    "momentum": 0.9,
    "optimizer": "sgd",
    "accumulate": 1,
    "clip_norm": None,
    "precision": "fp32",
}


class NaNGradient(Linear):
    """Its loss is finite, its weight's gradient is not."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return super().loss(outputs, targets) + (0 * self.model.weight.sum()).sqrt()


class TwoTypes(Linear):
    """One parameter is bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.model.bias = nn.Parameter(self.model.bias.detach().bfloat16())
        self.model.forward = lambda x: x @ self.model.weight.T + self.model.bias.float()


class Faint(Linear):
    """Its gradients are a hundredth of the smallest float16."""

    factor = 1e-8

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return super().loss(outputs, targets) * self.factor


class Loud(Faint):
    """Scaled, its gradients are beyond float16."""

    factor = 1e3


WORKLOADS = {"linear": Linear, "nan": NaNGradient, "two types": TwoTypes, "faint": Faint, "loud": Loud}


class Rank:
    """A trainer as a rank builds it, and the steps that it takes."""

    def __init__(
        self, rank: int, workers: int, method: str, params: dict[str, Any], workload: str, **changes: Any
    ) -> None:
        from netsim_ddp.communication.flat import FlatGradients
        from netsim_ddp.communication.segments import Group
        from netsim_ddp.scenario import TrainScenario
        from netsim_ddp.steps.execution import Concurrent
        from netsim_ddp.steps.phases import HostClock, StepTimer
        from netsim_ddp.training.exchange import build_exchange
        from netsim_ddp.training.loop import Trainer
        from netsim_ddp.training.precision import LossScaler

        freeze_after, own_batches = changes.pop("freeze_after", None), changes.pop("own_batches", False)
        scenario = TrainScenario(**{**SCENARIO, **changes})
        self.workload, group = WORKLOADS[workload](), Group(rank, workers)
        if own_batches:
            self.workload.seed = 10 + rank
        flat = FlatGradients(self.workload.model.named_parameters())
        self.exchange = build_exchange(scenario, method, params, freeze_after, flat, group)
        scaler = LossScaler() if scenario.precision == "fp16" else None
        self.trainer = Trainer(
            self.workload, flat, self.exchange, scaler, scenario, lambda _: None, alone=workers == 1, params=params
        )  # fmt: skip
        self._execution = Concurrent(StepTimer(HostClock()), lambda: None)

    def steps(self, count: int) -> list[Any]:
        """The parameters after ``count`` more."""
        for _ in range(count):
            self.trainer.step(self._execution, 0.1, "a step")
        return [parameter.tolist() for parameter in self.workload.model.parameters()]


def after(rank: int, workers: int, method: str, params: dict[str, Any], steps: int, changes: Any) -> Any:
    changes = {"workload": "linear", **changes}
    one = Rank(rank, workers, method, params, **changes)
    return one.steps(steps), one.trainer.totals.skipped


def flat(parameters: list[Any]) -> torch.Tensor:
    return torch.cat([torch.tensor(value).reshape(-1) for value in parameters])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_weight_decay_has_the_momentum_that_it_has_in_plain_sgd(workers: int) -> None:
    changes = {"weight_decay": 0.05}
    dense = on_ranks(after, workers, "dense", {}, 8, changes)
    topk = on_ranks(after, workers, "topk", {"ratio": 1.0, "momentum": 0.9, "masking": "off"}, 8, changes)
    without = on_ranks(after, workers, "dense", {}, 8, {})
    assert torch.allclose(flat(topk[0][0]), flat(dense[0][0]), atol=1e-5)
    assert not torch.allclose(flat(without[0][0]), flat(dense[0][0]), atol=1e-3), "decay does something"


def test_corrected_sgd_refuses_what_it_cannot_do() -> None:
    parameter = nn.Parameter(torch.ones(2))
    for wrong in ({"momentum": 1.0}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match="must be"):
            CorrectedSGD([parameter], **wrong)
    with pytest.raises(ValueError, match="closure"):
        CorrectedSGD([parameter]).step(lambda: 0.0)
    CorrectedSGD([parameter], weight_decay=1.0).step()
    assert parameter.tolist() == [1.0, 1.0], "a parameter without a gradient is left alone"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_gradient_that_is_not_finite_is_skipped_on_any_number_of_ranks(workers: int) -> None:
    fresh = [parameter.tolist() for parameter in Linear().model.parameters()]
    for parameters, skipped in on_ranks(
        after, workers, "topk", {"ratio": 0.5, "nonfinite": "skip"}, 3, {"workload": "nan"}
    ):
        assert parameters == fresh
        assert skipped == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_a_methods_clip_holds_on_any_number_of_ranks(workers: int) -> None:
    params = {"ratio": 1.0, "momentum": 0.9, "masking": "off"}
    tight = on_ranks(after, workers, "topk", {**params, "clip": 0.01}, 3, {})
    loose = on_ranks(after, workers, "topk", params, 3, {})
    start = flat([parameter.tolist() for parameter in Linear().model.parameters()])
    moved = [float((flat(each[0][0]) - start).norm()) for each in (tight, loose)]
    assert 0 < moved[0] <= 0.1 * 0.01 * (1 + 1.9 + 2.71) + 1e-6, "three steps of SGD with momentum"
    assert moved[1] > 10 * moved[0]


def test_a_gradient_that_is_not_finite_at_any_scale_ends_the_run_and_is_named() -> None:
    one = Rank(0, 1, "dense", {}, "nan", precision="fp16")
    with pytest.raises(NetsimError, match="gradient of weight is not finite at a step, however small"):
        one.steps(60)
    assert one.trainer.totals.skipped > 20


def averaged(
    rank: int, workers: int, method: str, workload: str, clip: float | None
) -> tuple[Any, int, float]:
    """The gradient that the optimizer had last, how many steps were skipped, and the scale."""
    changes = {"precision": "fp16", "momentum": 0.0, "own_batches": True, "clip_norm": clip}
    one = Rank(rank, workers, method, {}, workload, **changes)
    one.steps(10)
    assert one.trainer.scaler is not None
    return one.trainer.flat.data.tolist(), one.trainer.totals.skipped, one.trainer.scaler.scale


@pytest.mark.parametrize("clip", [None, 1e-9])
def test_float16_on_the_wire_gets_the_scaled_gradient(clip: float | None) -> None:
    exact = torch.tensor(on_ranks(averaged, 2, "dense", "faint", clip)[0][0])
    rounded = on_ranks(averaged, 2, "fp16", "faint", clip)
    assert exact.norm() > 0
    assert clip is None or exact.norm() <= clip * 1.001
    for answer in rounded:
        # Rounded, divided, summed, as torch's hook does it: two steps of float16's smallest, 2^-24, under the scale of
        # 65536, are 1.8e-12, and either operation may lose one.
        assert torch.allclose(torch.tensor(answer[0]), exact, rtol=0.01, atol=4e-12)
        assert answer[1] == 0


def test_an_overflow_on_the_wire_is_skipped_by_all_and_lowers_the_scale() -> None:
    answers = on_ranks(averaged, 2, "fp16", "loud", None)
    for answer in answers:
        assert 0 < answer[1] < 10
        assert answer[1:] == answers[0][1:]
        assert answer[2] == 65536 / 2 ** answer[1]
        assert torch.tensor(answer[0]).isfinite().all()


@pytest.mark.parametrize("workers", [1, 2])
def test_parameters_of_other_types_get_the_average_too(workers: int) -> None:
    for method, params in (("dense", {}), ("topk", {"ratio": 1.0})):
        changes = {"momentum": 0.0, "own_batches": True}
        mixed = on_ranks(after, workers, method, params, 6, {**changes, "workload": "two types"})
        plain = on_ranks(after, workers, method, params, 6, changes)
        assert all(each == mixed[0] for each in mixed), "all ranks hold the same"
        assert torch.allclose(flat(mixed[0][0]), flat(plain[0][0]), atol=0.02), "to bfloat16's precision"


STATES: list[dict[str, Any]] = [
    {"method": "topk", "params": {"ratio": 0.2, "momentum": 0.9, "collective": "split"}},
    {"method": "topk", "params": {"ratio": 0.2, "adaptive": True, "collective": "split"}},
    *(
        {"method": "topk", "params": {"ratio": 0.2, "selector": name}}
        for name in ("sampled", "fitted", "random", "block")
    ),
    {"method": "topk-allgather", "params": {"ratio": 0.2, "values": "int8-stochastic"}},
    {"method": "powersgd", "params": {"rank": 2}},
    {
        "method": "topk",
        "params": {"ratio": 0.2, "adaptive": True},
        "optimizer": "adamw",
        "freeze_after": 2,
    },
]


def saved_and_read(rank: int, workers: int, folder: str, changes: dict[str, Any]) -> Any:
    """Five steps, saved after the third; and the last two again from what was read back."""
    from netsim_ddp.training.states import read_state, write_state

    whole, begun, resumed = (Rank(rank, workers, workload="linear", **changes) for _ in range(3))
    undisturbed = whole.steps(5)
    begun.steps(3)
    state = {
        "exchange": begun.exchange.state_dict(),
        "shared": begun.exchange.shared_state(),
        "model": begun.workload.model.state_dict(),
    }
    write_state(Path(folder), f"rank-{rank}.pt", state)
    read = read_state(Path(folder) / f"rank-{rank}.pt")
    resumed.workload.model.load_state_dict(read["model"])
    resumed.exchange.load_shared_state(read["shared"])
    resumed.exchange.load_state_dict(read["exchange"])
    return undisturbed, resumed.steps(2)


@pytest.mark.parametrize("changes", STATES, ids=lambda each: f"{each['method']} {each['params']}")
def test_every_methods_state_is_read_back_from_a_file(changes: dict[str, Any], tmp_path: Path) -> None:
    for undisturbed, resumed in on_ranks(saved_and_read, 2, str(tmp_path), changes):
        assert resumed == undisturbed


def moved_to(rank: int, workers: int, folder: str, old: int, changes: dict[str, Any]) -> Any:
    """Three steps as part of ``old`` ranks, whose files are in ``folder``, then three as part of ``workers``."""
    from netsim_ddp.training.other_ranks import carried_momentum, on_other_ranks
    from netsim_ddp.training.states import read_state

    states = [read_state(Path(folder) / f"rank-{each}.pt") for each in range(old)]
    one = Rank(rank, workers, workload="linear", **changes)
    names = one.trainer.flat.names
    shared = carried_momentum(states[0]["shared"], states, "sum", workers, names)
    own = on_other_ranks(states, "sum", (rank, workers), 3, one.trainer)
    one.workload.model.load_state_dict(own["model"])
    one.exchange.load_shared_state(shared)
    one.exchange.load_state_dict(own["exchange"])
    return one.steps(3)


def three_steps(rank: int, workers: int, folder: str, changes: dict[str, Any]) -> None:
    import dataclasses

    from netsim_ddp.training.states import write_state

    one = Rank(rank, workers, workload="linear", **changes)
    one.steps(3)
    state = {
        "exchange": one.exchange.state_dict(),
        "shared": one.exchange.shared_state(),
        "model": one.workload.model.state_dict(),
        "totals": dataclasses.asdict(one.trainer.totals),
        "step": 3,
        "steps_per_epoch": 3,
    }
    write_state(Path(folder), f"rank-{rank}.pt", state)


@pytest.mark.parametrize(("old", "new"), [(2, 1), (1, 2), (2, 3)])
def test_momentum_goes_on_with_any_number_of_ranks(old: int, new: int, tmp_path: Path) -> None:
    """At ratio 1, where nothing stays back, and with the same batch on all ranks, their number makes no difference."""
    changes = {
        "method": "topk",
        "params": {"ratio": 1.0, "momentum": 0.9, "masking": "off", "collective": "split"},
        "weight_decay": 0.05,
    }
    on_ranks(three_steps, old, str(tmp_path), changes)
    moved = on_ranks(moved_to, new, str(tmp_path), old, changes)
    whole, _ = on_ranks(after, new, changes["method"], changes["params"], 6, {"weight_decay": 0.05})[0]
    assert torch.allclose(flat(moved[0]), flat(whole), atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"params": {"ratio": 0.1, "momentum": 0.9}}, id="corrected momentum"),
        pytest.param({"params": {"ratio": 0.1}, "momentum": 0.0}, id="sgd"),
        pytest.param({"params": {"ratio": 0.1}, "optimizer": "adam", "freeze_after": 1}, id="frozen moment"),
    ],
)
def test_what_waits_is_applied_once_by_the_rank_that_is_left(changes: dict[str, Any], tmp_path: Path) -> None:
    from netsim_ddp.training.residuals import pending_gradient
    from netsim_ddp.training.states import read_state

    changes = {"method": "topk", **changes}
    on_ranks(three_steps, 2, str(tmp_path), changes)
    states = [read_state(tmp_path / f"rank-{rank}.pt") for rank in range(2)]
    pending = torch.cat([v.reshape(-1) for v in pending_gradient([s["exchange"] for s in states]).values()])
    assert pending.any(), "something stayed back"
    (kept,) = on_ranks(first_update, 1, str(tmp_path), changes, "sum")
    (lost,) = on_ranks(first_update, 1, str(tmp_path), changes, "nothing pending")
    change = flat(kept) - flat(lost)
    if (
        "freeze_after" in changes
    ):  # the momentum takes it as it is; the step divides by the root of the second moment
        assert torch.equal(change.sign(), -pending.sign())
        return
    assert torch.allclose(change, -0.1 * pending, atol=1e-6)


def first_update(rank: int, workers: int, folder: str, changes: dict[str, Any], rule: str) -> Any:
    from netsim_ddp.training.other_ranks import carried_momentum, on_other_ranks
    from netsim_ddp.training.states import read_state

    states = [read_state(Path(folder) / f"rank-{each}.pt") for each in range(2)]
    one = Rank(rank, workers, workload="linear", **changes)
    shared = carried_momentum(states[0]["shared"], states, "sum", workers, one.trainer.flat.names)
    own = on_other_ranks(states, "sum", (rank, workers), 3, one.trainer)
    if rule != "sum":
        one.trainer.pending = None
    one.workload.model.load_state_dict(own["model"])
    one.exchange.load_shared_state(shared)
    one.exchange.load_state_dict(own["exchange"])
    return one.steps(1)
