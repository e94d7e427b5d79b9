"""A training loop as users write it, whose gradients are averaged by one method after the other.

reports/peers.py starts one of these per rank under ``netsim launch`` and reads what each rank writes. The model has the
parameters of ResNet-50 and a backward pass that costs little more than writing their gradients, so that a step is an
exchange. Every method gets its turn in every round, with a model, a DDP and a state of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp import DistributedBackend, ErrorFeedbackBuffer, TopKCompressor, TopKState, topk_hook

RATIO = 0.01
WARMUP = 3
"""Steps of a turn before those that count: DDP makes its buckets anew after the first, PowerSGD begins in the third."""
SPARE = 1 << 20


def resnet50_shapes(width: int = 64) -> list[tuple[int, ...]]:
    """Of torchvision's ``resnet50``'s 161 parameters, in its order; with another ``width``, of a thinner network."""
    shapes: list[tuple[int, ...]] = [(width, 3, 7, 7), (width,), (width,)]
    inputs = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width << stage
        for block in range(blocks):
            convolutions = [(inner, inputs, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)]
            convolutions += [(4 * inner, inputs, 1, 1)] if block == 0 else []
            for shape in convolutions:
                shapes += [shape, shape[:1], shape[:1]]  # and the weight and bias of its normalisation
            inputs = 4 * inner
    return [*shapes, (1000, inputs), (1000,)]


class Layer(torch.autograd.Function):
    """Passes its input on. The gradient of its parameter is a copy of the next piece of the model's noise."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, parameter: Tensor, noise: Tensor) -> Tensor:
        ctx.noise, ctx.shape = noise, parameter.shape
        return signal.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, ctx.noise.view(ctx.shape).clone(), None


class Model(nn.Module):
    """Parameters of these shapes, which no step changes; gradients are normal numbers, others in each step and rank."""

    def __init__(self, shapes: list[tuple[int, ...]], noise: Tensor) -> None:
        super().__init__()
        self.layers = nn.ParameterList(torch.zeros(shape) for shape in shapes)
        self.noise, self.random = noise, random.Random(0)

    def forward(self) -> Tensor:
        signal, begin = torch.zeros(()), self.random.randrange(SPARE)
        for parameter in self.layers:
            end = begin + parameter.numel()
            signal, begin = Layer.apply(signal, parameter, self.noise[begin:end]), end
        return signal


class Watch:
    """How long the longest call of a hook in a step took, that of the step's last bucket left out."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    def __call__(self, hook: Any) -> Any:
        def timed(state, bucket):  # type: ignore[no-untyped-def] # DDP compares annotations with the types themselves
            begin = time.perf_counter()
            future = hook(state, bucket)
            if not bucket.is_last():
                self.longest_s = max(self.longest_s, time.perf_counter() - begin)
            return future

        return timed


Step = Callable[[], None]


def under_ddp(model: Model, watch: Watch, variants: list[str], state: Any = None, hook: Any = None) -> Step:
    """DDP as it comes, with a hook or without; ``views`` and ``onebucket`` are options of its own."""
    options = {"bucket_cap_mb": 1000} if "onebucket" in variants else {}
    # The parameters are the same everywhere: to send them in every turn would only take time.
    ddp = DistributedDataParallel(
        model, gradient_as_bucket_view="views" in variants, init_sync=False, **options
    )
    if hook is not None:
        ddp.register_comm_hook(state, watch(hook))
    return lambda: ddp().backward()


def no_communication(model: Model, watch: Watch, variants: list[str]) -> Step:
    del watch
    ddp = DistributedDataParallel(model, gradient_as_bucket_view="views" in variants, init_sync=False)

    def step() -> None:
        with ddp.no_sync():
            ddp().backward()

    return step


def sends_nothing(_state, bucket):  # type: ignore[no-untyped-def] # as the watch's
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def powersgd(model: Model, watch: Watch, variants: list[str]) -> Step:
    """In one bucket: with several, the hook starts all-reduces from callbacks of futures, in another order on each
    rank, and Gloo ends the program ("Is there a distributed collective mismatch in your code?")."""
    batched = "batched" in variants
    state = PowerSGDState(None, 2, start_powerSGD_iter=2, batch_tensors_with_same_shape=batched)
    return under_ddp(model, watch, [*variants, "onebucket"], state, powerSGD_hook)


def flat_topk(model: Model, watch: Watch, variants: list[str]) -> Step:
    """The usual thirty lines: the largest entries of the whole gradient, gathered from everybody and added up."""
    del watch, variants
    parameters = list(model.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    residual = torch.zeros(sum(sizes))
    count = int(RATIO * len(residual))

    def step() -> None:
        model().backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in parameters]).add_(residual)
        indices = gradient.abs().topk(count, sorted=False).indices
        values = gradient[indices]
        residual.copy_(gradient)[indices] = 0
        world = dist.get_world_size()
        all_values = [torch.empty_like(values) for _ in range(world)]
        all_indices = [torch.empty(count, dtype=torch.int32) for _ in range(world)]
        dist.all_gather(all_values, values)
        dist.all_gather(all_indices, indices.int())
        average = gradient.zero_()
        for one, where in zip(all_values, all_indices, strict=True):
            average.index_add_(0, where, one)
        average.div_(world)
        for parameter, piece in zip(parameters, average.split(sizes), strict=True):
            parameter.grad.copy_(piece.view_as(parameter))

    return step


def backend(model: Model, watch: Watch, variants: list[str]) -> Step:
    del watch, variants
    averaging = DistributedBackend(TopKCompressor(RATIO), ErrorFeedbackBuffer())

    def step() -> None:
        model().backward()
        averaging.allreduce_gradients(model.named_parameters())

    return step


def hook(model: Model, watch: Watch, variants: list[str]) -> Step:
    state = TopKState(model.named_parameters(), RATIO, overlap="overlap" in variants)
    return under_ddp(model, watch, variants, state, topk_hook)


METHODS: dict[str, Callable[[Model, Watch, list[str]], Step]] = {
    "none": no_communication,
    "nothing": lambda *given: under_ddp(*given, None, sends_nothing),
    "ddp": under_ddp,
    "fp16": lambda *given: under_ddp(*given, None, fp16_compress_hook),
    "bf16": lambda *given: under_ddp(*given, None, bf16_compress_hook),
    "powersgd": powersgd,
    "flat": flat_topk,
    "backend": backend,
    "hook": hook,
}


def sent_bytes() -> int:
    """What this rank's interface has sent, headers of every packet included."""
    interface = os.environ["GLOO_SOCKET_IFNAME"]
    tc = shutil.which("tc") or "/usr/sbin/tc"
    shown = subprocess.run(
        [tc, "-s", "-j", "qdisc", "show", "dev", interface], stdout=subprocess.PIPE, check=True
    )
    return int(next(qdisc["bytes"] for qdisc in json.loads(shown.stdout) if qdisc.get("root")))


def turn(name: str, model: Model, steps: int) -> dict[str, Any]:
    """Some steps of a method: wall seconds of each, and of its longest hook call but the last; CPU seconds of all this
    process's threads and bytes sent, both by step."""
    method, *variants = name.split("+")
    watch = Watch()
    step = METHODS[method](model, watch, variants)
    took: list[float] = []
    calls: list[float] = []
    sent, cpu_s = 0, 0.0
    for number in range(-WARMUP, steps):
        if number == 0:
            sent, cpu_s = sent_bytes(), time.process_time()
        dist.barrier()
        watch.longest_s = 0.0
        begin = time.perf_counter()
        model.zero_grad()
        step()
        took.append(time.perf_counter() - begin)
        calls.append(watch.longest_s)
    dist.barrier()
    cpu_s = time.process_time() - cpu_s
    return {
        "step_s": took[WARMUP:],
        "call_s": calls[WARMUP:],
        "cpu_s": cpu_s / steps,
        "sent_bytes": (sent_bytes() - sent) / steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--first", type=int, required=True, help="the method that comes first")
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    shapes = resnet50_shapes(given.width)
    count = sum(torch.Size(shape).numel() for shape in shapes)
    noise = torch.randn(count + SPARE, generator=torch.Generator().manual_seed(rank))
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in given.methods}
    for number in range(given.rounds):
        first = (given.first + number) % len(given.methods)
        for name in given.methods[first:] + given.methods[:first]:
            begin = time.monotonic()
            turns[name].append(turn(name, Model(shapes, noise), given.steps))
            gc.collect()  # before the next method: a DDP is part of a cycle
            if rank == 0:
                took = sorted(turns[name][-1]["step_s"])[given.steps // 2]
                whole = time.monotonic() - begin
                print(
                    f"round {number + 1} {name}: {took * 1e3:.0f} ms a step, turn {whole:.1f} s", flush=True
                )
    (given.folder / f"{rank}.json").write_text(json.dumps(turns))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
