"""Gradients finite on every rank whose sum at their owner is not: one answer on all ranks, and no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from netsim_ddp import DistributedBackend
from netsim_ddp.compression.kernels import NonFiniteGradient
from tests.distributed.ranks import on_ranks
from tests.distributed.test_nonfinite import everything

CASES: dict[str, dict[str, Any]] = {
    "split": {},
    "keep=off": {"keep": False},
    "momentum": {"momentum": 0.9},
    "int8": {"values": "int8-stochastic"},
    "without feedback": {"feedback": False},
    "adaptive": {"adaptive": True, "warmup_steps": 3},
    "fitted": {"selector": "fitted", "scope": "model"},
}
STEPS, BAD_STEP = 5, 2
SHAPES = {"bias": (9,), "weight": (30, 100)}


def overflow(rank: int, workers: int) -> dict[Any, dict[str, Any]]:
    """Per case and rule: what the bad step said, whether it left a trace, and the averages of all other steps."""
    del workers
    found = {}
    for case, params in CASES.items():
        for rule in ("raise", "skip"):
            row: dict[str, Any] = {}
            for disturbed in (True, False):
                backend = DistributedBackend(
                    method="topk", params={"ratio": 0.02, "collective": "split", "nonfinite": rule, **params}
                )
                model = nn.ParameterDict({name: torch.zeros(shape) for name, shape in SHAPES.items()})
                averages = []
                for step in range(STEPS):
                    generator = torch.Generator().manual_seed(100 * step + rank)
                    for parameter in model.values():
                        parameter.grad = torch.randn(parameter.shape, generator=generator)
                    if step == BAD_STEP:
                        if not disturbed:
                            continue
                        assert backend.method is not None
                        before = everything(backend.method.state_dict())
                        model["weight"].grad[0, 5] = 2e38
                        try:
                            row["answer"] = backend.allreduce_gradients(model.named_parameters())
                        except NonFiniteGradient as error:
                            row["answer"] = str(error)
                        row["unchanged"] = everything(backend.method.state_dict()) == before
                    else:
                        assert backend.allreduce_gradients(model.named_parameters())
                        averages.append([parameter.grad.tolist() for parameter in model.values()])
                row[disturbed] = averages
            found[case, rule] = row
    return found


@pytest.fixture(scope="module", params=[2, 3])
def overflowed(request: pytest.FixtureRequest) -> list[dict[Any, dict[str, Any]]]:
    return on_ranks(overflow, request.param)


@pytest.mark.parametrize("rule", ["raise", "skip"])
@pytest.mark.parametrize("case", CASES)
def test_every_rank_gets_the_same_answer_and_goes_on(overflowed: list[Any], case: str, rule: str) -> None:
    rows = [rank[case, rule] for rank in overflowed]
    for row in rows:
        if rule == "skip":
            assert row["answer"] is False
        else:
            assert "a sum that is not finite" in row["answer"]
        assert row["answer"] == rows[0]["answer"]
        assert row["unchanged"]
        assert row[True] == row[False] == rows[0][True]
