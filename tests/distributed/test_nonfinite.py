"""One rank's gradient is not finite: all ranks raise, or all skip the step as if it had never been."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from netsim_ddp import DistributedBackend
from netsim_ddp.compression.kernels import NonFiniteGradient
from tests.distributed.ranks import on_ranks

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "split": ("topk", {"collective": "split"}),
    "split fp16 momentum": ("topk", {"collective": "split", "values": "fp16", "momentum": 0.9}),
    "split without feedback": ("topk", {"collective": "split", "feedback": False}),
    "split warm-up": ("topk", {"collective": "split", "warmup_steps": 4, "adaptive": True}),
    "allgather": ("topk-allgather", {}),
    "allgather momentum": ("topk-allgather", {"momentum": 0.9, "clip": 2.0, "selector": "random"}),
    "dense": ("topk-dense", {}),
}
STEPS, BAD_STEP = 5, 2


def gradient(rank: int, step: int) -> torch.Tensor:
    return torch.randn(700, generator=torch.Generator().manual_seed(10 * step + rank))


def backend_of(case: str, **options: Any) -> DistributedBackend:
    name, params = CASES[case]
    return DistributedBackend(method=name, params={"ratio": 0.05, **params, **options})


def everything(state: Any) -> list[Any]:
    """A nested state as a flat list that compares by value."""
    if isinstance(state, dict):
        return [part for key in sorted(state, key=str) for part in (key, *everything(state[key]))]
    return [state.tolist() if hasattr(state, "tolist") else state]


def skip_and_raise(rank: int, workers: int) -> dict[str, dict[str, Any]]:
    found = {}
    for case in CASES:
        averages: dict[bool, list[Any]] = {}
        row: dict[str, Any] = {}
        for disturbed in (False, True):
            backend = backend_of(case, nonfinite="skip")
            model = nn.ParameterDict({"w": torch.zeros(35, 20)})
            averages[disturbed] = []
            for step in range(STEPS):
                if disturbed and step == BAD_STEP:
                    assert backend.method is not None
                    before = everything(backend.method.state_dict())
                    model["w"].grad = gradient(rank, 99).view(35, 20)
                    if rank == workers - 1:
                        model["w"].grad[3, 4] = float("inf")
                    row["taken"] = backend.allreduce_gradients(model.named_parameters())
                    row["average is zero"] = not bool(model["w"].grad.any())
                    row["unchanged"] = everything(backend.method.state_dict()) == before
                model["w"].grad = gradient(rank, step).view(35, 20)
                assert backend.allreduce_gradients(model.named_parameters())
                averages[disturbed].append(model["w"].grad.tolist())
        row["goes on"] = averages[True] == averages[False]

        backend = backend_of(case)
        model = nn.ParameterDict({"w": torch.zeros(35, 20)})
        row["raised"] = []
        for step in range(3):
            model["w"].grad = gradient(rank, step).view(35, 20)
            if step == 1:
                assert backend.method is not None
                before = everything(backend.method.state_dict())
                if rank == 0:
                    model["w"].grad[0, 0] = float("nan")
            try:
                backend.allreduce_gradients(model.named_parameters())
                row["raised"].append("")
            except NonFiniteGradient as error:
                row["raised"].append(str(error))
                row["void"] = everything(backend.method.state_dict()) == before
        row["last"] = model["w"].grad.tolist()
        found[case] = row
    return found


@pytest.fixture(scope="module", params=[2, 3])
def disturbed(request: pytest.FixtureRequest) -> list[dict[str, dict[str, Any]]]:
    return on_ranks(skip_and_raise, request.param)


@pytest.mark.parametrize("case", CASES)
def test_a_skipped_step_has_never_been(disturbed: list[Any], case: str) -> None:
    for rank in disturbed:
        assert rank[case]["taken"] is False
        assert rank[case]["average is zero"]
        assert rank[case]["unchanged"]
        assert rank[case]["goes on"]


@pytest.mark.parametrize("case", CASES)
def test_every_rank_raises_and_the_step_has_never_been(disturbed: list[Any], case: str) -> None:
    for rank in disturbed:
        first, second, third = rank[case]["raised"]
        assert first == third == ""
        assert "not finite" in second
        assert ("the gradient of w, or" in second) is (rank is disturbed[0]), (
            "whose it is, and which parameter's"
        )
        assert rank[case]["void"]
        assert rank[case]["last"] == disturbed[0][case]["last"]
