"""A training script of one's own that uses netsim's compression as a library, and no command of it:

    torchrun --nproc-per-node 2 examples/user_loop.py --epochs 2
    netsim launch --workers 2 --bandwidth 100mbps -- python examples/user_loop.py --epochs 1

Model, data, sampler, loop and checkpoint are plain PyTorch; the lines marked (1) to (4) are what compression adds.
``--resume`` goes on from the last epoch that every rank has saved, with as many ranks as before or another number:
ranks save one after the other, so each keeps its last two, in case all are killed in between. ``--compile``
compiles the model, which on a CPU needs a C++ compiler: where there is none, torch ends the first step with
InvalidCxxCompiler and says where it looked.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from netsim_ddp import TopKState, for_other_ranks, get_dataloaders, topk_hook

arguments = argparse.ArgumentParser()
arguments.add_argument("--epochs", type=int, default=3)
arguments.add_argument("--ratio", type=float, default=0.01, help="the fraction of a gradient that is sent")
arguments.add_argument("--compile", action="store_true")
arguments.add_argument("--resume", action="store_true")
options = arguments.parse_args()

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)  # DDP sends rank 0's parameters to all anyway

# Handwritten digits that come with netsim, each split as one batch: images [n, 1, 8, 8] and labels [n].
training, held_out = (
    TensorDataset(*next(iter(split))) for split in get_dataloaders("digits", batch_size=1438)
)
sampler = DistributedSampler(training, drop_last=True)
loader = DataLoader(training, batch_size=25, sampler=sampler)

network = nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
if options.compile:
    network.compile()  # what DDP wraps: torch.compile(DistributedDataParallel(...)) compiles nothing in torch 2.14
model = DistributedDataParallel(network)
state = TopKState(model.named_parameters(), ratio=options.ratio)  # (1) the residuals live here
model.register_comm_hook(state, topk_hook)  # (2) DDP exchanges gradients through it
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)


def saved_by(rank: int) -> dict[int, dict]:
    """The checkpoints of ``rank`` by the number of epochs that it had been through."""
    names = (f"checkpoint-{rank}-before.pt", f"checkpoint-{rank}.pt")
    found = [torch.load(name) for name in names if os.path.exists(name)]
    return {each["epochs"]: each for each in found}


mine, last = f"checkpoint-{rank}.pt", f"checkpoint-{rank}-before.pt"  # per rank: residuals differ
first = 0
if options.resume:
    for epochs, saved in sorted(saved_by(0).items(), reverse=True):
        before = saved["hook"]["world_size"]
        others = [saved_by(each).get(epochs) for each in range(before)]
        if all(each is not None and each["hook"]["world_size"] == before for each in others):
            break
    else:
        raise SystemExit("there is no epoch that every rank has saved: start without --resume")
    hooks = [each["hook"] for each in others]
    network.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    hook = hooks[rank] if before == world_size else for_other_ranks(hooks, "sum", rank, world_size)
    state.load_state_dict(hook)  # (3) what was not sent yet is not lost
    first = saved["epochs"]

for epoch in range(first, options.epochs):
    sampler.set_epoch(epoch)
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
    schedule.step()
    checkpoint = {
        "epochs": epoch + 1,
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "hook": state.state_dict(),  # (4)
    }
    torch.save(checkpoint, mine + ".part")
    if os.path.exists(mine):
        os.replace(mine, last)
    os.replace(mine + ".part", mine)  # whoever is killed meanwhile leaves the last one whole
    if rank == 0:
        with torch.no_grad():
            inputs, targets = held_out[:]
            accuracy = (network(inputs).argmax(dim=1) == targets).float().mean().item()
        print(f"epoch {epoch}: loss {loss.item():.3f}, {accuracy:.1%} of the images held out", flush=True)
dist.destroy_process_group()
