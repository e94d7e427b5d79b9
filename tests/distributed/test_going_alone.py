"""Ranks that stop doing the same in mid-run: what a load that differs, a change on one rank alone and a parameter that
DDP does not know say, on every rank and in time."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp import (
    CompressedAdam,
    DistributedBackend,
    ErrorFeedbackBuffer,
    HookState,
    TopKCompressor,
    method_hook,
)
from netsim_ddp.errors import RankTimeout
from tests.distributed.ranks import on_ranks

SHAPES = ((40, 31), (31,), (7, 9, 3), (1,))


class Given(nn.Module):
    """A model whose parameters' gradients are what it is called with."""

    def __init__(self, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> None:
        super().__init__()
        self.held = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes])

    def forward(self, gradients: list[Tensor]) -> Tensor:
        products = [(p * g).sum() for p, g in zip(self.held, gradients, strict=True) if p.requires_grad]
        return torch.stack(products).sum()


def gradients(model: Given, rank: int, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(parameter.shape, generator=generator) for parameter in model.held]


class Loop:
    """A training of its own parameters: through a backend, DDP's hook or CompressedAdam."""

    def __init__(self, way: str, model: Given | None = None, **options: Any) -> None:
        self.model = model or Given()
        self.called: nn.Module = self.model
        method = options.pop("method", "topk")
        if way == "hook":
            self.called = DistributedDataParallel(self.model, find_unused_parameters=True)
            self.kept: Any = HookState(self.model, method, **options)
            self.called.register_comm_hook(self.kept, method_hook)
        elif way == "backend":
            self.kept = DistributedBackend(method=method, params=options)
        else:
            freeze_after = options.pop("freeze_after", 2)
            self.kept = CompressedAdam(
                self.model, freeze_after=freeze_after, params={"ratio": 0.1}, **options
            )

    def step(self, rank: int, number: int) -> list[Tensor]:
        self.model.zero_grad()
        self.called(gradients(self.model, rank, number)).backward()
        if isinstance(self.kept, DistributedBackend):
            self.kept.allreduce_gradients(self.model)
        elif isinstance(self.kept, CompressedAdam):
            self.kept.step()
        return [p.grad.clone() for p in self.model.held if p.grad is not None]


def said(attempt: Any) -> str:
    try:
        attempt()
    except (ValueError, RuntimeError, RankTimeout) as error:
        return f"{type(error).__name__}: {error}"
    return "went on"


def bad_resumes(rank: int, workers: int) -> dict[str, str]:
    del workers
    found = {}
    for way, options in {
        "hook": {"ratio": 0.1},
        "backend": {"ratio": 0.1, "collective": "split"},
        "hook, overlapped": {"ratio": 0.1, "overlap": True},
        "hook, powersgd": {"method": "powersgd"},
        "adam": {},
        "adam, dense": {"freeze_after": 9},
    }.items():
        kind = way.partition(",")[0]
        first, saved = Loop(kind, **options), []
        for step in range(4):
            first.step(rank, step)
            saved.append(_copied(first.kept.state_dict()))
        for case in ("others' step", "rank 0 alone", "same", "in mid-run"):
            second = Loop(kind, **options)
            if case == "in mid-run":
                second.step(rank, 0)
            if case != "rank 0 alone" or rank == 0:
                second.kept.load_state_dict(saved[3 if rank == 0 or case == "same" else 1])
            if case == "in mid-run":
                second.kept.load_state_dict(saved[3 if rank == 0 else 1])
            found[f"{way}: {case}"] = said(lambda second=second: second.step(rank, 4))
    return found


def _copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_copied(each) for each in state]
    return state.clone() if isinstance(state, Tensor) else state


@pytest.mark.parametrize("workers", [2, 3])
def test_states_of_different_steps_are_refused_on_every_rank(workers: int) -> None:
    every = on_ranks(bad_resumes, workers)
    for found in every:
        for case, text in found.items():
            if case.endswith("same"):
                assert text == "went on", case
            elif "powersgd" not in case or case.endswith("alone"):  # its digest finds other bases by itself
                assert text == every[0][case], case
                assert text.startswith("RanksDisagree: rank 1 "), (case, text)
                assert "load on every rank" in text, case
    first = every[0]
    assert "rank 1 is at CompressedAdam's step 2, rank 0 at 4" in first["adam, dense: others' step"]
    assert "at step 2, rank 0 has a state that was loaded, at step 4" in first["hook: others' step"]
    assert "rank 1 has a state that was not loaded" in first["hook, powersgd: rank 0 alone"]


def other_constants(rank: int, workers: int) -> dict[str, str]:
    del workers
    found = {}
    for name, (ours, theirs) in {
        "lr": ({"lr": 1e-3}, {"lr": 1.0000001e-3}),
        "betas": ({}, {"betas": (0.8, 0.999)}),
        "weight_decay": ({}, {"weight_decay": 0.1}),
        "freeze_after": ({"freeze_after": 3}, {"freeze_after": 4}),
    }.items():
        loop = Loop("adam", **(theirs if rank == 1 else ours))
        found[name] = said(lambda loop=loop: loop.step(rank, 0))
    loop = Loop("adam")
    loop.step(rank, 0)
    loop.kept.param_groups[0]["betas"] = (0.5, 0.9) if rank else (0.9, 0.9)
    found["in mid-run"] = said(lambda: loop.step(rank, 1))
    loop = Loop("adam")
    for step in range(4):  # a schedule, the same everywhere
        loop.kept.param_groups[0]["lr"] = 1e-3 / (1 + step)
        loop.step(rank, step)
    found["schedule"] = "went on"
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_adam_s_own_options_are_compared(workers: int) -> None:
    for found in on_ranks(other_constants, workers):
        assert found.pop("schedule") == "went on"
        assert "betas=(0.5, 0.9)" in found.pop("in mid-run")
        for option, text in found.items():
            assert text.startswith(f"RanksDisagree: rank 1 has {option}="), text


def either_way(rank: int, workers: int) -> dict[str, bool]:
    """A state goes from the hook to the backend and back: the next average is the one without the detour."""
    del workers
    found = {}
    for name, options in {
        "topk": {"ratio": 0.1},
        "split": {"ratio": 0.1, "collective": "split"},
        "momentum": {"ratio": 0.1, "momentum": 0.9},
        "powersgd": {"method": "powersgd"},
        "dense": {"method": "dense"},
    }.items():
        for here, there in (("hook", "backend"), ("backend", "hook")):
            first, second, running = Loop(here, **options), Loop(there, **options), Loop(there, **options)
            for step in range(3):
                first.step(rank, step)
            running.step(rank, 7)
            state = _copied(first.kept.state_dict())
            second.kept.load_state_dict(state)
            running.kept.load_state_dict(state)
            second.kept.state_dict()
            straight, detour, late = (each.step(rank, 3) for each in (first, second, running))
            found[f"{name}, {here} to {there}"] = all(map(torch.equal, straight, detour))
            found[f"{name}, {here} to {there} in mid-run"] = all(map(torch.equal, straight, late))
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_a_hook_s_state_goes_into_a_backend_and_back(workers: int) -> None:
    for found in on_ranks(either_way, workers):
        assert len(found) == 20
        assert all(found.values()), [case for case, same in found.items() if not same]


def alone(rank: int, workers: int, folder: str, case: str) -> tuple[str, float]:
    dist.destroy_process_group()
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/s", rank=rank, world_size=workers, timeout=timedelta(seconds=8)
    )
    model, compressor = Given(), TopKCompressor(0.1)
    backend = DistributedBackend(compressor, ErrorFeedbackBuffer())
    saved: dict[str, Any] = {}
    for step in range(4):
        if step == 3 and rank == 1:
            if case == "freezes":
                model.held[1].requires_grad_(False)
            elif case == "ratio":
                compressor.ratio = 0.5
            else:
                backend.load_state_dict(saved)
        model.zero_grad()
        model(gradients(model, rank, step)).backward()
        begin = time.monotonic()
        text = said(lambda: backend.allreduce_gradients(model))
        saved = _copied(backend.state_dict())
    seconds = time.monotonic() - begin
    time.sleep(max(0.0, 9 - seconds))  # whoever leaves first closes the others' connections
    return text, seconds


@pytest.mark.parametrize(("case", "workers"), [("freezes", 2), ("ratio", 2), ("loads", 2)])
def test_a_rank_that_changes_something_alone_is_told_so_in_time(
    case: str, workers: int, tmp_path: Any
) -> None:
    found = on_ranks(alone, workers, str(tmp_path), case)
    for rank, (text, seconds) in enumerate(found):
        if rank == 1:
            assert text.startswith("RankTimeout: rank 0 did not come"), text
        else:
            assert text.startswith(
                "ExchangeFailed: the exchange of method topk (gather) waited for rank 1"
            ), text
        assert "froze a parameter, changed an option (such as compressor.ratio) or loaded a state" in text
        assert 7 < seconds < 15  # one timeout, not two


def under_ddp(rank: int, workers: int) -> dict[str, str]:
    del workers
    found = {}
    for overlap in (False, True):
        loop = Loop("hook", ratio=0.1, overlap=overlap)
        loop.step(rank, 0)
        loop.model.held[2].requires_grad_(False)
        found[f"frozen, {overlap}"] = said(lambda loop=loop: loop.step(rank, 1))
        model = Given()
        model.held[2].requires_grad_(False)
        loop = Loop("hook", model, ratio=0.1, overlap=overlap)
        loop.step(rank, 0)
        model.held[2].requires_grad_(True)
        found[f"unfrozen, {overlap}"] = said(lambda loop=loop: loop.step(rank, 1))
        other = DistributedDataParallel(Given())
        other.register_comm_hook(HookState(Given(), ratio=0.1, overlap=overlap), method_hook)
        found[f"another, {overlap}"] = said(
            lambda other=other: other(gradients(other.module, rank, 0)).backward()
        )
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_a_parameter_that_ddp_was_not_made_for_is_named(workers: int) -> None:
    for found in on_ranks(under_ddp, workers):
        for case, text in found.items():
            if case.startswith("another"):
                assert "it is another model's" in text, text
            else:
                assert f"held.2 was {case.split(',')[0]} after DDP was made" in text, text
                assert "wrap the model in DDP anew" in text
