"""CompressedAdam: the freeze changes no step, a refused step changes nothing, wrong options fail when it is made."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from netsim_ddp import CompressedAdam
from netsim_ddp.compression.kernels import NonFiniteGradient
from netsim_ddp.errors import UsageError
from tests.distributed.ranks import on_ranks

SIZE = 401


def moved(rank: int, workers: int, freeze: int, noise: float, ratio: float) -> dict[str, Any]:
    """How far every step goes, and what torch's Adam with its second moment frozen does."""
    del workers
    ours, theirs = (nn.ParameterDict({"w": torch.zeros(SIZE)}) for _ in range(2))
    adam = CompressedAdam(ours.named_parameters(), lr=0.01, freeze_after=freeze, params={"ratio": ratio})
    shared, own = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2 + rank)
    slope = torch.randn(SIZE, generator=shared)
    before, steps, square = torch.zeros(SIZE), [], torch.zeros(SIZE)
    momentum, expected = torch.zeros(SIZE), []
    everywhere = [torch.Generator().manual_seed(2 + other) for other in range(2)]
    for step in range(4 * freeze + 40):
        ours["w"].grad = slope + noise * torch.randn(SIZE, generator=own)
        adam.step()
        steps.append(float((ours["w"].detach() - before).norm()))
        before = ours["w"].detach().clone()
        mean = sum(slope + noise * torch.randn(SIZE, generator=each) for each in everywhere) / 2
        momentum.lerp_(mean, 0.1)
        if step < freeze:
            square.mul_(0.999).addcmul_(mean, mean, value=0.001)
        root = (square / (1 - 0.999 ** min(step + 1, freeze))).sqrt() + 1e-8
        theirs["w"].data.sub_(0.01 * momentum / (1 - 0.9 ** (step + 1)) / root)
        expected.append(theirs["w"].detach().clone())
    return {"steps": steps, "final": before.numpy(), "expected": expected[-1].numpy()}


@pytest.mark.parametrize("freeze", [1, 5, 30])
def test_the_freeze_changes_no_step_of_constant_gradients(freeze: int) -> None:
    for found in on_ranks(moved, 2, freeze, 0.0, 1.0):
        steps = np.array(found["steps"])
        np.testing.assert_allclose(steps, steps[0], rtol=1e-3)


def test_nor_of_noisy_ones_compressed_or_not() -> None:
    """Uncompressed the steps are plain Adam's; compressed they come later, and add up to the same within what is
    pending."""
    for found in on_ranks(moved, 2, 5, 0.5, 1.0):
        np.testing.assert_allclose(found["final"], found["expected"], rtol=1e-3, atol=1e-4)
        before, after = np.mean(found["steps"][2:5]), np.mean(found["steps"][5:8])
        assert 0.5 < after / before < 2
    for found in on_ranks(moved, 2, 40, 0.5, 0.25):
        away = np.linalg.norm(found["final"] - found["expected"]) / np.linalg.norm(found["expected"])
        assert away < 0.25


def refused(rank: int, workers: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    model = nn.ParameterDict({"w": torch.ones(SIZE), "b": torch.ones(3)})
    adam = CompressedAdam(
        model.named_parameters(), lr=0.01, freeze_after=2, weight_decay=0.1, params={"ratio": 0.1, **options}
    )
    generator = torch.Generator().manual_seed(rank)
    found = []
    for step in range(8):
        bad = step in (1, 4, 6)  # once in the dense phase
        for name, parameter in model.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            if bad and name == "w" and rank == step % workers:
                parameter.grad[7] = torch.nan if step != 6 else torch.inf
        before = copy.deepcopy((list(model.parameters()), adam.state_dict()))
        try:
            taken = adam.step()
        except NonFiniteGradient:
            taken = False
        same = _same(before, (list(model.parameters()), adam.state_dict()))
        found.append({"bad": bad, "taken": taken, "same": same, "w": model["w"].detach().numpy().tolist()})
    return found


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("workers", [2, 3])
def test_a_refused_step_changes_nothing_on_any_rank(workers: int, nonfinite: str) -> None:
    ranks = on_ranks(refused, workers, {"nonfinite": nonfinite})
    for found in ranks:
        for each, first in zip(found, ranks[0], strict=True):
            assert each["taken"] is not each["bad"]
            assert each["same"] is each["bad"] or (each["taken"] and not each["same"])
            assert each["w"] == first["w"]
            assert np.isfinite(each["w"]).all()


def test_wrong_options_fail_when_it_is_made() -> None:
    net = nn.Linear(4, 3)
    with pytest.raises(UsageError, match="did you mean 'ratio'"):
        CompressedAdam(net, params={"ratoi": 0.05})
    with pytest.raises(UsageError, match="leave momentum out of params"):
        CompressedAdam(net, params={"momentum": 0.9})
    for wrong in ({"lr": -1}, {"lr": float("nan")}, {"eps": "small"}, {"weight_decay": -0.1}):
        with pytest.raises(ValueError, match="must be a number of at least 0"):
            CompressedAdam(net, **wrong)  # type: ignore[arg-type]
    for freeze in (0, -1, True, 2.5, "20"):
        with pytest.raises(ValueError, match="must be a whole number"):
            CompressedAdam(net, freeze_after=freeze)  # type: ignore[arg-type]
    adam = CompressedAdam(net)
    with pytest.raises(ValueError, match="one optimizer per group"):
        adam.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
