"""Loops of a user's own around a hook: layers that nobody uses, several models, gradients that are not cleared."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp import CorrectedSGD, DistributedBackend, HookState, TopKState, method_hook, topk_hook
from netsim_ddp.errors import UsageError
from tests.distributed.ranks import on_ranks

SHAPES = ((13, 9), (9,), (0,), (5, 3, 2), (1,))
TINY_MB = 0.0002


class Given(nn.Module):
    """A model whose parameters have the gradients that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in SHAPES])

    def forward(self, gradients: list[Tensor], used: list[int]) -> Tensor:
        return torch.stack([(self.all[i] * gradients[i]).sum() for i in used]).sum()


def gradients(rank: int, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


ALL = list(range(len(SHAPES)))
ZEROS = [torch.zeros(shape) for shape in SHAPES]
WAYS = [(False, True), (False, False), (True, False)]
"""gradient_as_bucket_view, and zero_grad's set_to_none."""
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("topk", {"ratio": 0.05, "collective": "allgather"}),
    ("topk", {"ratio": 0.05, "collective": "split", "overlap": True}),
    ("powersgd", {"min_compression": 1.0}),
]


def lost(rank: int, workers: int) -> dict[str, float]:
    """By way: the largest entry of what was owed and has not come once all is flushed."""
    found = {}
    for number, (method, options) in enumerate(METHODS):
        view, none = WAYS[(number + workers) % len(WAYS)]
        model = Given()
        ddp = DistributedDataParallel(
            model, bucket_cap_mb=TINY_MB, find_unused_parameters=True, gradient_as_bucket_view=view
        )
        ddp.register_comm_hook(HookState(ddp, method, **options), method_hook)
        came, owed = [[torch.zeros(shape) for shape in SHAPES] for _ in range(2)]
        for step in range(70):
            # Layers 0 and 3 are used by all or by nobody, layer 1 by one rank or by nobody.
            everybody = [2, 4] if step % 2 and step < 20 else [0, 2, 3, 4]
            used = [everybody + [1] * (step % 3 == 0 and each == 0) for each in range(workers)]
            ddp.zero_grad(set_to_none=none)
            ddp(gradients(rank, step) if step < 12 else ZEROS, used[rank] if step < 20 else ALL).backward()
            for total, parameter in zip(came, model.all, strict=True):
                if parameter.grad is not None:
                    total.add_(parameter.grad)
            for each in range(workers) if step < 12 else ():
                for i in used[each]:
                    owed[i] += gradients(each, step)[i] / workers
        way = f"{method} {options} view={view} none={none}"
        found[way] = max(float((a - b).abs().max()) for a, b in zip(came, owed, strict=True) if a.numel())
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_a_layer_that_no_rank_uses_loses_nothing(workers: int) -> None:
    for found in on_ranks(lost, workers):
        assert len(found) == len(METHODS)
        for way, error in found.items():
            assert error < 1e-4, way


def said(call: Any) -> str:
    try:
        call()
    except (UsageError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "taken"


def several(rank: int, workers: int) -> dict[str, list[str]]:
    del workers
    found = {}
    for overlap in (False, True):
        models = Given(), Given()
        ddps = [DistributedDataParallel(model, bucket_cap_mb=TINY_MB) for model in models]
        named = [*models[0].named_parameters(prefix="g"), *models[1].named_parameters(prefix="d")]
        for way in ("shared", "one each"):
            shared = HookState(named, ratio=0.1, overlap=overlap)
            fresh = [DistributedDataParallel(copy.deepcopy(model)) for model in models]
            for ddp in ddps if way == "shared" else fresh:
                state = shared if way == "shared" else HookState(ddp, ratio=0.1, overlap=overlap)
                ddp.register_comm_hook(state, method_hook)
            found[f"{way} {overlap}"] = [
                said(lambda ddp=ddp: ddp(gradients(rank, 0), ALL).backward())
                for ddp in (ddps if way == "shared" else fresh)
            ]
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_a_state_serves_one_ddp_model(workers: int) -> None:
    for found in on_ranks(several, workers):
        for overlap in (False, True):
            first, second = found[f"shared {overlap}"]
            assert first == "taken"
            assert "UsageError" in second
            assert "serves several DDP models" in second
            assert "make one HookState for each DDP model" in second
            assert found[f"one each {overlap}"] == ["taken", "taken"]


def uncleared(rank: int, workers: int) -> dict[str, str]:
    del workers
    found = {}
    for view, momentum in itertools.product((False, True), (0.0, 0.9)):
        ddp = DistributedDataParallel(Given(), gradient_as_bucket_view=view)
        ddp.register_comm_hook(HookState(ddp, ratio=0.5, momentum=momentum), method_hook)

        def step(number: int, ddp: DistributedDataParallel = ddp) -> None:
            ddp(gradients(rank, number), ALL).backward()

        def cleared(none: bool, ddp: DistributedDataParallel = ddp, step: Any = step) -> None:
            for number in range(3):
                output = ddp(gradients(rank, number), ALL)
                ddp.zero_grad(set_to_none=none)
                output.backward()
            ddp.zero_grad(set_to_none=none)
            with ddp.no_sync():
                step(0)
                step(1)
            step(2)

        way = f"view={view} momentum={momentum}"
        found[f"{way} none"] = said(lambda cleared=cleared: cleared(True))
        found[f"{way} zeros"] = said(lambda cleared=cleared: cleared(False))
        found[f"{way} uncleared"] = said(lambda step=step: step(3))
    model = Given()
    backend = DistributedBackend(method="topk", params={"ratio": 0.5, "momentum": 0.9})
    for way in ("first", "uncleared"):
        found[f"backend {way}"] = said(lambda: model(gradients(rank, 0), ALL).backward())
        if way == "first":
            backend.allreduce_gradients(model)
    model.zero_grad()
    found["backend cleared"] = said(lambda: model(gradients(rank, 0), ALL).backward())
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_momentum_refuses_to_take_its_own_average_in_again(workers: int) -> None:
    for found in on_ranks(uncleared, workers):
        for way, what in found.items():
            if "uncleared" in way and "momentum=0.0" not in way:
                assert "adds to the average of the step before" in what, way
                assert ("exchange once" if "backend" in way else "ddp.no_sync()") in what
            else:
                assert what == "taken", way


def momenta(rank: int, workers: int) -> dict[str, Any]:
    del workers
    found: dict[str, Any] = {}
    for momentum in (0.0, 0.5, 0.9):
        model = Given()
        backend = DistributedBackend(method="topk", params={"momentum": momentum})
        model(gradients(rank, 0), ALL).backward()
        backend.allreduce_gradients(model)
        found[f"corrected {momentum}"] = said(CorrectedSGD(model.parameters(), momentum=0.9).step)
        for name, optimizer in {
            "plain": torch.optim.SGD(model.parameters(), lr=0.1),
            "second": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            "corrected": CorrectedSGD(model.parameters(), momentum=momentum),
        }.items():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                optimizer.step()
                optimizer.step()
            found[f"{name} {momentum} warned"] = [str(each.message) for each in caught]
    return found


def test_an_optimizers_momentum_must_fit_the_exchange() -> None:
    for found in on_ranks(momenta, 2):
        assert "the backend's here carry no momentum" in found["corrected 0.0"]
        assert "carry a momentum of 0.5" in found["corrected 0.5"]
        assert found["corrected 0.9"] == "taken"
        for key, warned in found.items():
            if key.endswith("warned"):
                assert len(warned) == (key in ("second 0.5 warned", "second 0.9 warned")), key
                assert all("applied twice" in each for each in warned)


def small(rank: int, workers: int) -> list[str]:
    del workers
    model = Given()
    found = [said(lambda: HookState(model, masking="on"))]
    for state, hook in (
        (HookState(model, "powersgd"), topk_hook),
        (copy.deepcopy(TopKState(model)), topk_hook),
    ):
        ddp = DistributedDataParallel(model)
        ddp.register_comm_hook(state, hook)
        found.append(said(lambda ddp=ddp: ddp(gradients(rank, 0), ALL).backward()))
    return found


def test_what_does_not_fit_a_hook_is_named() -> None:
    for masking, powersgd, copied in on_ranks(small, 2):
        assert "there is none without momentum" in masking
        assert "topk_hook has got a state of the method 'powersgd'" in powersgd
        assert "unpickled or deep-copied: call state.bind(" in copied
