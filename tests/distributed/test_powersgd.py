"""PowerSGD on real ranks, against the paper's algorithm in one process and against torch's own hook."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from netsim_ddp import DistributedBackend
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.methods.powersgd import PowerSGD
from netsim_ddp.communication.segments import Group
from netsim_ddp.compression.kernels import NonFiniteGradient
from netsim_ddp.errors import UsageError
from tests.distributed.ranks import on_ranks

SHAPES = {
    "conv": (6, 3, 3, 3),
    "bias": (6,),
    "wide": (8, 40),
    "tall": (40, 8),
    "again": (40, 8),
    "tiny": (2, 3),
}
STEPS = 6


def parameters() -> nn.ParameterDict:
    return nn.ParameterDict({name: torch.zeros(shape) for name, shape in SHAPES.items()})


def gradient(rank: int, step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def averages(rank: int, rank_of_approximation: int, buckets: list[int]) -> list[dict[str, Any]]:
    """The update of every step; parameters cut into buckets before each number in ``buckets``."""
    named = list(parameters().items())
    parts = [
        named[begin:end]
        for begin, end in zip([0, *buckets], [*buckets, len(named)], strict=True)
        if begin < end
    ]
    params = {"rank": rank_of_approximation, "min_compression": 1.0}
    backends = [DistributedBackend(method="powersgd", params=params) for _ in parts]
    steps = []
    for step in range(STEPS):
        found = {}
        for name, value in gradient(rank, step).items():
            dict(named)[name].grad = value
        for backend, part in zip(backends, parts, strict=True):
            backend.allreduce_gradients(part)
            found |= {name: parameter.grad.numpy() for name, parameter in part}
        steps.append(found)
    return steps


def ours(rank: int, workers: int) -> dict[str, Any]:
    del workers
    whole, cut = averages(rank, 2, []), averages(rank, 2, [1, 4])
    for a, b in zip(whole, cut, strict=True):
        for name in SHAPES:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5)
    return {str(r): averages(rank, r, []) for r in (1, 2, 4)}


def start(name: str, shape: tuple[int, ...], rank: int) -> Any:
    """Q as our method starts, from its seed and the name."""
    model = nn.ParameterDict({name: torch.zeros(shape)})
    method = PowerSGD(FlatGradients(model.items()), Group(0, 1), rank=rank, min_compression=1.0)
    q = method.state_dict()["q"].get(name)
    return None if q is None else q.numpy().T.astype(np.float64)


def reference(workers: int, rank: int) -> list[dict[str, Any]]:
    """Algorithms 1 and 2 of the paper, all ranks in one process, in float64."""
    q = {name: start(name, shape, rank) for name, shape in SHAPES.items()}
    errors = [{name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(workers)]
    steps = []
    for step in range(STEPS):
        deltas = [
            {name: value.double().numpy() + errors[w][name] for name, value in gradient(w, step).items()}
            for w in range(workers)
        ]
        update = {}
        for name, shape in SHAPES.items():
            if q[name] is None:
                update[name] = np.mean([delta[name] for delta in deltas], axis=0)
                continue
            matrices = [delta[name].reshape(shape[0], -1) for delta in deltas]
            basis, _ = np.linalg.qr(sum(matrix @ q[name] for matrix in matrices))
            own = [matrix.T @ basis for matrix in matrices]
            q[name] = np.mean(own, axis=0)
            update[name] = (basis @ q[name].T).reshape(shape)
            for w, matrix in enumerate(matrices):
                errors[w][name] = (matrix - basis @ own[w].T).reshape(shape)
        steps.append(update)
    return steps


def torch_hook(rank: int, workers: int) -> bool:
    """torch's hook, called as DDP calls it with all parameters in one bucket, from the same first Q."""
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as theirs

    del workers
    names = list(SHAPES)
    state = theirs.PowerSGDState(
        None, matrix_approximation_rank=2, start_powerSGD_iter=2, min_compression_rate=1
    )
    state.iter = 2
    backend = DistributedBackend(method="powersgd", params={"rank": 2, "min_compression": 1.0})
    model = parameters()
    for step in range(STEPS):
        gradients = gradient(rank, step)
        buffer = torch.cat([value.reshape(-1) for value in gradients.values()])
        views = [
            part.view(SHAPES[name])
            for name, part in zip(names, buffer.split([g.numel() for g in gradients.values()]), strict=True)
        ]
        bucket = types.SimpleNamespace(
            buffer=lambda buffer=buffer: buffer,
            gradients=lambda views=views: views,
            index=lambda: 0,
            is_last=lambda: False,
        )
        theirs.powerSGD_hook(state, bucket).wait()
        for name in names:
            model[name].grad = gradients[name].clone()
        if step == 0:
            load_first_q(backend, model)
        backend.allreduce_gradients(model.items())
        for name, view in zip(names, views, strict=True):
            if not torch.allclose(model[name].grad, view, rtol=1e-3, atol=1e-4):
                raise AssertionError(f"step {step}, {name}: {(model[name].grad - view).abs().max()}")
    return True


def load_first_q(backend: DistributedBackend, model: nn.ParameterDict) -> None:
    """Both start from what torch's seed gives."""
    backend._prepare(list(model.items()))
    assert backend.method is not None
    saved = backend.method.state_dict()
    seed = np.random.RandomState(0).randint(1_000_000_000)
    generator = torch.Generator().manual_seed(int(seed))
    for name in [name for name in SHAPES if name in saved["q"]]:
        r, columns = saved["q"][name].shape
        saved["q"][name] = torch.randn(1, columns, r, generator=generator)[0].T.contiguous()
    backend.method.load_state_dict(saved)


def odd_cases(rank: int, workers: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    params = {"rank": 2, "min_compression": 1.0}

    def backend_of(model: nn.ParameterDict) -> DistributedBackend:
        backend = DistributedBackend(method="powersgd", params=params)
        backend._prepare(list(model.items()))
        return backend

    # A matrix of rank 1 is sent exactly, though two columns are asked for; zeros before it cost nothing.
    model = nn.ParameterDict({"weight": torch.zeros(30, 20)})
    backend = backend_of(model)
    generator = torch.Generator().manual_seed(5)
    exact = torch.outer(torch.randn(30, generator=generator), torch.randn(20, generator=generator))
    for factor in (0.0, 0.0, 1.0, 2.0):
        model["weight"].grad = exact * factor * (rank + 1)
        backend.allreduce_gradients(model.items())
        wanted = exact * factor * (workers + 1) / 2
        found.setdefault("exact", []).append(torch.allclose(model["weight"].grad, wanted, atol=1e-4))

    # One rank's gradient is not finite: all raise and name it, and nothing they keep has changed.
    before = backend.method.state_dict() if backend.method else {}
    model["weight"].grad = torch.ones(30, 20)
    if rank == workers - 1:
        model["weight"].grad[3, 4] = float("inf")
    with pytest.raises(NonFiniteGradient, match=f"rank {workers - 1} found"):
        backend.allreduce_gradients(model.items())
    after = backend.method.state_dict() if backend.method else {}
    found["kept"] = torch.equal(before["q"]["weight"], after["q"]["weight"]) and torch.equal(
        before["error_buffer"]["weight"], after["error_buffer"]["weight"]
    )

    # A checkpoint goes on with the same bits; one of another rank r is refused.
    copy = backend_of(model)
    assert copy.method is not None
    copy.method.load_state_dict(after)
    results = []
    for each in (backend, copy):
        model["weight"].grad = torch.arange(600.0).view(30, 20).cos() * (rank + 1)
        each.allreduce_gradients(model.items())
        results.append(model["weight"].grad.clone())
    found["resumed"] = torch.equal(*results)
    after["q"]["weight"] = after["q"]["weight"][:1]
    with pytest.raises(ValueError, match="Q of weight does not fit"):
        copy.method.load_state_dict(after)

    # Vectors, scalars and empty tensors alone: a plain mean.
    model = nn.ParameterDict({"bias": torch.zeros(7), "scale": torch.tensor(0.0), "empty": torch.zeros(3, 0)})
    for parameter in model.values():
        parameter.grad = torch.full(parameter.shape, float(rank))
    backend_of(model).allreduce_gradients(model.items())
    found["vectors"] = [*model["bias"].grad.tolist(), model["scale"].grad.item()]
    return found


def everything(rank: int, workers: int) -> dict[str, Any]:
    return {
        "updates": ours(rank, workers),
        "torch": torch_hook(rank, workers),
        "odd": odd_cases(rank, workers),
    }


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return on_ranks(everything, request.param)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_it_is_the_papers_algorithm(found: list[dict[str, Any]], rank: int) -> None:
    updates = [each["updates"][str(rank)] for each in found]
    for step, expected in enumerate(reference(len(found), rank)):
        for name in SHAPES:
            mine = updates[0][step][name]
            assert all(np.array_equal(mine, other[step][name]) for other in updates)
            np.testing.assert_allclose(mine, expected[name], rtol=1e-3, atol=1e-4)


def test_it_gives_the_updates_of_torchs_hook(found: list[dict[str, Any]]) -> None:
    assert all(each["torch"] for each in found)


def test_odd_cases(found: list[dict[str, Any]]) -> None:
    for rank in found:
        odd = rank["odd"]
        assert odd["exact"] == [True] * 4
        assert odd["kept"]
        assert odd["resumed"]
        assert odd["vectors"] == [(len(found) - 1) / 2] * 8


def parted(rank: int, workers: int, planted: int | None) -> Any:
    """The step at which the ranks notice that one of them, from step ``planted`` on, computes other last bits."""
    model = parameters()
    backend = DistributedBackend(method="powersgd", params={"min_compression": 1.0})
    for step in range(103):
        for name, value in gradient(rank, step).items():
            model[name].grad = value
        if step == planted and rank == workers - 1:
            assert isinstance(backend.method, PowerSGD)
            torch.mm = _inexact(torch.mm)
        try:
            backend.allreduce_gradients(model.items())
        except UsageError as error:
            return step, str(error)
    return None


def _inexact(multiply: Any) -> Any:
    return lambda *args, **kwargs: multiply(*args, **kwargs).mul_(1 + 2**-20)


@pytest.mark.parametrize("workers", [2, 3])
def test_ranks_whose_hardware_computes_other_bits_are_named(workers: int) -> None:
    assert on_ranks(parted, workers, None) == [None] * workers
    for step, said in on_ranks(parted, workers, 90):
        assert step == 101
        assert f"rank {workers - 1} has computed other bits than rank 0" in said
        assert "equal processors" in said
