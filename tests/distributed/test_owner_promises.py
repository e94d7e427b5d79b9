"""What an option promises a parameter holds on the way back from its owner too: split-reduce beside the all-gather."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from netsim_ddp import DistributedBackend
from netsim_ddp.compression.shards import Shards, saved_sums
from tests.distributed.ranks import on_ranks

STEPS = 120
# In the order that a ParameterDict gives a plain dict: by name.
SHAPES = {"bias": (7,), "big": (300, 250), "norm": (100,), "scale": (), "wide": (1000,)}
SMALL = [name for name in SHAPES if name not in ("big", "wide")]
OPTIONS: dict[str, dict[str, Any]] = {
    "per parameter": {},
    "dense norms": {"dense_norms": True},
    "dense below": {"dense_below": 1001},
    "adaptive": {"adaptive": True},
}


def constant(rank: int, workers: int, option: str) -> dict[Any, dict[str, Any]]:
    """Steady small gradients beside a large noisy one: what became of them, and how many entries came at each step."""
    del workers
    found = {}
    for collective in ("allgather", "split"):
        backend = DistributedBackend(
            method="topk", params={"ratio": 0.01, "collective": collective, **OPTIONS[option]}
        )
        model = nn.ParameterDict({name: torch.zeros(shape) for name, shape in SHAPES.items()})
        applied = dict.fromkeys(SHAPES, 0.0)
        entries = {name: [] for name in SHAPES}
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(1000 * step + rank)
            for name, parameter in model.items():
                noise = torch.randn(parameter.shape, generator=generator)
                # The small ones have a mean, the same on all ranks, and noise of their own.
                parameter.grad = noise if name == "big" else 0.01 + 0.002 * noise
            backend.allreduce_gradients(model.named_parameters())
            for name, parameter in model.items():
                assert parameter.grad is not None
                applied[name] += float(parameter.grad.double().mean())
                entries[name].append(int(parameter.grad.count_nonzero()))
        assert backend.method is not None
        budget = backend.method.selection.budget
        found[collective] = {
            "share": {name: applied[name] / (0.01 * STEPS) for name in (*SMALL, "wide")},
            "entries": entries,
            "counts": dict(zip(SHAPES, budget.now.tolist(), strict=True)),
        }
    return found


CASES = [(2, "per parameter"), (2, "dense norms"), (3, "adaptive"), (4, "per parameter"), (4, "dense below")]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]} {case[1]}")
def applied(request: pytest.FixtureRequest) -> tuple[str, dict[Any, Any]]:
    """The option, and what was found with it."""
    workers, option = request.param
    return option, on_ranks(constant, workers, option)[0]


def test_small_parameters_are_applied_as_with_the_all_gather(applied: tuple[str, dict[Any, Any]]) -> None:
    gathered, split = (applied[1][collective]["share"] for collective in ("allgather", "split"))
    for name in SMALL:
        assert split[name] == pytest.approx(gathered[name], rel=0.1), name
        assert split[name] > 0.5


def test_an_owner_gives_every_parameter_its_entries(applied: tuple[str, dict[Any, Any]]) -> None:
    """k_i of each parameter at every step, once that many have been sent; those sent whole arrive whole."""
    option, found = applied[0], applied[1]["split"]
    for name, wanted in found["counts"].items():
        if option == "adaptive" and np.prod(SHAPES[name]) > 100:
            continue  # these share what they have between them
        late = found["entries"][name][50:]
        assert min(late) >= min(wanted, 1 if option == "adaptive" else wanted), name
    for option_name, whole in (("dense norms", ["norm", "bias", "wide", "scale"]), ("dense below", SMALL)):
        if option == option_name:
            for name in whole:
                assert set(found["entries"][name]) == {int(np.prod(SHAPES[name]))}
                assert found["share"][name] == pytest.approx(1.0, rel=0.02)


def moved(rank: int, workers: int) -> list[float]:
    """What is pending before and after a state was taken over: with other shares, and by a method without owners."""

    def pending(backend: DistributedBackend) -> torch.Tensor:
        assert backend.method is not None
        state = backend.method.state_dict()
        kept = torch.cat([state["error_buffer"][name].reshape(-1) for name in SHAPES])
        return kept + saved_sums(state, kept.numel())

    def step(backend: DistributedBackend, number: int) -> None:
        generator = torch.Generator().manual_seed(100 * number + rank)
        for parameter in model.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        backend.allreduce_gradients(model.named_parameters())

    model = nn.ParameterDict({name: torch.zeros(shape) for name, shape in SHAPES.items()})
    old = DistributedBackend(method="topk", params={"ratio": 0.01, "collective": "split"})
    for number in range(3):
        step(old, number)
    state = old.state_dict()
    assert state["sums"].count_nonzero()
    without = {key: value for key, value in state.items() if key != "shares"}
    numel = sum(value.numel() for value in state["error_buffer"].values())
    # Version 0.1.0 had the whole as one segment of all.
    sums = torch.arange(Shards(workers, [numel], [workers], [0]).size(rank)) / numel
    found = []
    for saved, params in (
        (state, {"ratio": 0.1, "collective": "split"}),
        (state, {"ratio": 0.01, "scope": "model", "collective": "split"}),
        (state, {"ratio": 0.01, "collective": "allgather"}),
        ({**without, "sums": sums}, {"ratio": 0.01, "collective": "split"}),
    ):
        new = DistributedBackend(method="topk", params=params)
        step(new, 9)
        assert new.method is not None
        new.method.load_state_dict(saved)
        kept = torch.cat([saved["error_buffer"][name].reshape(-1) for name in SHAPES])
        was = kept + saved_sums(saved, kept.numel())
        found.append(float((pending(new) - was).abs().max()))
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_what_owners_keep_is_taken_over_whatever_the_shares(workers: int) -> None:
    for differences in on_ranks(moved, workers):
        assert differences == pytest.approx([0.0] * 4, abs=1e-5)
