"""Two NCCL ranks on one GPU, over sockets. Experimental in NCCL itself (NCCL_MULTI_RANK_GPU_ENABLE, 2.30 or newer)."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from netsim_ddp import DistributedBackend
from tests.distributed.ranks import on_ranks

METHODS: dict[str, dict[str, Any]] = {
    "dense": {},
    "fp16": {},
    "topk": {"ratio": 0.05},
    "topk-allgather": {"ratio": 0.05},
    "topk-dense": {"ratio": 0.05},
}

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not dist.is_nccl_available(), reason="this torch has no NCCL"),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.nccl.version() < (2, 30),
        reason="two NCCL ranks on one GPU need NCCL 2.30",
    ),
]


def reduce(rank: int, workers: int) -> dict[str, list[torch.Tensor]]:
    """Every method's three averages, on the GPU over NCCL and, from the same gradients, on the CPU over Gloo."""
    os.environ |= {
        "NCCL_MULTI_RANK_GPU_ENABLE": "1",
        "NCCL_HOSTID": f"rank-{rank}",
        "NCCL_NET": "Socket",
        "NCCL_IB_DISABLE": "1",
        "NCCL_P2P_DISABLE": "1",
        "NCCL_SHM_DISABLE": "1",
        "NCCL_SOCKET_IFNAME": "=lo",
    }
    nccl = dist.new_group(list(range(workers)), backend="nccl")
    found: dict[str, list[torch.Tensor]] = {}
    for name, params in METHODS.items():
        places = {"cuda": nccl, "cpu": dist.group.WORLD}
        for device, group in places.items():
            model = nn.Linear(301, 33).to(device)
            backend = DistributedBackend(method=name, params=params, process_group=group)
            averages = []
            for step in range(3):
                generator = torch.Generator().manual_seed(10 * step + rank)
                for parameter in model.parameters():
                    parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
                backend.allreduce_gradients(model.named_parameters())
                averages.append(
                    torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
                )
            found[f"{name} {device}"] = averages
    return found


def test_every_method_gives_over_nccl_what_it_gives_over_gloo() -> None:
    first, second = on_ranks(reduce, 2)
    for name in METHODS:
        for step in range(3):
            assert torch.equal(first[f"{name} cuda"][step], second[f"{name} cuda"][step]), (name, step)
            torch.testing.assert_close(
                first[f"{name} cuda"][step], first[f"{name} cpu"][step], rtol=1e-3, atol=1e-5
            )
