"""Momentum and Adam over Top-K: on a problem where the naive way fails or lags, the corrected one does not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from netsim_ddp import DistributedBackend
from netsim_ddp.communication.adam import CompressedAdam
from netsim_ddp.compression.kernels import NonFiniteGradient
from tests.distributed.ranks import on_ranks

N = 500


class Bowl(nn.Module):
    """A noisy quadratic of condition 10 whose minimum is elsewhere on every rank; the mean's loss is what counts."""

    def __init__(self, rank: int, workers: int, noise: float) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(N))
        self.curvature = torch.logspace(-1, 0, N)
        minima = torch.randn(workers, N, generator=torch.Generator().manual_seed(0))
        self.minimum, self.middle = minima[rank], minima.mean(0)
        self.rank, self.noise = rank, noise

    def backward(self, step: int) -> None:
        noise = torch.randn(N, generator=torch.Generator().manual_seed(1000 * step + self.rank))
        self.x.grad = self.curvature * (self.x.detach() - self.minimum) + self.noise * noise

    def loss(self) -> float:
        return float((0.5 * self.curvature * (self.x.detach() - self.middle) ** 2).sum())


def momentum(rank: int, workers: int, kind: str) -> float:
    """The loss after 300 steps of SGD at momentum 0.9."""
    bowl = Bowl(rank, workers, noise=1.0)
    if kind == "start":
        return bowl.loss()
    params: dict[str, Any] = {} if kind == "dense" else {"ratio": 0.05}
    if kind == "corrected":
        params["momentum"] = 0.9
    backend = DistributedBackend(method="dense" if kind == "dense" else "topk-allgather", params=params)
    optimizer = torch.optim.SGD(bowl.parameters(), lr=0.05, momentum=0.0 if kind == "corrected" else 0.9)
    for step in range(300):
        bowl.backward(step)
        backend.allreduce_gradients(bowl.named_parameters())
        optimizer.step()
    return bowl.loss()


def adam(rank: int, workers: int, kind: str, decoupled: bool) -> tuple[float, list[float]]:
    """The loss after 400 steps of Adam or AdamW, and the parameters."""
    bowl = Bowl(rank, workers, noise=0.3)
    decay = 1e-3
    params = {"ratio": 0.01, "collective": "allgather"}
    if kind == "frozen":
        ours = CompressedAdam(
            bowl.named_parameters(),
            lr=0.01,
            weight_decay=decay,
            decoupled=decoupled,
            freeze_after=50,
            params=params,
        )
        for step in range(400):
            bowl.backward(step)
            ours.step()
        return bowl.loss(), bowl.x.tolist()
    backend = DistributedBackend(
        method="dense" if kind == "dense" else "topk", params={} if kind == "dense" else params
    )
    optimizer = (torch.optim.AdamW if decoupled else torch.optim.Adam)(
        bowl.parameters(), lr=0.01, weight_decay=decay
    )
    for step in range(400):
        bowl.backward(step)
        backend.allreduce_gradients(bowl.named_parameters())
        optimizer.step()
    return bowl.loss(), bowl.x.tolist()


def details(rank: int, workers: int) -> dict[str, Any]:
    """Properties of CompressedAdam that need ranks."""
    found: dict[str, Any] = {}
    # Its dense steps are torch's Adam and AdamW.
    for decoupled, torchs in ((False, torch.optim.Adam), (True, torch.optim.AdamW)):
        one, other = (Bowl(rank, workers, noise=0.3) for _ in range(2))
        ours = CompressedAdam(one.named_parameters(), lr=0.01, weight_decay=0.1, decoupled=decoupled)
        backend, theirs = DistributedBackend(), torchs(other.parameters(), lr=0.01, weight_decay=0.1)
        for step in range(20):
            one.backward(step)
            other.backward(step)
            ours.step()
            backend.allreduce_gradients(other.named_parameters())
            theirs.step()
        found[torchs.__name__] = float((one.x - other.x).abs().max())

    # A step that is not finite changes nothing, dense or compressed; a checkpoint goes on with the same bits.
    bowl = Bowl(rank, workers, noise=0.3)
    options: dict[str, Any] = {"lr": 0.01, "freeze_after": 5}
    skipping = CompressedAdam(bowl.named_parameters(), **options, params={"nonfinite": "skip"})
    found["skipped"] = []
    for step in range(10):
        bowl.backward(step)
        if step in (2, 7) and rank == 0:
            bowl.x.grad[5] = float("nan")  # type: ignore[index] # backward has just made it
        before = bowl.x.detach().clone()
        taken = skipping.step()
        found["skipped"].append((taken, torch.equal(before, bowl.x)))
    other_bowl = Bowl(rank, workers, noise=0.3)
    other_bowl.load_state_dict(bowl.state_dict())
    resumed = CompressedAdam(other_bowl.named_parameters(), **options, params={"nonfinite": "skip"})
    resumed.load_state_dict(copy.deepcopy(skipping.state_dict()))
    for step in range(10, 15):
        for each, optimizer in ((bowl, skipping), (other_bowl, resumed)):
            each.backward(step)
            optimizer.step()
    found["resumed"] = torch.equal(bowl.x, other_bowl.x)

    raising = CompressedAdam(bowl.named_parameters(), **options)
    bowl.backward(0)
    bowl.x.grad[5] = float("inf")  # type: ignore[index] # as above
    try:
        raising.step()
    except NonFiniteGradient as error:
        found["raised"] = str(error)
    return found


def study(rank: int, workers: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {
        "momentum": {
            kind: momentum(rank, workers, kind) for kind in ("start", "dense", "naive", "corrected")
        },
        "adam": {kind: adam(rank, workers, kind, False) for kind in ("dense", "naive", "frozen")},
        "adamw": {kind: adam(rank, workers, kind, True) for kind in ("dense", "naive", "frozen")},
        "details": details(rank, workers),
    }


@pytest.fixture(scope="module")
def studied() -> list[dict[str, Any]]:
    return on_ranks(study, 2)


def test_momentum_correction_converges_where_the_optimizers_momentum_does_not(studied: list[Any]) -> None:
    losses = studied[0]["momentum"]
    assert losses["naive"] > losses["start"]
    assert losses["corrected"] < 0.5 * losses["start"]
    assert losses["corrected"] < losses["dense"] < losses["start"]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_with_a_frozen_second_moment_does_not_lag(studied: list[Any], name: str) -> None:
    losses = {kind: loss for kind, (loss, _) in studied[0][name].items()}
    assert losses["naive"] > 3 * losses["frozen"]
    assert losses["naive"] > 15 * losses["dense"]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_ranks_hold_the_same_parameters(studied: list[Any], name: str) -> None:
    assert studied[0][name] == studied[1][name]


def test_dense_steps_are_torchs_and_a_bad_one_changes_nothing(studied: list[Any]) -> None:
    for rank in studied:
        found = rank["details"]
        assert found["Adam"] < 1e-5
        assert found["AdamW"] < 1e-5
        assert found["skipped"] == [(step not in (2, 7), step in (2, 7)) for step in range(10)]
        assert found["resumed"]
        assert "not finite" in found["raised"]
