"""DDP and an exchange of netsim's over the same gradients: never both, and never in silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp import CompressedAdam, CorrectedSGD, DistributedBackend, HookState, method_hook
from netsim_ddp.errors import UsageError
from tests.distributed.ranks import on_ranks


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3))


def backward(model: nn.Module, rank: int, step: int = 0) -> None:
    generator = torch.Generator().manual_seed(10 * step + rank)
    for parameter in model.parameters():
        parameter.grad = None
    model(torch.randn(5, 12, generator=generator)).square().mean().backward()


def flat(model: nn.Module) -> list[float]:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).tolist()


def refused(rank: int, workers: int) -> dict[str, Any]:
    said: dict[str, Any] = {}

    def attempt(name: str, model: nn.Module, call: Any) -> None:
        before = flat(model)
        try:
            call()
        except UsageError as error:
            said[name] = str(error)
        else:
            said[name] = "taken"
        said[f"{name} changed"] = flat(model) != before

    for name, options in {"dense steps": {}, "compressed": {"freeze_after": 1}}.items():
        ddp = DistributedDataParallel(build())
        adam = CompressedAdam(ddp.named_parameters(), **options)
        if options:
            with ddp.no_sync():
                backward(ddp, rank)
            attempt("within no_sync", ddp, adam.step)
        backward(ddp, rank)
        attempt(name, ddp, adam.step)
        said[f"{name} count"] = adam._steps

    model = build()
    backend = DistributedBackend(method="topk")
    backward(model, rank)
    attempt("bare", model, lambda: backend.allreduce_gradients(model.named_parameters()))
    later = DistributedDataParallel(model)
    backward(later, rank)
    attempt("wrapped later", model, lambda: backend.allreduce_gradients(model.named_parameters()))

    ddp = DistributedDataParallel(build())
    ddp.register_comm_hook(None, noop_hook)
    backward(ddp, rank)
    attempt("noop hook", ddp, lambda: backend.allreduce_gradients(ddp.named_parameters()))
    hooked = DistributedDataParallel(build())
    hooked.register_comm_hook(HookState(hooked), method_hook)
    backward(hooked, rank)
    attempt("hook", hooked, lambda: backend.allreduce_gradients(hooked.named_parameters()))

    alone = DistributedDataParallel(build(), process_group=_group_of(rank, workers))
    backward(alone, rank)
    attempt("other ranks", alone, lambda: backend.allreduce_gradients(alone.named_parameters()))
    return said


def _group_of(rank: int, workers: int) -> Any:
    groups = [dist.new_group([each]) for each in range(workers)]
    return groups[rank]


@pytest.mark.parametrize("workers", [2, 3])
def test_gradients_that_ddp_has_averaged_are_refused_and_those_it_has_not_are_taken(workers: int) -> None:
    for found in on_ranks(refused, workers):
        for name in ("dense steps", "compressed"):
            assert "has averaged these gradients already, and CompressedAdam would" in found[name]
            assert "no_sync" in found[name]
            assert "register_comm_hook(netsim_ddp.HookState(model), netsim_ddp.method_hook)" in found[name]
            assert not found[f"{name} changed"]
        assert (found["dense steps count"], found["compressed count"]) == (0, 1)
        for name in ("wrapped later", "hook"):
            assert "DistributedBackend would do so again" in found[name]
        for name in ("within no_sync", "bare", "noop hook", "other ranks"):
            assert found[name] == "taken"


def corrected(rank: int, workers: int) -> dict[str, str]:
    del workers
    said = {}
    for name, options in {"none": None, "other": {"momentum": 0.5}, "same": {"momentum": 0.9}}.items():
        ddp = DistributedDataParallel(build())
        if options is not None:
            ddp.register_comm_hook(HookState(ddp, "topk-allgather", **options), method_hook)
        sgd = CorrectedSGD(ddp.parameters(), momentum=0.9)
        backward(ddp, rank)
        try:
            sgd.step()
            said[name] = "taken"
        except UsageError as error:
            said[name] = str(error)
    return said


def test_corrected_sgd_wants_gradients_that_carry_its_momentum() -> None:
    for found in on_ranks(corrected, 2):
        assert "DDP's here carry no momentum" in found["none"]
        assert "HookState(model, momentum=0.9)" in found["none"]
        assert "have a momentum of 0.5" in found["other"]
        assert found["same"] == "taken"


def in_hand(rank: int, workers: int) -> dict[str, Any]:
    """What a hook's state tells of its last step, beside a backend's, and rank 0's state on every rank."""
    del workers
    found: dict[str, Any] = {}
    plain, hooked = build(), build()
    ddp = DistributedDataParallel(hooked)
    state = HookState(ddp, "topk-allgather", ratio=0.2)
    found["before"] = state.statistics()
    ddp.register_comm_hook(state, method_hook)
    backend = DistributedBackend(method="topk-allgather", params={"ratio": 0.2})
    for step in range(3):
        backward(plain, rank, step)
        backend.allreduce_gradients(plain)
        backward(ddp, rank, step)
    found["hook"], found["backend"] = (each.statistics(layers=True) for each in (state, backend))
    dense = DistributedDataParallel(build())
    without = HookState(dense, "dense")
    dense.register_comm_hook(without, method_hook)
    backward(dense, rank)
    found["dense"] = without.statistics()
    everybodys = [state.state_dict()]
    dist.broadcast_object_list(everybodys, src=0)
    try:
        state.load_state_dict(everybodys[0])
        found["loaded"] = "taken"
    except ValueError as error:
        found["loaded"] = str(error)
    return found


def test_a_hooks_statistics_are_the_backends_and_rank_0s_state_is_refused_elsewhere() -> None:
    for rank, found in enumerate(on_ranks(in_hand, 2)):
        assert found["before"] is None
        assert found["dense"] is None
        assert found["hook"].entries > 0
        assert found["hook"].payload_bytes > 0
        assert found["hook"] == found["backend"]
        assert list(found["hook"].layers) == [name for name, _ in build().named_parameters()]
        if rank:
            assert "was saved with rank 0, this is 1" in found["loaded"]
            assert "torch.save(state.state_dict(), f'netsim-{rank}.pt')" in found["loaded"]
            assert "register_for_checkpointing saves rank 0's alone: docs/training.md" in found["loaded"]
        else:
            assert found["loaded"] == "taken"
