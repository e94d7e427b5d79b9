"""DistributedBackend on real Gloo ranks: the algebra of every method, and the same bits everywhere."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from netsim_ddp import DistributedBackend, ErrorFeedbackBuffer, TopKCompressor
from netsim_ddp.compression.kernels import NonFiniteGradient
from netsim_ddp.compression.quotas import Quotas
from netsim_ddp.compression.shards import saved_sums
from netsim_ddp.errors import UsageError
from netsim_ddp.methods import METHODS
from tests.distributed.ranks import on_ranks

STEPS = 5
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "fp16": ("fp16", {}),
    "bf16": ("bf16", {}),
    "topk": ("topk", {"ratio": 0.05, "collective": "split"}),
    "topk keep=off": ("topk", {"ratio": 0.05, "keep": False}),
    "allgather": ("topk-allgather", {"ratio": 0.05}),
    "allgather fp16": ("topk-allgather", {"ratio": 0.05, "values": "fp16"}),
    "topk fp16": ("topk", {"ratio": 0.05, "values": "fp16", "collective": "split"}),
    "allgather int8": ("topk-allgather", {"ratio": 0.05, "values": "int8", "indices": "int64"}),
    "topk int8": ("topk", {"ratio": 0.05, "values": "int8-stochastic", "collective": "split"}),
    "topk without feedback": ("topk", {"ratio": 0.05, "feedback": False}),
    "topk-dense": ("topk-dense", {"ratio": 0.05}),
    "powersgd": ("powersgd", {"rank": 2, "min_compression": 1.0}),
}


def build_model() -> nn.Sequential:
    """Odd sizes, a scalar parameter and one of a single entry."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(13, 17), nn.PReLU(), nn.Linear(17, 3), nn.Linear(3, 1, bias=False))
    model.register_parameter("scale", nn.Parameter(torch.tensor(0.5)))
    return model


def backward(model: nn.Module, rank: int, step: int) -> None:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    inputs = torch.randn(8, 13, generator=generator)
    loss: torch.Tensor = (model(inputs) * model.scale - 1).square().mean()
    loss.backward()


def flat_gradient(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1).clone() for p in model.parameters() if p.grad is not None])


def residual_of(backend: DistributedBackend, names: list[str]) -> torch.Tensor | None:
    state = backend.method.state_dict() if backend.method else {}
    if "error_buffer" not in state:
        return None
    return torch.cat([state["error_buffer"][name].reshape(-1) for name in names])


def sums_of(backend: DistributedBackend) -> torch.Tensor:
    """What this rank keeps as an owner, at its positions in the flat gradient; 0 for a method without owners."""
    numel = sum(p.numel() for p in build_model().parameters())
    return saved_sums(backend.method.state_dict() if backend.method else {}, numel)


def train(rank: int, workers: int) -> dict[str, list[dict[str, Any]]]:
    """Every case: per step this rank's gradient, residual before and after, the average and the parameters."""
    del workers
    found: dict[str, list[dict[str, Any]]] = {}
    for case, (name, params) in CASES.items():
        model = build_model()
        names = [name for name, _ in model.named_parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        backend = DistributedBackend(method=name, params=params)
        rows = []
        for step in range(STEPS):
            optimizer.zero_grad()
            backward(model, rank, step)
            row = {
                "gradient": flat_gradient(model),
                "before": residual_of(backend, names),
                "sums before": sums_of(backend),
            }
            backend.allreduce_gradients(model.named_parameters())
            row |= {
                "average": flat_gradient(model),
                "after": residual_of(backend, names),
                "sums": sums_of(backend),
            }
            optimizer.step()
            weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
            row["sha256"] = hashlib.sha256(weights.numpy().tobytes()).hexdigest()
            rows.append({key: v.numpy() if isinstance(v, torch.Tensor) else v for key, v in row.items()})
        found[case] = rows
    return found


@pytest.fixture(scope="module", params=[2, 3, 4, 8])
def trained(request: pytest.FixtureRequest) -> list[dict[str, list[dict[str, Any]]]]:
    return on_ranks(train, request.param)


@pytest.mark.parametrize("case", CASES)
def test_ranks_hold_the_same_bits_after_every_step(trained: list[Any], case: str) -> None:
    digests = [[row["sha256"] for row in rank[case]] for rank in trained]
    assert len(set(digests[0])) == STEPS  # something was learned at every step
    assert all(other == digests[0] for other in digests)


@pytest.mark.parametrize("case", ["dense", "fp16"])
def test_dense_methods_give_the_mean_of_the_gradients(trained: list[Any], case: str) -> None:
    for step in range(STEPS):
        mean = np.mean([rank[case][step]["gradient"] for rank in trained], axis=0)
        tolerance = 1e-6 if case == "dense" else 1e-3
        np.testing.assert_allclose(trained[0][case][step]["average"], mean, rtol=tolerance, atol=tolerance)


def test_bf16_rounds_twice_whatever_the_number_of_workers(trained: list[Any]) -> None:
    for step in range(STEPS):
        sent = [torch.from_numpy(rank["bf16"][step]["gradient"]).bfloat16().float() for rank in trained]
        mean = (sum(sent) / len(sent)).bfloat16().float()
        np.testing.assert_array_equal(trained[0]["bf16"][step]["average"], mean.numpy())


SPARSE_WITH_FEEDBACK = [
    case for case in CASES if case.startswith(("topk", "allgather")) and "without" not in case
]


@pytest.mark.parametrize("case", [*SPARSE_WITH_FEEDBACK, "powersgd"])
def test_nothing_is_lost(trained: list[Any], case: str) -> None:
    """mean(residuals) + owners' sums / P + update = mean(gradients + old residuals) + old sums / P, rounding of the
    values included."""
    for step in range(STEPS):
        rows = [rank[case][step] for rank in trained]
        old = [row["before"] if row["before"] is not None else 0.0 for row in rows]
        came = np.mean([row["gradient"] + before for row, before in zip(rows, old, strict=True)], axis=0)
        went = np.mean([row["after"] for row in rows], axis=0) + rows[0]["average"]
        came += np.mean([row["sums before"] for row in rows], axis=0)
        went += np.mean([row["sums"] for row in rows], axis=0)
        np.testing.assert_allclose(went, came, rtol=1e-5, atol=1e-6)


def test_owners_that_keep_nothing_give_the_all_gathers_average(trained: list[Any]) -> None:
    for split, gathered in zip(trained[0]["topk keep=off"], trained[0]["allgather"], strict=True):
        np.testing.assert_allclose(split["average"], gathered["average"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", [*SPARSE_WITH_FEEDBACK, "topk without feedback"])
def test_sparse_methods_change_at_most_workers_times_k_entries(trained: list[Any], case: str) -> None:
    sizes = [p.numel() for p in build_model().parameters()]
    k = sum(max(1, int(np.ceil(0.05 * size))) for size in sizes)
    for row in trained[0][case]:
        assert 1 <= np.count_nonzero(row["average"]) <= len(trained) * k


def test_split_reduce_follows_its_single_process_reference(trained: list[Any]) -> None:
    """Every owner adds what it is sent to its sums, applies the largest of each parameter and keeps the rest."""
    workers = len(trained)
    sizes = [p.numel() for p in build_model().parameters()]
    counts = np.array([max(1, int(np.ceil(0.05 * size))) for size in sizes])
    quotas = Quotas(workers, np.array(sizes), counts)
    shares, entries = quotas.shares, quotas.at(counts)
    sums = np.zeros(sum(sizes), np.float32)
    for step in range(STEPS):
        for rank in trained:
            row = rank["topk"][step]
            before = row["before"] if row["before"] is not None else 0.0
            sent = row["gradient"] + before - row["after"]
            sums += np.where(row["after"] == 0, sent, 0).astype(np.float32)
        update = np.zeros_like(sums)
        for owner in range(workers):
            share = shares.positions(owner, torch.arange(shares.size(owner))).numpy()
            for segment, count in enumerate(entries[owner]):
                mine = share[shares.bounds[owner, segment] : shares.bounds[owner, segment + 1]]
                largest = mine[np.argsort(-np.abs(sums[mine]), kind="stable")[:count]]
                update[largest] = sums[largest] / workers
                sums[largest] = 0
        np.testing.assert_allclose(trained[0]["topk"][step]["average"], update, rtol=1e-4, atol=1e-6)


def test_topk_over_a_dense_all_reduce_gives_the_same_average(trained: list[Any]) -> None:
    for one, other in zip(trained[0]["allgather"], trained[0]["topk-dense"], strict=True):
        np.testing.assert_allclose(one["average"], other["average"], rtol=1e-5, atol=1e-6)


def odd_cases(rank: int, workers: int) -> dict[str, Any]:
    found: dict[str, Any] = {}

    # A parameter whose gradient only rank 0 has, and one that nobody trains.
    model = nn.ParameterDict({"a": torch.ones(5), "b": torch.ones(3), "frozen": torch.ones(2)})
    model["frozen"].requires_grad_(False)
    model["a"].grad = torch.full((5,), float(rank + 1))
    if rank == 0:
        model["b"].grad = torch.full((3,), float(workers))
    DistributedBackend().allreduce_gradients(model.named_parameters())
    found["missing"] = model["a"].grad.tolist(), model["b"].grad.tolist(), model["frozen"].grad

    # One rank's gradient is not finite: all raise, and no rank's residual has changed.
    model = nn.ParameterDict({"weight": torch.zeros(50)})
    buffer = ErrorFeedbackBuffer()
    backend = DistributedBackend(TopKCompressor(0.1), buffer)
    good = torch.arange(50.0) + rank
    for step in range(3):
        model["weight"].grad = good.clone()
        if step == 1 and rank == workers - 1:
            model["weight"].grad[7] = float("nan")
        before = buffer.state_dict().get("weight")
        try:
            backend.allreduce_gradients(model.named_parameters())
            raised = ""
        except NonFiniteGradient as error:
            raised = str(error)
        if step == 1:
            after = buffer.state_dict()["weight"]
            found["refused"] = raised, bool(torch.isfinite(after).all())
            found["kept"] = torch.equal(after, before)
    found["recovered"] = raised == "" and bool(torch.isfinite(model["weight"].grad).all())

    # A checkpoint: a new backend with the old state goes on with the same bits.
    copy = DistributedBackend(TopKCompressor(0.1), fresh := ErrorFeedbackBuffer())
    fresh.load_state_dict(buffer.state_dict())
    averages = []
    for each in (backend, copy):
        model["weight"].grad = good.clone()
        each.allreduce_gradients(model.named_parameters())
        averages.append(model["weight"].grad.clone())
    found["resumed"] = torch.equal(*averages)

    # A process group of two of the ranks.
    pair = dist.new_group([0, 1])
    if rank < 2:
        model["weight"].grad = torch.full((50,), float(rank))
        DistributedBackend(process_group=pair).allreduce_gradients(model.named_parameters())
        found["pair"] = model["weight"].grad.unique().tolist()
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_odd_cases(workers: int) -> None:
    for rank, found in enumerate(on_ranks(odd_cases, workers)):
        a, b, frozen = found["missing"]
        assert a == [(workers + 1) / 2] * 5
        assert b == [1.0] * 3
        assert frozen is None
        message, finite = found["refused"]
        assert "not finite" in message
        assert finite
        assert found["kept"]
        assert found["recovered"]
        assert found["resumed"]
        assert found.get("pair") == ([0.5] if rank < 2 else None)


def test_one_rank_changes_nothing() -> None:
    model = build_model()
    backward(model, 0, 0)
    before = flat_gradient(model)
    DistributedBackend(TopKCompressor(0.01), ErrorFeedbackBuffer(), world_size=1, rank=0).allreduce_gradients(
        model.named_parameters()
    )
    assert torch.equal(flat_gradient(model), before)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown method 'nope'") as caught:
        DistributedBackend(method="nope")
    assert all(name in str(caught.value.hint) for name in METHODS)
    with pytest.raises(ValueError, match="not both"):
        DistributedBackend(TopKCompressor(0.1), method="dense")
    with pytest.raises(ValueError, match="no method takes a str"):
        DistributedBackend("topk")  # type: ignore[arg-type]
