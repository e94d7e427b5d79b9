"""Under a GradScaler nothing that is kept depends on the scale, and a step that overflows has never been."""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp import CompressedAdam, DistributedBackend, HookState, method_hook
from netsim_ddp.communication import executor
from netsim_ddp.communication.segments import Method
from netsim_ddp.errors import UsageError
from tests.distributed.ranks import on_ranks

SHAPES = {"wide": (37, 20), "tall": (90, 6), "vector": (301,), "one": (1,), "scalar": ()}
STEPS = 200
MOMENTUM, CLIP = 0.5, 20.0

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "split": ("topk", {"ratio": 0.05, "collective": "split", "nonfinite": "skip"}),
    "all-gather": ("topk-allgather", {"ratio": 0.05}),
    "corrected": (
        "topk",
        {
            "ratio": 0.05,
            "collective": "split",
            "values": "fp16",
            "momentum": MOMENTUM,
            "clip": CLIP,
            "masking": "off",
        },
    ),
    "powersgd": ("powersgd", {"rank": 2, "min_compression": 1.0}),
}
"""``nonfinite`` makes no difference under a scaler."""


class Linear(nn.Module):
    """A model whose gradient is its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({name: torch.zeros(shape) for name, shape in SHAPES.items()})

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return torch.stack([(self.weights[name] * inputs[name]).sum() for name in SHAPES]).sum()


def gradients(rank: int, step: int) -> dict[str, Tensor]:
    """With a mean that is not zero, and on one rank an inf now and then."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    found = {name: torch.randn(shape, generator=generator) + 0.5 for name, shape in SHAPES.items()}
    if step % 61 == 40 and rank == step % 2:
        found["tall"][3, 2] = torch.inf
    return found


def pending(methods: list[Method]) -> dict[str, Tensor]:
    """The mean over ranks of what is kept back, owners' sums included, by parameter."""
    found = {}
    for method in methods:
        residual = method.residual.double().clone()  # type: ignore[attr-defined] # all of these have one
        if (sums := getattr(method, "sums", None)) is not None:
            positions = method.shares.positions(method.group.rank, torch.arange(sums.numel()))  # type: ignore[attr-defined]
            residual[positions] += sums.double()
        dist.all_reduce(residual)
        views = method.flat.views_of(residual / method.group.world_size)
        found |= dict(zip(parameters(method), views, strict=True))
    return found


def parameters(method: Method) -> list[str]:
    return [name.removeprefix("weights.") for name in method.flat.names]


def digest(methods: list[Method]) -> str:
    hashed = hashlib.sha256()

    def add_all(state: Any) -> None:
        if isinstance(state, dict):
            for key, value in state.items():
                hashed.update(str(key).encode())
                add_all(value)
        else:
            hashed.update(state.numpy().tobytes() if isinstance(state, Tensor) else str(state).encode())

    for method in methods:
        add_all(method.state_dict())
    return hashed.hexdigest()


def trained(rank: int, workers: int, case: str, way: str, scaler_options: dict[str, Any]) -> dict[str, Any]:
    executor.DDP_FIRST_BUCKET_BYTES, executor.DDP_BUCKET_BYTES = 400, 1500
    name, params = METHODS[case]
    model = Linear()
    scaler = torch.amp.GradScaler("cpu", **scaler_options)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    if way == "backend":
        run: nn.Module = model
        backend = DistributedBackend(method=name, params=params, scaler=scaler)
    else:
        run = DistributedDataParallel(model, bucket_cap_mb=0.001)
        state = HookState(
            run.named_parameters(), name, overlap=way == "hook, overlapped", scaler=scaler, **params
        )
        run.register_comm_hook(state, method_hook)
    owed = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    velocity = {name: torch.zeros_like(value) for name, value in owed.items()}
    found: dict[str, Any] = {"scales": [], "changed": 0, "refused": 0, "parts": 0}
    for step in range(STEPS):
        optimizer.zero_grad()
        scaler.scale(run(gradients(rank, step))).backward()
        methods = ([backend.method] if backend.method else []) if way == "backend" else state._methods
        before = digest(methods)
        if way == "backend":
            backend.allreduce_gradients(model.named_parameters())
            assert backend.method is not None
            methods = [backend.method]
        finite = all(bool(p.grad.isfinite().all()) for p in model.parameters())  # type: ignore[union-attr]
        if finite:
            add(
                owed,
                velocity,
                workers,
                step,
                [parameters(each) for each in methods] if case == "corrected" else [],
            )
        else:
            assert all(bool(p.grad.isnan().all()) for p in model.parameters())  # type: ignore[union-attr]
            found["refused"] += 1
            found["changed"] += step > 0 and digest(methods) != before
        scaler.step(optimizer)
        scaler.update()
        found["scales"].append(scaler.get_scale())
    kept = pending(methods)
    found["parts"] = len(methods)
    found["errors"] = {
        name: float(
            (kept[name] - model.weights[name].detach().double() - owed[name]).norm() / owed[name].norm()
        )
        for name in SHAPES
    }
    found["applied"] = {
        name: float(model.weights[name].detach().norm() / owed[name].norm()) for name in SHAPES
    }
    found["weights"] = [model.weights[name].tolist() for name in SHAPES]
    return found


def add(
    owed: dict[str, Tensor], velocity: dict[str, Tensor], workers: int, step: int, clipped: list[list[str]]
) -> None:
    """One step that was taken: the mean of the ranks' gradients, or of their momenta after each of the groups of
    parameters was ``clipped``."""
    for rank in range(workers):
        each = {name: value.double() for name, value in gradients(rank, step).items()}
        for names in clipped:
            norm = float(torch.cat([each[name].reshape(-1) for name in names]).norm())
            each |= {name: each[name] * min(1.0, CLIP / workers**0.5 / norm) for name in names}
        for name, value in each.items():
            velocity[name] = velocity[name] + value / workers
    for name in owed:
        owed[name] += velocity[name]
        velocity[name] = velocity[name] * (MOMENTUM if clipped else 0.0)


SCALES: dict[str, dict[str, Any]] = {
    "growing": {"init_scale": 4.0, "growth_interval": 9, "backoff_factor": 0.25},
    "near the end of float32": {"init_scale": 2.0**122, "growth_interval": 5},
    "by thirds": {"init_scale": 3.0, "growth_interval": 20, "growth_factor": 3.0, "backoff_factor": 1 / 3},
}


@pytest.mark.parametrize(
    ("workers", "case", "scales", "way"),
    [
        (2, "split", "growing", "hook"),
        (2, "all-gather", "growing", "backend"),
        (2, "corrected", "growing", "backend"),
        (2, "corrected", "growing", "hook, overlapped"),
        (2, "powersgd", "growing", "hook"),
        (2, "split", "near the end of float32", "backend"),
        (3, "split", "by thirds", "hook, overlapped"),
        (3, "all-gather", "growing", "hook"),
    ],
)
def test_what_was_applied_and_what_is_pending_is_what_was_owed(
    workers: int, case: str, scales: str, way: str
) -> None:
    answers = on_ranks(trained, workers, case, way, SCALES[scales])
    for answer in answers:
        assert answer["weights"] == answers[0]["weights"]
        assert answer["scales"] == answers[0]["scales"]
        assert answer["refused"] >= 3
        assert answer["changed"] == 0
        assert len(set(answer["scales"])) >= 4, "the scale grew and came down"
        assert answer["parts"] == 1 or way == "hook, overlapped"
        assert answer["parts"] > 2 or way != "hook, overlapped"
        for name in SHAPES:
            assert answer["errors"][name] < 1e-3, (name, answer["errors"][name])
            assert answer["applied"][name] > 0.01, name


def found_by_itself(rank: int, workers: int) -> dict[str, Any]:
    """Without a word, with one scaler that has scaled a loss, with two, and with one that is named."""
    del rank, workers
    found: dict[str, Any] = {}
    for way in ("backend", "hook"):
        for scalers in (0, 1, 2):
            living = [torch.amp.GradScaler("cpu", init_scale=8.0 + each) for each in range(scalers)]
            idle = [torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu", enabled=False)]
            for scaler in living:
                scaler.scale(torch.ones(1))
            for named in (False, True):
                options = {"scaler": living[0]} if named and living else {}
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    try:
                        residual = one_step(way, options, living[0] if living else None)
                    except UsageError as error:
                        residual = f"{error}; {error.hint}"
                told = [str(each.message) for each in said if "GradScaler" in str(each.message)]
                found[f"{way}, {scalers}, {'named' if named else 'not named'}"] = residual, told
            scaler = None
            del idle, living
    return found


def one_step(way: str, options: dict[str, Any], scaler: Any) -> float:
    """The sum of what is kept back after one step whose gradient is 1 everywhere."""
    model = Linear()
    run: nn.Module = model
    if way == "hook":
        run = DistributedDataParallel(model)
        state = HookState(run.named_parameters(), "topk-allgather", ratio=0.5, **options)
        run.register_comm_hook(state, method_hook)
    loss = run({name: torch.ones(shape) for name, shape in SHAPES.items()})
    (loss if scaler is None else scaler.scale(loss)).backward()
    if way == "hook":
        method = state._methods[0]
    else:
        backend = DistributedBackend(method="topk-allgather", params={"ratio": 0.5}, **options)
        backend.allreduce_gradients(model.named_parameters())
        assert backend.method is not None
        method = backend.method
    sent = {float(value) for p in model.parameters() if p.grad is not None for value in p.grad.reshape(-1)}
    assert sent == {0.0, 1.0 if scaler is None else scaler.get_scale()}
    return float(method.residual.sum())  # type: ignore[attr-defined]


def test_the_only_scaler_in_use_is_found_and_several_are_asked_about() -> None:
    for answer in on_ranks(found_by_itself, 2):
        rest = 1582 - sum(-(-n // 2) for n in (740, 540, 301, 1, 1))
        for way in ("backend", "hook"):
            for case in ("0, not named", "0, named", "1, named", "2, named"):
                kept, told = answer[f"{way}, {case}"]
                assert kept == pytest.approx(rest + 1)
                assert not told
            kept, told = answer[f"{way}, 1, not named"]
            assert kept == pytest.approx(rest + 1)
            assert len(told) == 1
            assert "scaler=my_scaler" in told[0]
            kept, _ = answer[f"{way}, 2, not named"]
            assert "2 GradScalers are in use" in str(kept)
            assert "scaler=my_scaler" in str(kept)


def ordinary_loop(rank: int, workers: int) -> dict[str, Any]:
    """unscale_, clipping and accumulation by the user, as torch's documentation has them."""
    del workers
    found: dict[str, Any] = {}
    for way in ("backend", "hook"):
        results = []
        for scale in (None, 1024.0):
            model = Linear()
            scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            run: nn.Module = model
            options: dict[str, Any] = {"ratio": 0.1, "collective": "split"}
            backend = DistributedBackend(method="topk", params=options, scaler=scaler)
            if way == "hook":
                run = DistributedDataParallel(model)
                run.register_comm_hook(
                    HookState(run.named_parameters(), "topk", scaler=scaler, **options), method_hook
                )
            for step in range(6):
                optimizer.zero_grad()
                if isinstance(run, DistributedDataParallel):
                    with run.no_sync():
                        scaler.scale(run(gradients(rank, 2 * step))).backward()
                else:
                    scaler.scale(run(gradients(rank, 2 * step))).backward()
                scaler.scale(run(gradients(rank, 2 * step + 1))).backward()
                if way == "backend":
                    assert backend.allreduce_gradients(model.named_parameters())
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 3.0)
                scaler.step(optimizer)
                scaler.update()
            results.append([model.weights[name].tolist() for name in SHAPES])
        found[way] = results
    model, scaler = Linear(), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    other = torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.5)
    backend = DistributedBackend(method="topk", scaler=scaler)
    scaler.scale(model(gradients(rank, 0))).backward()
    scaler.unscale_(other)
    found["another optimizer's"] = backend.allreduce_gradients(model.named_parameters())
    scaler.unscale_(optimizer)
    with pytest.raises(UsageError) as refusal:
        backend.allreduce_gradients(model.named_parameters())
    found["unscaled already"] = str(refusal.value.hint)
    return found


def test_the_users_unscale_clip_and_accumulation_work_as_without_a_scale() -> None:
    for answer in on_ranks(ordinary_loop, 2):
        for way in ("backend", "hook"):
            plain, scaled = answer[way]
            assert plain == scaled  # the scale is a power of two
        assert answer["another optimizer's"] is True
        assert "between backward() and scaler.unscale_" in answer["unscaled already"]


def scaled_adam(rank: int, workers: int) -> dict[str, Any]:
    """Dense and compressed steps; rank 0's gradient overflows in one of each."""
    del workers
    found: dict[str, Any] = {}
    for way in ("no scale", "step", "unscale_ and step"):
        model = Linear()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** (10 + rank), enabled=way != "no scale")
        options: dict[str, Any] = {"ratio": 0.1, "nonfinite": "skip"}
        optimizer = CompressedAdam(model.named_parameters(), lr=0.01, freeze_after=5, params=options)
        for step in range(12):
            optimizer.zero_grad()
            inputs = gradients(rank, step)
            if step in (3, 9) and rank == 0:
                inputs["tall"][1, 1] = torch.nan
            scaler.scale(model(inputs)).backward()
            if way == "unscale_ and step":
                scaler.unscale_(optimizer)
            before = [parameter.detach().clone() for parameter in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
            if step in (3, 9):
                assert all(map(torch.equal, before, model.parameters()))
        found[way] = [model.weights[name].tolist() for name in SHAPES]
        found[f"{way}, scale"] = scaler.get_scale()
    return found


def test_compressed_adam_takes_the_same_steps_under_a_scaler() -> None:
    for rank, answer in enumerate(on_ranks(scaled_adam, 2)):
        assert answer["step"] == answer["unscale_ and step"] == answer["no scale"]
        assert answer["step, scale"] == (2.0**8 if rank == 0 else 2.0**11)


def test_what_is_no_scaler_is_refused() -> None:
    with pytest.raises(UsageError, match="is not a torch"):
        DistributedBackend(method="topk", scaler=1024.0)  # type: ignore[arg-type]
