"""DDP communication hooks on real ranks: the backend's bits, whatever DDP does with its buckets."""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp import DistributedBackend, HookState, TopKState, method_hook, topk_hook
from netsim_ddp.communication.executor import ddp_buckets
from netsim_ddp.communication.flat import FlatGradients
from tests.distributed.ranks import on_ranks

STEPS = 5
TINY_MB = 0.0005  # nearly a bucket per parameter

METHODS: dict[str, dict[str, Any]] = {
    "topk": {"ratio": 0.05, "collective": "split", "values": "fp16"},
    "topk-allgather": {"ratio": 0.05},
    "topk-dense": {"ratio": 0.05},
    "powersgd": {"rank": 2, "min_compression": 1.0},
    "fp16": {},
    "bf16": {},
    "dense": {},
}


class Branches(nn.Module):
    """Layers that are used in another order than they were made in, and one that only some ranks use."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.last = nn.Linear(width, 3)
        self.first = nn.Linear(7, width)
        self.sometimes = nn.Linear(width, width)
        self.middle = nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, inputs: Tensor, *, everything: bool) -> Tensor:
        hidden = torch.tanh(self.first(inputs))
        if everything:
            hidden = hidden + torch.tanh(self.sometimes(hidden))
        out: Tensor = self.last(torch.tanh(self.middle(hidden))) * self.scale
        return out


def inputs(rank: int, step: int, part: int = 0) -> Tensor:
    return torch.randn(6, 7, generator=torch.Generator().manual_seed(10_000 * part + 100 * step + rank))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)


def same_as_backend(rank: int, workers: int, options: dict[str, Any]) -> list[str]:
    """The methods whose parameters differ from the backend's after some step."""
    options = dict(options)
    accumulate, width = options.pop("accumulate", 1), options.pop("width", 12)
    state_options = {"overlap": True} if options.pop("overlap", False) else {}
    unused = options.get("find_unused_parameters", False)
    methods = options.pop("methods", ["topk", "powersgd"])
    differ = []
    for name in methods:
        params = METHODS[name]
        plain, hooked = Branches(width), Branches(width)
        ddp = DistributedDataParallel(hooked, bucket_cap_mb=TINY_MB, **options)
        state = HookState(ddp.named_parameters(), name, **state_options, **params)
        ddp.register_comm_hook(state, method_hook)
        # Owners keep back what is small within an exchange, and sums depend on where a ring cuts it: the bits are
        # those of a backend for each exchange.
        named = [(name, parameter) for name, parameter in plain.named_parameters() if parameter.requires_grad]
        cuts = ddp_buckets(FlatGradients(named)) if state_options else [(0, len(named))]
        backends = [DistributedBackend(method=name, params=params) for _ in cuts]
        one, other = optimizer_of(plain), optimizer_of(ddp)
        for step in range(STEPS):
            everything = not unused or (rank + step) % workers == 0
            one.zero_grad()
            other.zero_grad()
            for part in range(accumulate):
                batch = inputs(rank, step, part)
                (plain(batch, everything=everything) - 1).square().mean().backward()
                with ddp.no_sync() if part + 1 < accumulate else contextlib.nullcontext():
                    (ddp(batch, everything=everything) - 1).square().mean().backward()
            for backend, (first, last) in zip(backends, cuts, strict=True):
                backend.allreduce_gradients(named[first:last])
            one.step()
            other.step()
            if not torch.equal(weights(plain), weights(hooked)):
                differ.append(f"{name}, step {step}")
                break
    return differ


WAYS: dict[str, dict[str, Any]] = {
    "many small buckets": {"methods": list(METHODS)},
    "views": {"gradient_as_bucket_view": True},
    "static graph": {"static_graph": True},
    "a layer that not all ranks use": {"find_unused_parameters": True},
    "accumulated with no_sync": {"accumulate": 3},
    "overlapped": {"overlap": True, "width": 520, "methods": ["topk", "topk-allgather", "powersgd", "bf16"]},
}


def everything(rank: int, workers: int) -> dict[str, Any]:
    return {
        **{way: same_as_backend(rank, workers, options) for way, options in WAYS.items()},
        "resumed": resumed(rank, workers),
        "refused": refused(rank, workers),
        "wrong use": wrong_use(rank, workers),
    }


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return on_ranks(everything, request.param)


@pytest.mark.parametrize("way", WAYS)
def test_the_hook_gives_the_backends_bits(found: list[dict[str, Any]], way: str) -> None:
    for rank in found:
        assert rank[way] == []


def four(rank: int, workers: int) -> list[str]:
    """All ways at once, as far as they go together, of the method that people paste."""
    together: dict[str, Any] = {}
    for options in WAYS.values():
        together |= {key: value for key, value in options.items() if key not in ("methods", "static_graph")}
    return [
        *same_as_backend(rank, workers, together | {"methods": ["topk"], "overlap": False}),
        *same_as_backend(rank, workers, together | {"methods": ["topk"], "accumulate": 1}),
    ]


def test_the_hook_gives_the_backends_bits_on_four_ranks() -> None:
    assert on_ranks(four, 4) == [[]] * 4


def test_the_hook_works_on_the_bucket_link() -> None:
    assert on_ranks(same_as_backend, 3, WAYS["overlapped"], bucket_bps=200_000_000) == [[]] * 3


def test_overlap_is_tested_with_several_exchanges() -> None:
    assert len(ddp_buckets(FlatGradients(Branches(520).named_parameters()))) > 1


def train(ddp: nn.Module, optimizer: torch.optim.Optimizer, rank: int, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        (ddp(inputs(rank, step), everything=True) - 1).square().mean().backward()
        optimizer.step()


def wrapped(model: nn.Module, method: str, overlap: bool) -> tuple[DistributedDataParallel, HookState]:
    ddp = DistributedDataParallel(model, bucket_cap_mb=TINY_MB)
    return ddp, HookState(model.named_parameters(), method, overlap=overlap, **METHODS[method])


def resumed(rank: int, workers: int) -> list[str]:
    """The ways of going on from a checkpoint that do not give the bits of going on without one."""
    del workers
    differ = []
    for method in ("topk", "topk-allgather", "powersgd"):
        for overlap in (False, True):
            ddp, state = wrapped(Branches(300), method, overlap)
            ddp.register_comm_hook(state, method_hook)
            optimizer = optimizer_of(ddp)
            train(ddp, optimizer, rank, range(3))
            saved = copy.deepcopy((ddp.module.state_dict(), optimizer.state_dict(), state.state_dict()))
            pickled = pickle.dumps(state)
            train(ddp, optimizer, rank, range(3, 6))
            for way in ("state_dict", "pickle"):
                fresh, again = wrapped(Branches(300), method, overlap)
                if way == "pickle":
                    again = pickle.loads(pickled)
                    again.bind(fresh.named_parameters())
                else:
                    again.load_state_dict(saved[2])
                fresh.register_comm_hook(again, method_hook)
                fresh.module.load_state_dict(saved[0])
                its = optimizer_of(fresh)
                its.load_state_dict(copy.deepcopy(saved[1]))
                train(fresh, its, rank, range(3, 6))
                if not torch.equal(weights(ddp), weights(fresh)):
                    differ.append(f"{method}, overlap={overlap}, {way}")
    return differ


def test_a_checkpoint_goes_on_with_the_same_bits(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["resumed"] == []


def refused(rank: int, workers: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for method in ("topk", "topk-allgather", "topk-dense", "powersgd"):
        model = Branches()
        ddp = DistributedDataParallel(model, bucket_cap_mb=TINY_MB)
        ddp.register_comm_hook(HookState(ddp.named_parameters(), method, **METHODS[method]), method_hook)
        finite = []
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for step in range(4):
                ddp.zero_grad()
                batch = inputs(rank, step)
                if step == 1 and rank == workers - 1:
                    batch[2] = torch.inf
                ddp(batch, everything=True).square().mean().backward()
                gradients = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
                finite.append((bool(gradients.isfinite().all()), bool(gradients.isnan().all())))
        texts = {str(each.message) for each in said if "NaN on every rank" in str(each.message)}
        found[method] = finite, len(texts)
    return found


def test_a_gradient_that_is_not_finite_makes_its_step_nan_everywhere_and_no_other(
    found: list[dict[str, Any]],
) -> None:
    for rank in found:
        for method, (finite, said) in rank["refused"].items():
            assert finite == [(True, False), (False, True), (True, False), (True, False)], method
            assert said == 1, method


def wrong_use(rank: int, workers: int) -> list[str]:
    del workers
    messages = []
    model = Branches()
    state = TopKState(model.named_parameters(), ratio=0.1)
    again = pickle.loads(pickle.dumps(state))
    stranger = TopKState(Branches().named_parameters(), ratio=0.1)
    for wrong in (again, stranger):
        ddp = DistributedDataParallel(copy.deepcopy(model))
        ddp.register_comm_hook(wrong, topk_hook)
        with pytest.raises((RuntimeError, ValueError)) as caught:
            ddp(inputs(rank, 0), everything=True).sum().backward()
        messages.append(str(caught.value))
    for key, value in (("rank", 7), ("method", "fp16")):
        with pytest.raises(ValueError, match=f"saved with {key} {value}, this is") as refusal:
            state.load_state_dict({**state.state_dict(), key: value})
        messages.append(str(refusal.value))
    return messages


def test_wrong_use_is_named(found: list[dict[str, Any]]) -> None:
    for rank in found:
        unbound, stranger, *others = rank["wrong use"]
        assert "call state.bind(model.named_parameters()) first" in unbound
        assert "a parameter of shape" in stranger
        assert len(others) == 2


def one_rank(rank: int, workers: int) -> bool:
    del rank, workers
    model = Branches()
    alone = copy.deepcopy(model)
    ddp = DistributedDataParallel(model, bucket_cap_mb=TINY_MB)
    ddp.register_comm_hook(TopKState(ddp.named_parameters()), topk_hook)
    for each in (ddp, alone):
        each(inputs(0, 0), everything=True).square().mean().backward()
    pairs = zip(model.parameters(), alone.parameters(), strict=True)
    return all(torch.equal(p.grad, q.grad) for p, q in pairs if p.grad is not None)


def test_one_rank_changes_nothing() -> None:
    assert on_ranks(one_rank, 1) == [True]
