"""Types of parameters: exchanged rightly, or refused by name before anything is sent; and on which device they are."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp import CompressedAdam, DistributedBackend, HookState, TopKState, method_hook, topk_hook
from netsim_ddp.communication.parameters import UnusableParameter
from netsim_ddp.errors import UsageError
from tests.distributed.ranks import on_ranks

NOT_EXCHANGED = {
    "float64": torch.float64,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}


class Mixed(nn.Module):
    """One parameter of another type."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 4)
        self.odd = nn.Parameter(torch.ones(4, dtype=kind))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs) * self.odd.abs().to(inputs.dtype)


def refusals(rank: int, workers: int) -> dict[str, list[str]]:
    del rank, workers
    found: dict[str, list[str]] = {}
    for name, kind in NOT_EXCHANGED.items():
        for way in ("backend", "hook", "adam"):
            model = Mixed(kind)
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            try:
                if way == "hook":
                    HookState(model.named_parameters(), "dense")
                elif way == "adam":
                    CompressedAdam(model.named_parameters()).step()
                else:
                    DistributedBackend().allreduce_gradients(model.named_parameters())
            except UnusableParameter as error:
                unchanged = all(bool((p.grad == 1).all()) for p in model.parameters() if p.grad is not None)
                found[f"{name}, {way}"] = [str(error), str(unchanged)]
    return found


def test_what_is_not_exchanged_is_refused_by_name_everywhere() -> None:
    for rank in on_ranks(refusals, 2):
        assert len(rank) == 3 * len(NOT_EXCHANGED)
        for case, (said, unchanged) in rank.items():
            assert said.startswith(f"parameter odd is {case.split(',')[0]}, and gradients of float32"), case
            assert unchanged == "True", case
    assert issubclass(UnusableParameter, ValueError)
    assert issubclass(UnusableParameter, UsageError)


class Looked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(50, 4, sparse=True), nn.Linear(4, 4)

    def forward(self, indices: Tensor) -> Tensor:
        found: Tensor = self.linear(self.table(indices))
        return found


def sparse(rank: int, workers: int) -> list[str]:
    del workers
    said = []
    indices = torch.arange(8) + rank
    for overlap in (False, True):
        model = Looked()
        ddp = DistributedDataParallel(model)
        state = HookState(model.named_parameters(), "topk", ratio=0.1, overlap=overlap)
        ddp.register_comm_hook(state, method_hook)
        with pytest.raises(UnusableParameter) as refusal:
            ddp(indices).sum().backward()
        said.append(str(refusal.value))
    model = Looked()
    model(indices).sum().backward()
    before = model.linear.weight.grad.clone()  # type: ignore[union-attr]
    with pytest.raises(UnusableParameter) as refusal:
        DistributedBackend(method="topk").allreduce_gradients(model.named_parameters())
    said.append(str(refusal.value))
    assert torch.equal(before, model.linear.weight.grad)  # type: ignore[arg-type]
    return said


def test_sparse_gradients_are_refused_by_name() -> None:
    for said in on_ranks(sparse, 2):
        assert len(said) == 3
        assert all("the gradient of table.weight is sparse" in each for each in said)


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "bf16": ("bf16", {}),
    "fp16": ("fp16", {}),
    "split": ("topk", {"ratio": 0.01, "collective": "split"}),
    "allgather": ("topk-allgather", {"ratio": 0.01}),
    "powersgd": ("powersgd", {"min_compression": 1.0}),
}


def narrow(rank: int, workers: int) -> bytes:
    """Half of the parameters are 16 bits wide; the gradient of one is the same in each step, so that it piles up."""
    found: dict[str, Any] = {}
    for way, (method, options) in METHODS.items():
        for kind in (torch.float16, torch.bfloat16):
            named = [
                ("wide", nn.Parameter(torch.zeros(20, 30))),
                ("narrow", nn.Parameter(torch.zeros(40, 25, dtype=kind))),
            ]
            backend = DistributedBackend(method=method, params=options)
            largest, applied = 0.0, torch.zeros(40, 25)
            worst = 0.0
            for step in range(30):
                for place, (_, parameter) in enumerate(named):
                    generator = torch.Generator().manual_seed(100 * step + 10 * place + rank)
                    parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                narrow = named[1][1]
                narrow.grad = torch.full_like(narrow, 60000.0 - 1000 * rank)
                backend.allreduce_gradients(named)
                assert narrow.grad is not None
                largest = max(largest, float(narrow.grad.abs().max()))
                applied += narrow.grad.float()
            state = backend.state_dict()
            pending = _pending(state)
            owed = 30 * sum(60000.0 - 1000 * each for each in range(workers)) / workers
            if pending is not None:
                worst = float(((applied + pending) / owed - 1).abs().max())
            elif method in ("dense", "bf16", "fp16"):
                worst = float((applied / owed - 1).abs().max())
            found[f"{way}, {kind}"] = largest, worst
    return pickle.dumps(found)


def _pending(state: dict[str, Any]) -> Tensor | None:
    import torch.distributed as dist

    from netsim_ddp.training.residuals import pending_gradient

    if not state:
        return None
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, state)
    return pending_gradient(states)["narrow"].reshape(40, 25)


@pytest.mark.parametrize("workers", [2, 3])
def test_sixteen_bit_parameters_get_the_average_and_never_an_overflow(workers: int) -> None:
    for rank in on_ranks(narrow, workers):
        for case, (largest, worst) in pickle.loads(rank).items():
            assert 0 < largest < float("inf"), case
            assert largest <= 65504 or "bfloat16" in case, case
            assert worst < 0.01, case  # bfloat16 has 8 bits


def moved(rank: int, workers: int) -> dict[str, Any]:
    """A state made before the model is converted, or gets other memory: its parameters stay the same objects."""
    del workers
    found: dict[str, Any] = {}
    for way in ("half", "memory"):
        torch.manual_seed(1)
        model, other = nn.Linear(30, 20), nn.Linear(30, 20)
        backend = DistributedBackend(method="topk", params={"ratio": 0.1})
        state = TopKState(model.named_parameters(), ratio=0.1)
        for parameter in other.parameters():
            parameter.grad = torch.randn(parameter.shape)
        backend.allreduce_gradients(other.named_parameters())
        kept = backend.state_dict()["error_buffer"]["weight"].norm()
        other.zero_grad()
        for each in (model, other):
            if way == "half":
                each.half()
            for parameter in each.parameters():
                parameter.data = parameter.data.clone()
        ddp = DistributedDataParallel(model)
        ddp.register_comm_hook(state, topk_hook)
        inputs = torch.full((4, 30), rank + 1.0, dtype=model.weight.dtype)
        ddp(inputs).sum().backward()
        other.weight.grad = torch.zeros_like(other.weight)
        backend.allreduce_gradients(other.named_parameters())
        found[way] = (
            state._flat.kinds == [model.weight.dtype] * 2,
            bool(kept > backend.state_dict()["error_buffer"]["weight"].norm() > 0),
            bool(model.weight.grad.isfinite().all()),  # type: ignore[union-attr]
        )
    return found


def test_a_state_follows_its_parameters() -> None:
    for rank in on_ranks(moved, 2):
        assert rank == {"half": (True,) * 3, "memory": (True,) * 3}


def on_a_gpu(rank: int, workers: int) -> tuple[str, bool]:
    del workers
    model = nn.Linear(30, 20)
    state = TopKState(model.named_parameters(), ratio=0.1)
    model.to("cuda:0")
    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(state, topk_hook)
    ddp(torch.full((4, 30), rank + 1.0, device="cuda:0")).sum().backward()
    assert model.weight.grad is not None
    return str(state._flat.data.device), bool(model.weight.grad.isfinite().all())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_state_made_before_to_device_follows() -> None:
    assert on_ranks(on_a_gpu, 2) == [("cuda:0", True)] * 2
