"""A step in which one rank's gradient, or a sum, is not finite: every rank refuses it, no rank's state has changed, and
the next step is what it would have been. Whatever the bucket, the rank, the method and the way of going there."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp import DistributedBackend, HookState, method_hook
from netsim_ddp.communication import executor
from netsim_ddp.compression.kernels import NonFiniteGradient
from tests.distributed.ranks import on_ranks
from tests.distributed.test_scaling import Linear, digest, gradients

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "split": ("topk", {"collective": "split", "momentum": 0.9, "values": "int8-stochastic"}),
    "split, skip": ("topk", {"collective": "split", "nonfinite": "skip"}),
    "split, sends every sum": ("topk", {"collective": "split", "keep": False, "values": "fp16"}),
    "split, fitted, no feedback": ("topk", {"collective": "split", "selector": "fitted", "feedback": False}),
    "all-gather": ("topk-allgather", {"adaptive": True, "warmup_steps": 3}),
    "all-gather, skip": ("topk-allgather", {"nonfinite": "skip", "momentum": 0.9}),
    "topk-dense": ("topk-dense", {}),
    "topk-dense, skip": ("topk-dense", {"nonfinite": "skip"}),
    "powersgd": ("powersgd", {"rank": 2, "min_compression": 1.0}),
    "dense": ("dense", {}),
    "fp16": ("fp16", {}),
    "bf16": ("bf16", {}),
}
PASSED_ON = ("dense", "fp16", "bf16")

NAN, INF = float("nan"), float("inf")
FAULTS: dict[str, dict[tuple[int, str], float]] = {
    "a NaN in the last bucket": {(-1, "wide"): NAN},
    "an inf in the first bucket": {(0, "scalar"): INF},
    "a NaN everywhere": {(rank, name): NAN for rank in (0, 1, -1) for name in ("wide", "tall", "scalar")},
    "two ranks, two buckets": {(0, "wide"): -INF, (1, "vector"): NAN},
}
"""By rank and parameter, what stands at its first entry. DDP's buckets go from the last parameter to the first."""
BAD_STEP, STEPS = 2, 4


def faulty(rank: int, workers: int, step: int, fault: str) -> dict[str, Tensor]:
    found = {name: value.nan_to_num(posinf=1.0) for name, value in gradients(rank, step).items()}
    for (who, name), value in FAULTS[fault].items():
        if step == BAD_STEP and who % workers == rank:
            found[name].view(-1)[0] = value
    return found


class Sometimes(Linear):
    """A parameter that only some ranks use."""

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        used = [name for name in inputs if name != "vector" or bool(inputs["one"] > 0.5)]
        return torch.stack([(self.weights[name] * inputs[name]).sum() for name in used]).sum()


def played(
    rank: int, workers: int, case: str, fault: str | None, way: str, *, overlap: bool
) -> dict[str, Any]:
    """Three good steps, and with a ``fault`` one that is not finite among them."""
    name, params = METHODS[case]
    if name.startswith("topk"):
        params = {"ratio": 0.05, **params}
    model = Sometimes() if way == "unused" else Linear()
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.001, find_unused_parameters=way == "unused")
    state = HookState(ddp.named_parameters(), name, overlap=overlap, scaler=None, **params)
    ddp.register_comm_hook(state, method_hook)
    found: dict[str, Any] = {"parts": len(state._methods), "gradients": []}
    for step in range(STEPS):
        if fault is None and step == BAD_STEP:
            continue
        ddp.zero_grad()
        inputs = faulty(rank, workers, step, fault or "a NaN in the last bucket")
        before = digest(state._methods)
        if way == "accumulated":
            with ddp.no_sync():
                ddp(inputs).backward()
        ddp(inputs).backward()
        flat = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
        found["gradients"].append(flat)
        if step == BAD_STEP:
            found["void"] = digest(state._methods) == before
            found["skipped"] = state.skipped
    return found


def every_fault(rank: int, workers: int, way: str, overlap: bool) -> dict[str, Any]:
    """What went wrong, by case and fault."""
    executor.DDP_FIRST_BUCKET_BYTES, executor.DDP_BUCKET_BYTES = 400, 1500
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for case in METHODS if way == "plain" else ("split", "all-gather, skip", "powersgd"):
        good = played(rank, workers, case, None, way, overlap=overlap)
        for fault in FAULTS:
            bad = played(rank, workers, case, fault, way, overlap=overlap)
            refused, after = bad["gradients"][BAD_STEP], bad["gradients"][BAD_STEP + 1]
            problems = []
            if bad["parts"] != (3 if overlap else 1):
                problems.append(f"{bad['parts']} exchanges")
            if not torch.equal(after, good["gradients"][-1]):
                problems.append("the next step is another")
            if not bad["void"]:
                problems.append("the state has changed")
            expected = 0.0 if "skip" in case else NAN
            if case not in PASSED_ON and not torch.equal(
                refused.nan_to_num(7.0), torch.full_like(refused, expected).nan_to_num(7.0)
            ):
                problems.append("not every gradient says so")
            if case in PASSED_ON and bool(refused.isfinite().all()):
                problems.append("passed over in silence")
            if bad["skipped"] != ("skip" in case):
                problems.append(f"skipped is {bad['skipped']}")
            found[f"{case}, {fault}"] = problems, refused.nan_to_num(7.0).tolist()
    return found


@pytest.mark.parametrize(
    ("workers", "way", "overlap"),
    [
        (2, "plain", True),
        (3, "plain", False),
        (4, "plain", False),
        (3, "accumulated", True),
        (3, "unused", True),
    ],
)
def test_a_refused_step_has_never_been(workers: int, way: str, overlap: bool) -> None:
    answers = on_ranks(every_fault, workers, way, overlap)
    for answer in answers:
        assert {case: problems for case, (problems, _) in answer.items() if problems} == {}
        assert all(given == answers[0][case][1] for case, (_, given) in answer.items())


BEYOND: dict[str, tuple[str, dict[str, Any]]] = {
    "split": ("topk", {"ratio": 0.1, "collective": "split"}),
    "split, sends every sum": ("topk", {"ratio": 0.1, "collective": "split", "keep": False}),
    "split, skip": ("topk", {"ratio": 0.1, "collective": "split", "nonfinite": "skip"}),
    "topk-dense": ("topk-dense", {"ratio": 0.1}),
    "powersgd": ("powersgd", {"rank": 2, "min_compression": 1.0}),
    "dense": ("dense", {}),
}


def sums_beyond(rank: int, workers: int) -> dict[str, Any]:
    """Finite gradients whose sum is not, by the backend; for PowerSGD whose second factor is not."""
    found: dict[str, Any] = {}
    for case, (name, params) in BEYOND.items():
        backends = [DistributedBackend(method=name, params=params, scaler=None) for _ in range(2)]
        weight = nn.Parameter(torch.zeros(40, 30))
        said, last = "", []
        for backend in backends:
            for step in range(4):
                weight.grad = torch.randn(40, 30, generator=torch.Generator().manual_seed(10 * step + rank))
                if step == 2:
                    if backend is backends[1]:
                        continue
                    if name == "powersgd":
                        weight.grad[:, 4] = 2.5e38 / workers
                    else:
                        weight.grad[3, 4] = 3e38
                    assert backend.method is not None
                    before = digest([backend.method])
                with contextlib.suppress(NonFiniteGradient) if step == 2 else contextlib.nullcontext():
                    said = "returned"
                    said = str(backend.allreduce_gradients([("weight", weight)]))
                if step == 2:
                    assert backend.method is not None
                    found[case] = said, digest([backend.method]) == before
            last.append(weight.grad)
        found[case] += (torch.equal(*last), last[0].isfinite().all().item())
    return found


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_a_sum_that_overflows_is_refused_by_all(workers: int) -> None:
    for answer in on_ranks(sums_beyond, workers):
        for case, found in answer.items():
            said = {"dense": "True", "split, skip": "False"}.get(case, "returned")
            assert found == (said, True, True, True), case


def fewer_entries_than_ranks(rank: int, workers: int) -> list[str]:
    """One parameter of one entry, and a NaN on the last rank."""
    said = []
    for name in ("topk", "topk-allgather", "topk-dense", "powersgd"):
        options = {} if name == "powersgd" else {"ratio": 0.5}
        backend = DistributedBackend(method=name, params=options, scaler=None)
        weight = nn.Parameter(torch.zeros(1))
        for step in range(3):
            weight.grad = torch.full((1,), NAN if step == 1 and rank == workers - 1 else float(step))
            try:
                backend.allreduce_gradients([("weight", weight)])
                said.append(f"{float(weight.grad):g}")
            except NonFiniteGradient:
                said.append("refused")
    return said


def test_a_model_of_fewer_entries_than_ranks() -> None:
    for answer in on_ranks(fewer_entries_than_ranks, 3):
        assert answer == ["0", "refused", "2"] * 4
