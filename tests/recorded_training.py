"""Small trainings for tests of the recorder, each as a user may write it, and what a recorder saw of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp.errors import UsageError
from netsim_ddp.results.recording import Recording
from netsim_ddp.workloads.recording.recorder import Recorder
from netsim_ddp.workloads.recording.session import Settings

STEPS = 2
ALL = 3 + 2 * STEPS + 3
"""Steps that a recording of ``STEPS`` takes."""
DDP = (
    "ddp",
    "hook",
    "late hook",
    "no_sync",
    "unused",
    "static",
    "view",
    "builtin",
    "wrapped",
    "two optimizers",
)
PLAIN = (
    "plain",
    "accumulated",
    "evaluated",
    "scaler",
    "checkpoint",
    "inner",
    "closure",
    "compiled",
    "compiled in place",
)


FSDP2 = ("fsdp2", "fsdp2 no_sync", "fsdp2 mixed")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 256)
        self.last = nn.Linear(256, 4)
        self.other = nn.Linear(256, 4)

    def forward(self, inputs: Tensor, other: bool = False) -> Tensor:
        hidden = self.first(inputs).relu()
        return (self.other if other else self.last)(hidden) + 0 * (0 if other else 1)


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs).square().mean()


class Kept:
    """A sink that keeps."""

    def __init__(self) -> None:
        self.recording: Recording | None = None
        self.sets: Sequence[np.ndarray] = ()
        self.reason = ""

    def deliver(self, recording: Recording, sets: Sequence[np.ndarray]) -> None:
        assert self.recording is None
        self.recording, self.sets = Recording.model_validate(recording.model_dump()), sets

    def tell(self, backward: int, problem: UsageError) -> None:
        self.reason = f"{backward}: {problem}"


def own_hook(log, bucket):  # type: ignore[no-untyped-def] # torch reads annotations, and not as text
    log.append((bucket.index(), time.perf_counter()))
    averaged = bucket.buffer() / dist.get_world_size()
    return dist.all_reduce(averaged, async_op=True).get_future().then(lambda done: done.value()[0])


def train(how: str, rank: int, steps: int, log: list[Any]) -> Tensor:
    """The parameters at the end, flat. ``log`` gets what the script itself measures."""
    torch.manual_seed(1)
    net: nn.Module = Net()
    called: Callable[..., Any] = net
    if how == "compiled":
        called = torch.compile(net, backend="eager")
    if how == "compiled in place":
        net.compile(backend="eager")
    if how in DDP:
        options = {
            "unused": {"find_unused_parameters": True},
            "static": {"static_graph": True, "find_unused_parameters": True},
            "view": {"gradient_as_bucket_view": True},
        }.get(how, {"find_unused_parameters": True} if how == "ddp" else {})
        if "find_unused_parameters" not in options:
            net.other.requires_grad_(False)
        model = DistributedDataParallel(net, bucket_cap_mb=0.003, **options)
        called = Wrapper(model) if how == "wrapped" else model
        if how in ("hook", "no_sync"):
            model.register_comm_hook(log, own_hook)
        if how == "builtin":
            model._register_builtin_comm_hook(dist.BuiltinCommHookType.FP16_COMPRESS)
    if how in FSDP2:
        policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if how == "fsdp2 mixed" else None)
        fully_shard(net.first, mp_policy=policy)
        net.other.requires_grad_(False)
        fully_shard(net, mp_policy=policy)
    if how == "fsdp1":
        called = net = FullyShardedDataParallel(net, device_id=torch.device("cpu"))
    if how == "dtensor":
        mesh = init_device_mesh("cpu", (1,))
        parallelize_module(net, mesh, {"first": ColwiseParallel()})
    trained = [each for each in net.parameters() if each.requires_grad]
    groups = [trained[:1], trained[1:]] if how == "two optimizers" else [trained]
    optimizers = [torch.optim.SGD(group, lr=0.1, momentum=0.9) for group in groups]
    scaler = (
        torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6) if how == "scaler" else None
    )
    draw = torch.Generator().manual_seed(rank)
    for step in range(steps):
        log.append(("step", time.perf_counter()))
        if how == "evaluated" and step == 5:
            net.eval()
            net(torch.randn(8, 32, generator=draw))
            net.train()
        inputs = torch.randn(8, 32, generator=draw)
        passes = 3 if how in ("no_sync", "accumulated", "fsdp2 no_sync") else 1
        for number in range(passes):
            quiet = model.no_sync() if how == "no_sync" and number < 2 else contextlib.nullcontext()
            if how == "fsdp2 no_sync":
                called.set_requires_gradient_sync(number == 2)
            with quiet:
                log.append(("forward", time.perf_counter()))
                other = how == "unused" and step % 2 == 1
                if how == "inner":
                    out = net.last(net.first(inputs).relu())
                elif how == "checkpoint":
                    out = torch.utils.checkpoint.checkpoint(net, inputs, use_reentrant=False)
                else:
                    out = called(inputs) if how == "wrapped" else called(inputs, other)
                if how == "late hook" and step == 0:
                    model.register_comm_hook(None, fp16_compress_hook)
                loss = out.square().mean() * (float("inf") if how == "scaler" and step == 4 else 1.0)
                log.append(("backward", time.perf_counter()))
                (loss if scaler is None else scaler.scale(loss)).backward()
                log.append(("after", time.perf_counter()))
        if scaler is not None:
            scaler.step(optimizers[0])
            scaler.update()
        elif how == "closure":

            def closure(inputs: Tensor = inputs) -> None:
                called(inputs).square().mean().backward()

            optimizers[0].step(closure)
        else:
            for optimizer in optimizers:
                optimizer.step()
        log.append(("end", time.perf_counter()))
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=how != "view")
    whole = [each.full_tensor() if hasattr(each, "full_tensor") else each for each in net.parameters()]
    return torch.cat([each.detach().reshape(-1) for each in whole])


def watched(how: str, rank: int, steps: int = ALL + 3, keep: Any = "sampled") -> tuple[bool, Kept, list[Any]]:
    """Train twice, the second time watched: whether both ended with the same bits, and what was recorded."""
    plain = train(how, rank, steps, [])
    kept, log = Kept(), []
    recorder = Recorder(Settings(STEPS, keep), kept)
    recorder.start()
    recorded = train(how, rank, steps, log)
    recorder.finish()
    return torch.equal(plain, recorded), kept, log
