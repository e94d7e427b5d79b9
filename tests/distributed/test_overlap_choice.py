"""``overlap="auto"``: all ranks time the same steps, and choose alike whatever each of them has seen."""

from __future__ import annotations

import hashlib
import pickle
import time
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp import HookState, method_hook
from netsim_ddp.communication.overlap_choice import TIMED, WARM_UP, OverlapChoice
from netsim_ddp.communication.segments import Group
from netsim_ddp.errors import UsageError
from tests.distributed.ranks import on_ranks

STEPS = 2 * (WARM_UP + TIMED) + 3


def trained(rank: int, overlap: Any, method: str, **options: Any) -> tuple[HookState, list[bool], str]:
    """The state after some steps, whether each of them overlapped, and a digest of the weights."""
    torch.manual_seed(5)
    model = nn.Sequential(*(nn.Linear(520, 520) for _ in range(3)))
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.5)
    state, overlapped = HookState(ddp.named_parameters(), method, overlap=overlap, **options), []
    ddp.register_comm_hook(state, method_hook)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for step in range(STEPS):
        if rank == 1:
            time.sleep(0.005)
        generator = torch.Generator().manual_seed(100 * step + rank)
        optimizer.zero_grad()
        ddp(torch.randn(4, 520, generator=generator)).square().mean().backward()
        overlapped.append(state.overlap)
        optimizer.step()
    digest = hashlib.sha256(b"".join(each.detach().numpy().tobytes() for each in model.parameters()))
    return state, overlapped, digest.hexdigest()


def choosing(rank: int, workers: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    group, found = Group(rank, workers), {}
    for name, mine in {"all faster": 0.5, "one slower": 0.5 if rank else 2.0}.items():
        choice = OverlapChoice()
        choice._took, choice._steps = ([1.0] * TIMED, [mine] * TIMED), 2 * (WARM_UP + TIMED)
        found[name] = choice.overlap(group, torch.device("cpu"))
    state, overlapped, weights = trained(rank, "auto", "topk", ratio=0.05, collective="split")
    again = pickle.loads(pickle.dumps(state))
    return {
        **found,
        "topk": (overlapped, weights),
        "the bits are those without": trained(rank, "auto", "bf16")[2] == trained(rank, False, "bf16")[2],
        "goes on": again._choice.decided == state.overlap,
    }


@pytest.mark.parametrize("workers", [2, 3])
def test_all_ranks_choose_alike(workers: int) -> None:
    first, *others = on_ranks(choosing, workers)
    assert all(other == first for other in others)
    assert first["all faster"] is True
    assert first["one slower"] is False
    assert first["the bits are those without"]
    assert first["goes on"]
    overlapped, _ = first["topk"]
    each = WARM_UP + TIMED
    assert overlapped[: 2 * each] == [False] * each + [True] * each
    assert len(set(overlapped[2 * each :])) == 1


def test_another_word_is_refused() -> None:
    with pytest.raises(UsageError, match="write overlap=True, False or 'auto'"):
        HookState(nn.Linear(2, 2), overlap="yes")  # type: ignore[arg-type]
