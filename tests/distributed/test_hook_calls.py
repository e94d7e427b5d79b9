"""The calls that DDP makes of a hook: none but a step's last waits for another rank, and a step may be left open."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp import HookState, method_hook
from netsim_ddp.communication.hook_step import OWNED_S
from tests.distributed.ranks import on_ranks

LATE_S = 1.0
NOBODYS_S = 3 * OWNED_S
METHODS: dict[str, dict[str, Any]] = {
    "topk": {"ratio": 0.05, "collective": "split"},
    "topk-allgather": {"ratio": 0.05},
    "powersgd": {"rank": 2, "min_compression": 1.0},
    "fp16": {},
}


def model() -> nn.Sequential:
    """Several parts for the hook, and more buckets for DDP."""
    torch.manual_seed(5)
    return nn.Sequential(*(nn.Linear(520, 520) for _ in range(3)))


def backward(ddp: nn.Module, rank: int, step: int) -> None:
    generator = torch.Generator().manual_seed(100 * step + rank)
    ddp(torch.randn(4, 520, generator=generator)).square().mean().backward()


def calls(rank: int, workers: int, method: str) -> list[float]:
    """How long each of the hook's calls took on rank 0, in a step that the last rank begins ``LATE_S`` late."""
    ddp = DistributedDataParallel(model(), bucket_cap_mb=0.5)
    state, took = HookState(ddp.named_parameters(), method, overlap=True, **METHODS[method]), []

    def timed(state: HookState, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        begin = time.monotonic()
        future = method_hook(state, bucket)
        took.append(time.monotonic() - begin)
        return future

    # DDP compares annotations with types; here they are strings.
    ddp.register_comm_hook(state, lambda state, bucket: timed(state, bucket))  # noqa: PLW0108
    for step in range(3):
        took.clear()
        if step == 2 and rank == workers - 1:
            time.sleep(LATE_S)
        backward(ddp, rank, step)
    return took


@pytest.mark.parametrize("method", METHODS)
def test_no_call_but_the_last_waits_for_a_late_rank(method: str) -> None:
    *others, last = on_ranks(calls, 2, method)[0]
    assert len(others) > 1
    assert last > LATE_S / 2
    assert max(others) < LATE_S / 2, others


def left_open(rank: int, workers: int) -> dict[str, bool]:
    """Whether a step in the middle of which every rank's backward pass fails has never been, by method."""
    del workers
    found = {}
    for method, options in METHODS.items():
        gradients = []
        for fails in (False, True):
            ddp = DistributedDataParallel(model(), bucket_cap_mb=0.5)
            state = HookState(ddp.named_parameters(), method, overlap=True, **options)
            ddp.register_comm_hook(state, method_hook)
            for step in range(4):
                if step == 2:
                    if fails:
                        refuse = ddp.module[0].weight.register_hook(_refuse)
                        with pytest.raises(ArithmeticError, match="not today"):
                            backward(ddp, rank, step)
                        refuse.remove()
                    # DDP itself does not go on from there; the state does.
                    ddp = DistributedDataParallel(model(), bucket_cap_mb=0.5)
                    state.bind(ddp.named_parameters())
                    ddp.register_comm_hook(state, method_hook)
                    continue
                ddp.zero_grad()
                backward(ddp, rank, step)
            gradients.append(torch.cat([p.grad.reshape(-1) for p in ddp.parameters() if p.grad is not None]))
        found[method] = torch.equal(*gradients)
    return found


def _refuse(_: Tensor) -> None:
    raise ArithmeticError("not today")


@pytest.mark.parametrize("workers", [2, 3])
def test_a_step_that_is_left_open_has_never_been(workers: int) -> None:
    assert on_ranks(left_open, workers) == [dict.fromkeys(METHODS, True)] * workers


def threads_left(rank: int, workers: int) -> list[str]:
    """The hook's threads that go on once a state is dropped whose last step was left open."""
    del workers
    ddp = DistributedDataParallel(model(), bucket_cap_mb=0.5)
    state = HookState(ddp.named_parameters(), "topk", overlap=True, **METHODS["topk"])
    ddp.register_comm_hook(state, method_hook)
    backward(ddp, rank, 0)
    backward(ddp, rank, 1)
    ddp.module[0].weight.register_hook(_refuse)
    with pytest.raises(ArithmeticError, match="not today"):
        backward(ddp, rank, 2)
    assert [each.name for each in threading.enumerate() if each.name == "netsim-exchange"]
    del ddp, state
    gc.collect()
    end = time.monotonic() + NOBODYS_S
    while time.monotonic() < end and any(each.name == "netsim-exchange" for each in threading.enumerate()):
        time.sleep(0.05)
    return [each.name for each in threading.enumerate() if each.name == "netsim-exchange"]


def test_a_state_that_is_dropped_leaves_no_thread() -> None:
    assert on_ranks(threads_left, 2) == [[], []]
