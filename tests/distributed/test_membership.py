"""A backend or state that is made before the process group finds its place at the first exchange."""

from __future__ import annotations

import os
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp import CompressedAdam, DistributedBackend, HookState, TopKState, method_hook, topk_hook
from tests.distributed.ranks import on_ranks


def join(folder: str, name: str, rank: int, workers: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=workers)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(20, 30)


def train(model: nn.Module, rank: int, after_backward: Any = None, optimizer: Any = None) -> Tensor:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    for step in range(4):
        optimizer.zero_grad()
        batch = torch.randn(8, 20, generator=torch.Generator().manual_seed(100 * step + rank))
        model(batch).square().mean().backward()
        if after_backward is not None:
            after_backward()
        optimizer.step()
    return weights(model)


def hooked(make: Any, rank: int, join_now: Any) -> Tensor:
    """Trained under DDP with the state that ``make`` makes before ``join_now``."""
    net = network()
    state = make(net)
    join_now()
    if not isinstance(state, HookState):
        state = pickle.loads(state)
        state.bind(net.named_parameters())
    ddp = DistributedDataParallel(net)
    ddp.register_comm_hook(state, method_hook)
    train(ddp, rank)
    return weights(net)


def before_and_after(rank: int, workers: int, folder: str) -> dict[str, tuple[bool, bool]]:
    """Whether what was made before the process group trains to the bits of what was made after it, and to the same
    on all ranks."""
    found = {}
    options: dict[str, Any] = {"ratio": 0.1, "collective": "split"}
    ways: dict[str, Any] = {
        "state": lambda net: HookState(net.named_parameters(), "topk", **options),
        "overlapped state": lambda net: HookState(net.named_parameters(), "topk", overlap=True, **options),
        "powersgd": lambda net: HookState(net.named_parameters(), "powersgd"),
        "pickled state": lambda net: pickle.dumps(HookState(net.named_parameters(), "topk", **options)),
    }
    for way, make in ways.items():
        trained = []
        for moment in ("after", "before"):
            dist.destroy_process_group()
            now = lambda: join(folder, f"{way}-{moment}", rank, workers)  # noqa: B023, E731
            if moment == "after":
                now()
            trained.append(hooked(make, rank, (lambda: None) if moment == "after" else now))
        found[way] = _judged(trained)
    for way in ("backend", "adam"):
        trained = []
        for moment in ("after", "before"):
            dist.destroy_process_group()
            if moment == "after":
                join(folder, f"{way}-{moment}", rank, workers)
            net = network()
            exchange: Any = None
            optimizer = None
            if way == "backend":
                backend = DistributedBackend(method="topk", params=options)
                exchange = lambda: backend.allreduce_gradients(net.named_parameters())  # noqa: B023, E731
            else:
                optimizer = CompressedAdam(net.named_parameters(), freeze_after=2, params=options)
            if moment == "before":
                join(folder, f"{way}-{moment}", rank, workers)
            trained.append(train(net, rank, exchange, optimizer))
        found[way] = _judged(trained)
    return found


def _judged(trained: list[Tensor]) -> tuple[bool, bool]:
    everywhere = [torch.empty_like(trained[1]) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, trained[1])
    return torch.equal(*trained), all(torch.equal(each, trained[1]) for each in everywhere)


@pytest.mark.parametrize("workers", [2, 3])
def test_made_before_the_process_group_is_as_good_as_after(workers: int, tmp_path: Any) -> None:
    for rank in on_ranks(before_and_after, workers, str(tmp_path)):
        assert len(rank) == 6
        for way, (same_bits, same_everywhere) in rank.items():
            assert same_bits, way
            assert same_everywhere, way


def another_group(rank: int, workers: int, folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    net = network()
    net.weight.grad, net.bias.grad = torch.full_like(net.weight, rank), torch.full_like(net.bias, rank)
    made = DistributedBackend(method="topk", params={"ratio": 1.0})
    dist.destroy_process_group()
    os.environ["WORLD_SIZE"] = str(workers)
    for each in (made, DistributedBackend(world_size=workers)):
        try:
            each.allreduce_gradients(net.named_parameters())
        except RuntimeError as error:
            found.setdefault("no group", []).append(str(error))
    del os.environ["WORLD_SIZE"]
    found["alone"] = made.group.world_size
    join(folder, "one", rank, workers)
    made.allreduce_gradients(net.named_parameters())
    found["together"] = net.bias.grad[0].item()
    dist.destroy_process_group()
    join(folder, "two", rank, workers)
    net.bias.grad.fill_(rank + 1.0)
    made.allreduce_gradients(net.named_parameters())
    found["in the next group"] = net.bias.grad[0].item()
    if rank < workers - 1:  # an elastic training goes on without the last rank: its state is of another size
        dist.destroy_process_group()
        join(folder, "three", rank, workers - 1)
        try:
            made.allreduce_gradients(net.named_parameters())
        except ValueError as error:
            found["smaller"] = str(error)
    pair = dist.new_group([0, 1]) if rank < workers - 1 else None
    kept = DistributedBackend(process_group=pair)
    if pair is not None:
        kept.allreduce_gradients(net.named_parameters())
        dist.destroy_process_group(pair)
        try:
            kept.allreduce_gradients(net.named_parameters())
        except RuntimeError as error:
            found["destroyed"] = str(error)
    for said in ({"world_size": workers + 5}, {"rank": rank + 1}):
        try:
            DistributedBackend(**said).allreduce_gradients(net.named_parameters())
        except ValueError as error:
            found.setdefault("said", []).append(str(error))
    return found


def test_the_group_is_looked_up_again_when_it_is_another(tmp_path: Any) -> None:
    for rank, found in enumerate(on_ranks(another_group, 3, str(tmp_path))):
        environment, argument = found["no group"]
        assert "WORLD_SIZE=3" in environment
        assert "init_process_group()" in environment
        assert "world_size=3, and torch.distributed is not initialized" in argument
        assert found["alone"] == 1
        assert found["together"] == 1.0
        assert found["in the next group"] == 2.0
        if rank < 2:
            assert "the state was saved with world_size 3, this is 2" in found["smaller"]
            assert "is destroyed" in found["destroyed"]
        size, place = found["said"]
        assert "was given, and the process group has world_size" in size
        assert "was given, and the process group has rank" in place


def test_a_state_alone_needs_no_process_group() -> None:
    state = TopKState(network().named_parameters(), ratio=0.1)
    assert state.group.world_size == 1
    assert topk_hook.__annotations__["state"] is TopKState
