"""Top-K compression in an ordinary DDP script: ``torchrun --nproc-per-node 2 examples/ddp_hook.py``.

The lines that matter are the two marked ones; the rest is any training script.
"""

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp import TopKState, get_dataloaders, get_model, topk_hook

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
model = DistributedDataParallel(get_model("simple_cnn"))
state = TopKState(model.named_parameters(), ratio=0.01)  # (1) residuals live here
model.register_comm_hook(state, topk_hook)  # (2) DDP exchanges gradients through it
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader, _ = get_dataloaders("digits", 32, rank, world_size)

for epoch in range(2):
    loader.sampler.set_epoch(epoch)
    for images, labels in loader:
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    # Each rank keeps its own residuals: load_state_dict() takes them back.
    torch.save({"model": model.module.state_dict(), "hook": state.state_dict()}, f"checkpoint-{rank}.pt")
    if rank == 0:
        print(f"epoch {epoch}: loss {loss.item():.3f}")
dist.destroy_process_group()
