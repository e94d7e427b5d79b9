"""What the program around an exchange has set for its model does not change the exchange's bits."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp import DistributedBackend, ErrorFeedbackBuffer, HookState, TopKCompressor, method_hook
from tests.distributed.ranks import on_ranks

SHAPES = {"a": (40, 30), "b": (30,), "c": (7, 90)}
STEPS = 4
CPU = torch.device("cpu")


@contextlib.contextmanager
def default_type(kind: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default type float64": lambda: default_type(torch.float64),
    "default type bfloat16": lambda: default_type(torch.bfloat16),
    "default device meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": deterministic,
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "split": {"collective": "split"},
    "split, everything": {
        "collective": "split",
        "values": "int8-stochastic",
        "momentum": 0.5,
        "clip": 1.0,
        "nonfinite": "skip",
    },
    "adaptive": {"collective": "split", "adaptive": True, "values": "fp16"},
    "allgather": {"collective": "allgather", "values": "bf16", "warmup_steps": 3, "dense_norms": True},
    **{selector: {"selector": selector} for selector in ("sampled", "fitted", "random", "block")},
    "plain indices": {"indices": "int64", "scope": "model"},
}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("topk", {"ratio": 0.05, **options}) for name, options in OPTIONS.items()},
    "topk-dense": ("topk-dense", {"ratio": 0.05}),
    "powersgd": ("powersgd", {"rank": 2, "min_compression": 1.0}),
    "dense": ("dense", {}),
    "fp16": ("fp16", {}),
    "bf16": ("bf16", {}),
}


def gradient(name: str, step: int, rank: int) -> Tensor:
    seed = 1000 * step + 10 * list(SHAPES).index(name) + rank
    generator = torch.Generator(CPU).manual_seed(seed)
    return torch.randn(SHAPES[name], generator=generator, dtype=torch.float32, device=CPU)


class Weighted(nn.Module):
    """Its gradients are its inputs, in every mode."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            made = torch.zeros(shape, dtype=torch.float32, device=CPU)
            self.register_parameter(name, nn.Parameter(made))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=CPU)
        for name, parameter in self.named_parameters():
            total = total + (parameter * inputs[name]).sum()
        return total


def by_backend(make: Callable[[], DistributedBackend], mode: Any, rank: int) -> list[Tensor]:
    """Every second step within ``mode``, the first one too, where all is built."""
    net, made = Weighted(), None
    averages = []
    for step in range(STEPS):
        given = {name: gradient(name, step, rank) for name in SHAPES}
        with mode() if step % 2 == 0 else contextlib.nullcontext():
            made = made or make()
            for name, parameter in net.named_parameters():
                parameter.grad = given[name]
            made.allreduce_gradients(net.named_parameters())
            if step == 2:  # what goes through a checkpoint too
                made.load_state_dict(copy.deepcopy(made.state_dict()))
        averages += [parameter.grad.clone() for parameter in net.parameters()]  # type: ignore[union-attr]
    return averages


def by_hook(method: str, options: dict[str, Any], mode: Any, rank: int) -> list[Tensor]:
    net = Weighted()
    with mode():
        state = HookState(net.named_parameters(), method, **options)
    ddp = DistributedDataParallel(net)
    ddp.register_comm_hook(state, method_hook)
    averages = []
    for step in range(STEPS):
        ddp.zero_grad()
        loss = ddp({name: gradient(name, step, rank) for name in SHAPES})
        with mode() if mode is not torch.inference_mode else torch.no_grad():
            loss.backward()
        averages += [parameter.grad.clone() for parameter in net.parameters()]  # type: ignore[union-attr]
    return averages


def everything(rank: int, workers: int) -> list[str]:
    del workers
    makers: dict[str, Callable[[], DistributedBackend]] = {
        name: lambda method=method, options=options: DistributedBackend(method=method, params=options)  # type: ignore[misc]
        for name, (method, options) in METHODS.items()
    }
    makers["handed over"] = lambda: DistributedBackend(TopKCompressor(0.05), ErrorFeedbackBuffer())

    class Own(TopKCompressor):
        def compress(self, tensor: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
            return super().compress(tensor)

    makers["a compressor of one's own"] = lambda: DistributedBackend(Own(0.05), ErrorFeedbackBuffer())
    differ = []
    for name, make in makers.items():
        plain = by_backend(make, contextlib.nullcontext, rank)
        for mode, enter in MODES.items():
            found = by_backend(make, enter, rank)
            if not all(torch.equal(one, other) for one, other in zip(plain, found, strict=True)):
                differ.append(f"{name}, {mode}")
    for name in ("split", "powersgd", "bf16"):
        method, options = METHODS[name]
        plain = by_hook(method, options, contextlib.nullcontext, rank)
        for mode, enter in MODES.items():
            found = by_hook(method, options, enter, rank)
            if not all(torch.equal(one, other) for one, other in zip(plain, found, strict=True)):
                differ.append(f"hook, {name}, {mode}")
    return differ


@pytest.mark.parametrize("workers", [2])
def test_modes_do_not_change_an_answer(workers: int) -> None:
    assert on_ranks(everything, workers) == [[]] * workers
