"""Does it pay to exchange beside the backward pass? A ResNet-18's steps with and without overlap, in turns.

    netsim launch -n 2 --bandwidth 100mbps -- python reports/overlap.py

Each of these ranks trains the same two models, under DistributedDataParallel with netsim's hook; rank 0 prints the
median step of both and its range over the turns.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet18

from netsim_ddp import HookState, method_hook

WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default="topk")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="of a turn")
    options = parser.parse_args()
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    images, labels = torch.randn(options.batch_size, 3, 64, 64), torch.randint(0, 10, (options.batch_size,))
    models = {overlap: trained(options.method, overlap) for overlap in (False, True)}
    took: dict[bool, list[float]] = {overlap: [] for overlap in models}
    for turn in range(options.turns + 1):
        for overlap in (False, True) if turn % 2 else (True, False):
            times = []
            for _ in range(options.steps if turn else WARM_UP):
                dist.barrier()
                begin = time.monotonic()
                models[overlap].zero_grad()
                cross_entropy(models[overlap](images), labels).backward()
                dist.barrier()
                times.append(time.monotonic() - begin)
            if turn:
                took[overlap].append(median(times))
    if dist.get_rank() == 0:
        for overlap, each in took.items():
            print(
                f"{options.method}, overlap {'on ' if overlap else 'off'}: {median(each) * 1e3:.0f} ms "
                f"({min(each) * 1e3:.0f} to {max(each) * 1e3:.0f} in {len(each)} turns of {options.steps} steps), "
                f"{dist.get_world_size()} ranks, {torch.get_num_threads()} threads each, load {os.getloadavg()[0]:.1f}"
            )


def trained(method: str, overlap: bool) -> DistributedDataParallel:
    ddp = DistributedDataParallel(resnet18(num_classes=10))
    ddp.register_comm_hook(HookState(ddp.named_parameters(), method, overlap=overlap), method_hook)
    return ddp


if __name__ == "__main__":
    main()
