"""Every selector, scope and schedule over real Gloo ranks: same bits, nothing lost, messages of any size."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from netsim_ddp import DistributedBackend
from netsim_ddp.compression.shards import saved_sums
from tests.distributed.ranks import on_ranks

STEPS = 6
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "split": ("topk", {"collective": "split"}),
    "split keep=off": ("topk", {"keep": False}),
    "allgather": ("topk-allgather", {}),
    "dense": ("topk-dense", {}),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "sampled": {"selector": "sampled"},
    "fitted": {"selector": "fitted"},
    "random": {"selector": "random"},
    "block": {"selector": "block"},
    "model": {"scope": "model"},
    "fitted bucket": {"selector": "fitted", "scope": "bucket"},
    "dense norms": {"dense_norms": True, "dense_below": 30},
    "warm-up": {"warmup_steps": 4},
    "adaptive sampled": {"selector": "sampled", "adaptive": True, "warmup_steps": 3},
}
CASES = list(product(METHODS, OPTIONS))
SHAPES = {"weight": (20, 901), "bias": (20,), "one": (1,), "scalar": (), "odd": (7, 11)}


def parameters() -> nn.ParameterDict:
    return nn.ParameterDict({name: torch.zeros(shape) for name, shape in SHAPES.items()})


def flat(parts: Any) -> np.ndarray:
    return torch.cat([part.detach().reshape(-1) for part in parts]).numpy().copy()


def step_through(rank: int, workers: int) -> dict[Any, list[dict[str, Any]]]:
    """Per case and step: this rank's gradient, the average, and what ranks and owners keep."""
    del workers
    found = {}
    for case in CASES:
        name, params = METHODS[case[0]]
        backend = DistributedBackend(method=name, params={"ratio": 0.02, **params, **OPTIONS[case[1]]})
        model, rows = parameters(), []
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(100 * step + rank)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator) * (1 + parameter.dim())
            row = {"gradient": flat(p.grad for p in model.parameters())}
            backend.allreduce_gradients(model.named_parameters())
            assert backend.method is not None
            state = backend.method.state_dict()
            found_now = backend.statistics(layers=True)
            assert found_now is not None
            row["entries"], row["layers"] = (
                found_now.entries,
                sum(x.entries for x in found_now.layers.values()),
            )
            row["payload"], row["kept"] = found_now.payload_bytes, found_now.energy_kept
            row["average"] = flat(p.grad for p in model.parameters())
            row["residual"] = flat(state["error_buffer"][key] for key, _ in model.named_parameters())
            row["sums"] = saved_sums(state, row["average"].size).numpy()
            rows.append(row)
        found[case] = rows
    return found


@pytest.fixture(scope="module", params=[2, 4])
def stepped(request: pytest.FixtureRequest) -> list[dict[Any, list[dict[str, Any]]]]:
    return on_ranks(step_through, request.param)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_ranks_hold_the_same_bits_and_nothing_is_lost(stepped: list[Any], case: tuple[str, str]) -> None:
    """The sum of updates and of what ranks and owners keep is the sum of the gradients, after every step."""
    came, went = 0.0, 0.0
    for step in range(STEPS):
        rows = [rank[case][step] for rank in stepped]
        assert all(np.array_equal(row["average"], rows[0]["average"]) for row in rows)
        assert np.count_nonzero(rows[0]["average"])
        came = came + np.mean([row["gradient"] for row in rows], axis=0, dtype=np.float64)
        went = went + rows[0]["average"].astype(np.float64)
        kept = np.mean([row["residual"] for row in rows], axis=0, dtype=np.float64)
        kept += np.mean([row["sums"] for row in rows], axis=0, dtype=np.float64)
        np.testing.assert_allclose(went + kept, came, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_statistics_tell_what_was_sent(stepped: list[Any], case: tuple[str, str]) -> None:
    size = sum(int(np.prod(shape)) for shape in SHAPES.values())
    for rank in stepped:
        for row in rank[case]:
            assert 0 < row["entries"] == row["layers"] < size
            assert 0 < row["kept"] < 1
            assert row["payload"] > 0


def test_a_model_wide_k_is_exact(stepped: list[Any]) -> None:
    size = sum(int(np.prod(shape)) for shape in SHAPES.values())
    for step in range(STEPS):
        changed = np.count_nonzero(stepped[0]["split", "model"][step]["average"])
        assert changed <= -(-size // 50) + len(stepped)
    first = [rank["allgather", "model"][0] for rank in stepped]
    assert [np.count_nonzero(row["residual"] == 0) for row in first] == [-(-size // 50)] * len(stepped)


def test_what_is_sent_whole_arrives_at_once(stepped: list[Any]) -> None:
    """Norms and small parameters are plain averages, with no residual and nothing kept by owners."""
    small = [torch.full(p.shape, float(p.dim() < 2)) for p in parameters().values()]
    whole = flat(small) > 0
    for method in ("allgather", "split"):
        for row in zip(*(rank[method, "dense norms"] for rank in stepped), strict=True):
            mean = np.mean([each["gradient"] for each in row], axis=0)
            np.testing.assert_allclose(row[0]["average"][whole], mean[whole], rtol=1e-5, atol=1e-6)
            assert not row[0]["residual"][whole].any()
            assert not any(each["sums"][whole].any() for each in row)
