"""What is pending goes on by name: when the parameters change, and when a state is loaded into something else."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from netsim_ddp import (
    CompressedAdam,
    DistributedBackend,
    ErrorFeedbackBuffer,
    HookState,
    TopKCompressor,
    for_other_ranks,
    method_hook,
)
from netsim_ddp.training.residuals import pending_gradient
from tests.distributed.ranks import on_ranks

Named = list[tuple[str, nn.Parameter]]
SHAPES = {"a": (30, 17), "b": (17,), "c": (9, 40), "d": (), "e": (0,), "f": (23,)}

BACKENDS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "compressor": (None, {}),
    "split": ("topk", {"ratio": 0.1, "collective": "split"}),
    "split, fp16": ("topk", {"ratio": 0.1, "collective": "split", "values": "fp16"}),
    "allgather": ("topk-allgather", {"ratio": 0.1}),
    "adaptive": ("topk-allgather", {"ratio": 0.1, "adaptive": True}),
    "momentum": ("topk-allgather", {"ratio": 0.1, "momentum": 0.5}),
    "dense sum": ("topk-dense", {"ratio": 0.1}),
    "powersgd": ("powersgd", {"rank": 1, "min_compression": 1.0}),
}


def parameters(names: Iterable[str] = SHAPES) -> Named:
    return [(name, nn.Parameter(torch.zeros(SHAPES[name]))) for name in names]


def gradient(name: str, step: int, rank: int) -> Tensor:
    seed = 1000 * step + 10 * list(SHAPES).index(name) + rank
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(seed))


def made(way: str) -> DistributedBackend:
    method, params = BACKENDS[way]
    if method is None:
        return DistributedBackend(TopKCompressor(0.1), ErrorFeedbackBuffer())
    return DistributedBackend(method=method, params=params)


class Ledger:
    """What the ranks owe each parameter, and what was applied."""

    def __init__(self, rank: int, workers: int) -> None:
        self.rank, self.workers = rank, workers
        self.owed: dict[str, Tensor] = {}
        self.applied: dict[str, Tensor] = {}

    def step(self, backend: DistributedBackend, named: Named, step: int) -> None:
        for name, parameter in named:
            parameter.grad = None
            if parameter.requires_grad:
                parameter.grad = gradient(name, step, self.rank)
                mean = sum(gradient(name, step, rank) for rank in range(self.workers)) / self.workers
                self.owed[name] = self.owed.get(name, torch.zeros(())) + mean
        assert backend.allreduce_gradients(named)
        for name, parameter in named:
            if parameter.grad is not None:
                self.applied[name] = self.applied.get(name, torch.zeros(())) + parameter.grad

    def worst(self, backend: DistributedBackend) -> float:
        """The largest relative difference between applied + pending and what was owed."""
        pending = everything_pending(backend.state_dict())
        worst = 0.0
        for name, owed in self.owed.items():
            found = self.applied[name] + pending.get(name, torch.zeros(owed.shape))
            worst = max(worst, float((found - owed).norm() / max(float(owed.norm()), 1e-12)))
        return worst


def everything_pending(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """By name, over all ranks, parked or not."""
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, state)
    found = pending_gradient(states)
    for name in states[0].get("parked", {}).get("error_buffer", {}):
        tensors = [each["parked"]["error_buffer"][name] for each in states]
        found[name] = torch.stack(tensors).mean(dim=0)
    return found


def same_everywhere(named: Named) -> bool:
    mine = torch.cat([p.grad.reshape(-1) for _, p in named if p.grad is not None])
    theirs = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(theirs, mine)
    return all(torch.equal(mine, each) for each in theirs)


def changing(rank: int, workers: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for way in BACKENDS:
        if way == "momentum":
            continue  # owes more than gradients; its velocity is looked at below
        backend, ledger, named = made(way), Ledger(rank, workers), parameters("abcdef")
        for name, parameter in named:
            parameter.requires_grad_(name not in "ac")
        step, same = 0, True

        def steps(given: Named) -> None:
            nonlocal step, same
            for _ in range(3):
                ledger.step(backend, given, step)  # noqa: B023
                same, step = same and same_everywhere(given), step + 1

        steps(named)
        for _, parameter in named:
            parameter.requires_grad_(True)  # unfrozen
        steps(named)
        steps(named[::-1])
        dict(named)["b"].requires_grad_(False)  # frozen: what is pending waits
        steps(named)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            steps([pair for pair in named if pair[0] != "c"])  # gone
        texts = [str(each.message) for each in said if "no longer among" in str(each.message)]
        kept = ledger.worst(backend)
        dict(named)["b"].requires_grad_(True)
        steps(named)
        found[way] = kept, ledger.worst(backend), same, texts
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_what_is_pending_follows_its_parameter(workers: int) -> None:
    for rank in on_ranks(changing, workers):
        for way, (kept, after, same, texts) in rank.items():
            assert kept < 1e-4, way
            assert after < 1e-4, way
            assert same, way
            assert len(texts) == 1, way
            assert texts[0].startswith("c: no longer among the parameters"), way


def velocities(rank: int, workers: int) -> list[bool]:
    """Velocity, adaptation and the ratio's warm-up go on by name."""
    backend, ledger, named = made("momentum"), Ledger(rank, workers), parameters("abc")
    for step in range(3):
        ledger.step(backend, named, step)
    before = copy.deepcopy(backend.state_dict())
    backend._prepare(parameters_like(named, "cab"))
    after = backend.state_dict()
    return [
        all(torch.equal(before["velocity"][name], after["velocity"][name]) for name in "abc"),
        all(torch.equal(before["error_buffer"][name], after["error_buffer"][name]) for name in "abc"),
        list(after["velocity"]) == list("cab"),
        before["selection"]["budget"]["step"] == after["selection"]["budget"]["step"] == 3,
    ]


def parameters_like(named: Named, order: str) -> Named:
    return [(name, dict(named)[name]) for name in order]


def test_velocities_follow_their_parameters() -> None:
    assert on_ranks(velocities, 2) == [[True] * 4] * 2


def refused(rank: int, workers: int) -> dict[str, Any]:
    """A change that cannot be made; the steps after it are those of a backend that nobody disturbed."""
    found: dict[str, Any] = {}
    for way in BACKENDS:
        named = parameters("abc")
        backend, twin = made(way), made(way)
        ledgers = Ledger(rank, workers), Ledger(rank, workers)
        for step in range(3):
            ledgers[0].step(backend, named, step)
            ledgers[1].step(twin, named, step)
        said = []
        larger = nn.Parameter(torch.zeros(18))
        others = [
            [*named[:1], ("b", larger), *named[2:]],
            [*named, ("a", nn.Parameter(torch.zeros(5)))],
            [*named, ("z", nn.Parameter(torch.zeros(5, dtype=torch.complex64)))],
        ]
        for other in others:
            for _, parameter in other:
                parameter.grad = torch.ones_like(parameter)
            try:
                backend.allreduce_gradients(other)
            except ValueError as error:
                said.append(str(error))
            else:
                said.append("went on")
        same = True
        for step in range(3, 6):
            ledgers[0].step(backend, named, step)
            ours = [p.grad for _, p in named]
            ledgers[1].step(twin, named, step)
            theirs = [p.grad for _, p in named]
            same = same and all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))  # type: ignore[arg-type]
        found[way] = said, same
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_a_refused_change_leaves_a_working_backend(workers: int) -> None:
    for rank in on_ranks(refused, workers):
        for way, ((shape, name, kind), same) in rank.items():
            assert "has a residual of shape (17,)" in shape, way
            assert "(18,)" in shape, way
            assert "two parameters have the name a" in name, way
            assert "parameter z is complex64" in kind, way
            assert same, way


def state_of(named: Named, method: str = "topk", **options: Any) -> HookState:
    return HookState(named, method, **options)


def drive(state: HookState, rank: int, steps: range) -> list[Tensor]:
    """Steps of a DDP that has one bucket; answers the averages by parameter."""
    averages: list[Tensor] = []
    for step in steps:
        averages = [gradient(name, step, rank) for name in state._flat.names]
        state.take(Bucket(state._flat.parameters, averages))  # type: ignore[arg-type]
    return averages


@dataclass
class Bucket:
    """What a hook asks of DDP's only bucket."""

    held: list[Tensor]
    values: list[Tensor]

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True

    def parameters(self) -> list[Tensor]:
        return self.held

    def gradients(self) -> list[Tensor]:
        return self.values

    def buffer(self) -> Tensor:
        return self.values[0]


def pending_of(state: HookState) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for part in state.state_dict()["parts"]:
        found |= everything_pending(part)
    return found


CARRIED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({"ratio": 0.1}, {"ratio": 0.1}),
    "ratio": ({"ratio": 0.5, "collective": "split"}, {"ratio": 0.01, "collective": "split"}),
    "to allgather": ({"ratio": 0.1, "collective": "split"}, {"ratio": 0.1, "collective": "allgather"}),
    "to split": ({"ratio": 0.1, "collective": "allgather"}, {"ratio": 0.1, "collective": "split"}),
    "to another method": ({"ratio": 0.1, "collective": "split"}, {"method": "topk-dense", "ratio": 0.1}),
    "to overlap": ({"ratio": 0.1, "collective": "split"}, {"ratio": 0.1, "overlap": True}),
    "from overlap": (
        {"ratio": 0.1, "collective": "split", "overlap": True},
        {"ratio": 0.1, "collective": "split"},
    ),
    "selector": ({"ratio": 0.1, "selector": "fitted"}, {"ratio": 0.1, "selector": "block"}),
    "values": ({"ratio": 0.1, "values": "fp16"}, {"ratio": 0.1, "values": "int8-stochastic"}),
    "adaptive": ({"ratio": 0.1}, {"ratio": 0.1, "adaptive": True}),
    "not adaptive": ({"ratio": 0.1, "adaptive": True}, {"ratio": 0.1}),
    "scope": ({"ratio": 0.1}, {"ratio": 0.1, "scope": "model"}),
    "feedback on": ({"ratio": 0.1, "feedback": False}, {"ratio": 0.1}),
    "momentum's value": ({"ratio": 0.1, "momentum": 0.9}, {"ratio": 0.1, "momentum": 0.5}),
    "a clip that had a velocity": ({"ratio": 0.1, "clip": 1.0}, {"ratio": 0.1}),
    "rank of powersgd": (
        {"method": "powersgd", "rank": 1, "min_compression": 1.0},
        {"method": "powersgd", "rank": 2, "min_compression": 1.0},
    ),
}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "momentum off": (
        {"ratio": 0.1, "momentum": 0.9},
        {"ratio": 0.1},
        "saved with momentum=0.9, this has none",
    ),
    "momentum on": (
        {"ratio": 0.1},
        {"ratio": 0.1, "momentum": 0.9},
        "saved without momentum, this has momentum=0.9",
    ),
    "feedback off": ({"ratio": 0.1}, {"ratio": 0.1, "feedback": False}, "saved with feedback=on"),
    "method": (
        {"ratio": 0.1},
        {"method": "powersgd"},
        "the state was saved with method topk, this is powersgd",
    ),
    "nothing kept": (
        {"ratio": 0.1},
        {"method": "dense"},
        "the state was saved with method topk, this is dense",
    ),
}


def loading(rank: int, workers: int) -> dict[str, Any]:
    del workers
    found: dict[str, Any] = {}
    named = parameters()
    for case, (before, after) in CARRIED.items():
        for form in ("now", "0.1.0"):
            old = state_of(named, **before)
            drive(old, rank, range(3))
            saved = copy.deepcopy(old.state_dict())
            if form == "0.1.0":
                del saved["options"], saved["parked"]
            new = state_of(named, **after)
            try:
                new.load_state_dict(saved)
            except ValueError as error:
                found[f"{case}, {form}"] = str(error)
                continue
            was, now = pending_of(old), pending_of(new)
            lost = {n for n in was if not torch.allclose(was[n], now[n], atol=1e-5)}
            bits = None
            if before == after:
                ours, theirs = drive(old, rank, range(3, 6)), drive(new, rank, range(3, 6))
                bits = all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
            else:
                drive(new, rank, range(3, 5))
            found[f"{case}, {form}"] = lost, bits
    for case, (before, after, _) in REFUSED.items():
        old = state_of(named, **before)
        drive(old, rank, range(3))
        new, twin = state_of(named, **after), state_of(named, **after)
        drive(new, rank, range(2))
        drive(twin, rank, range(2))
        try:
            new.load_state_dict(old.state_dict())
        except ValueError as error:
            pairs = zip(drive(new, rank, range(2, 4)), drive(twin, rank, range(2, 4)), strict=True)
            found[case] = str(error), all(torch.equal(one, other) for one, other in pairs)
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_loading_loses_nothing_without_a_word(workers: int) -> None:
    for rank in on_ranks(loading, workers):
        for case, (before, after) in CARRIED.items():
            for form in ("now", "0.1.0"):
                found = rank[f"{case}, {form}"]
                if (case, form) == (
                    "a clip that had a velocity",
                    "0.1.0",
                ):  # which does not say that it had no momentum
                    assert "saved with momentum" in found
                    continue
                lost, bits = found
                assert lost == set(), (case, form)
                assert bits is (True if before == after else None), (case, form)
        for case, (_, _, text) in REFUSED.items():
            said, unchanged = rank[case]
            assert text in said, case
            assert unchanged, case


def wrappers(rank: int, workers: int) -> dict[str, Any]:
    """States saved under one wrapper and loaded under another."""
    del rank, workers

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.module = nn.Linear(4, 6), nn.Linear(6, 2)

    found = {}
    ways = {
        "bare": Net,
        "compiled": lambda: torch.compile(Net(), backend="eager"),
        "ddp": lambda: nn.parallel.DistributedDataParallel(Net()),
        "ddp of compiled": lambda: nn.parallel.DistributedDataParallel(torch.compile(Net(), backend="eager")),
        "compiled ddp": lambda: torch.compile(nn.parallel.DistributedDataParallel(Net()), backend="eager"),
        "a compiled part": _partly,
        "two ddps": lambda: nn.parallel.DistributedDataParallel(nn.parallel.DistributedDataParallel(Net())),
    }

    def _names(way: str) -> list[str]:
        model = ways[way]() if way != "a compiled part" else _partly(Net())
        state = HookState(model.named_parameters(), "topk", ratio=0.5)
        return list(state.state_dict()["parts"][0]["error_buffer"])

    for way in ways:
        found[way] = _names(way)
    return found


def _partly(net: Any) -> Any:
    net.first = torch.compile(net.first, backend="eager")
    return net


def test_names_do_not_depend_on_wrappers() -> None:
    for rank in on_ranks(wrappers, 2):
        for way, names in rank.items():
            assert names == ["first.weight", "first.bias", "module.weight", "module.bias"], way


def test_a_state_that_never_exchanged_says_what_it_is() -> None:
    net = nn.Linear(4, 4)
    saved = HookState(net.named_parameters(), "topk", ratio=0.1).state_dict()
    with pytest.raises(ValueError, match="saved without momentum, this has momentum"):
        HookState(net.named_parameters(), "topk", ratio=0.1, momentum=0.9).load_state_dict(saved)
    compiled = torch.compile(nn.Linear(4, 4), backend="eager")
    HookState(compiled.named_parameters(), "topk", ratio=0.1).load_state_dict(saved)


def adam(rank: int, workers: int) -> dict[str, Any]:
    """Moments go by name; a frozen parameter is left alone; one that was never trained is refused."""
    del workers
    found: dict[str, Any] = {}

    def train(optimizer: CompressedAdam, named: Named, steps: range) -> None:
        for step in steps:
            for name, parameter in named:
                parameter.grad = gradient(name, step, rank) if parameter.requires_grad else None
            optimizer.step()

    options: dict[str, Any] = {"freeze_after": 2, "params": {"ratio": 0.1, "collective": "allgather"}}
    named = parameters("abcf")
    named[3][1].requires_grad_(False)
    optimizer = CompressedAdam(named, **options)
    train(optimizer, named, range(4))
    saved = copy.deepcopy(optimizer.state_dict())
    other = parameters("cab")
    fresh = CompressedAdam([(f"module.{name}", parameter) for name, parameter in other], **options)
    fresh.load_state_dict(saved)
    moments = [(dict(other)[name], dict(named)[name]) for name in "abc"]
    found["by name"] = all(
        torch.equal(fresh.state[ours][kind], optimizer.state[theirs][kind])
        for ours, theirs in moments
        for kind in ("momentum", "square")
    )
    for case, names in (("fewer", "ab"), ("more", "abcd")):
        try:
            CompressedAdam(parameters(names), **options).load_state_dict(saved)
        except ValueError as error:
            found[case] = str(error)
    b = dict(named)["b"]
    before = b.detach().clone()
    b.requires_grad_(False)
    train(optimizer, named, range(4, 7))
    found["left alone"] = torch.equal(before, b)
    b.requires_grad_(True)
    train(optimizer, named, range(7, 9))
    found["goes on"] = not torch.equal(before, b)
    named[3][1].requires_grad_(True)
    before = b.detach().clone()
    try:
        train(optimizer, named, range(9, 10))
    except ValueError as error:
        found["never trained"] = str(error), torch.equal(before, b)
    return found


def test_adam_s_moments_follow_their_parameters() -> None:
    for rank in on_ranks(adam, 2):
        assert rank["by name"]
        assert "c is not here and was saved" in rank["fewer"]
        assert "d is here and was not saved" in rank["more"]
        assert rank["left alone"]
        assert rank["goes on"]
        said, unchanged = rank["never trained"]
        assert said.startswith("f was frozen when this CompressedAdam was made")
        assert unchanged


OTHER_RANKS: dict[str, dict[str, Any]] = {
    "split": {"ratio": 0.1, "collective": "split"},
    "overlapped": {"ratio": 0.1, "collective": "split", "overlap": True},
    "powersgd": {"method": "powersgd", "min_compression": 1.0},
    "momentum": {"ratio": 0.1, "momentum": 0.5},
}


def answers(function: Any, workers: int, *args: Any) -> list[Any]:
    """Of all ranks; tensors travel as bytes, since a rank may be gone when its answer is read."""
    return [pickle.loads(each) for each in on_ranks(function, workers, *args)]


def saving(rank: int, workers: int) -> bytes:
    """States of hooks and of a backend, and what is pending."""
    del workers
    states, pending = {}, {}
    for way, options in OTHER_RANKS.items():
        state = state_of(parameters(), **options)
        drive(state, rank, range(3))
        states[way], pending[way] = state.state_dict(), pending_of(state)
    backend, named = made("split"), parameters()
    for name, parameter in named:
        parameter.grad = gradient(name, 0, rank)
    backend.allreduce_gradients(named)
    return pickle.dumps((states, pending, backend.state_dict()))


def resuming(rank: int, workers: int, saved: dict[str, list[Any]], backends: list[Any]) -> bytes:
    found: dict[str, Any] = {}
    for way, options in OTHER_RANKS.items():
        for rule in ("sum", "drop"):
            if way == "momentum" and workers == 1 and rule == "sum":
                continue
            state = state_of(parameters(), **options)
            with pytest.raises(ValueError, match="for_other_ranks"):
                state.load_state_dict(saved[way][rank])
            state.load_state_dict(for_other_ranks(saved[way], rule, rank, workers))
            found[f"{way}, {rule}"] = pending_of(state)
    backend, named = made("split"), parameters()
    backend.load_state_dict(for_other_ranks(backends, "sum", rank, workers))
    for _, parameter in named:
        parameter.grad = torch.zeros_like(parameter)
    backend.allreduce_gradients(named)
    found["applied"] = {name: parameter.grad for name, parameter in named}
    found["left"] = everything_pending(backend.state_dict()) if backend.state_dict() else {}
    return pickle.dumps(found)


@pytest.mark.parametrize("workers", [1, 2])
def test_another_number_of_ranks_goes_on_by_a_rule(workers: int) -> None:
    before = answers(saving, 3)
    saved = {way: [rank[0][way] for rank in before] for way in OTHER_RANKS}
    backends = [rank[2] for rank in before]
    owed = pending_gradient(backends)
    for rank in answers(resuming, workers, saved, backends):
        for way in OTHER_RANKS:
            for name, pending in before[0][1][way].items():
                if way != "momentum" or workers > 1:
                    assert torch.allclose(rank[f"{way}, sum"][name], pending, atol=1e-5), (way, name)
                assert not rank[f"{way}, drop"][name].any(), (way, name)
        for name, pending in owed.items():  # a step without gradients of its own
            left = rank["left"].get(name, torch.zeros(pending.shape))
            assert torch.allclose(rank["applied"][name] + left, pending, atol=1e-5), name
            assert workers > 1 or not left.any(), name
    with pytest.raises(ValueError, match="a velocity has no place"):
        for_other_ranks(saved["momentum"], "sum", 0, 1)
    with pytest.raises(ValueError, match="state 0 of 2 was saved by rank 1 of 3"):
        for_other_ranks(saved["split"][1:], "sum", 0, 4)
    with pytest.raises(ValueError, match="rule 'keep' is not one of sum, drop"):
        for_other_ranks(saved["split"], "keep", 0, 4)


def alone_after_several(rank: int, workers: int, saved: list[Any]) -> bytes:
    """DDP with one rank: the first gradients are those of the batch and what was pending."""
    del workers
    named = parameters("abc")
    net = nn.ParameterDict(OrderedDict(named))

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = net

        def forward(self) -> Tensor:
            return torch.stack([parameter.sum() for parameter in self.held.values()]).sum()

    wrapped = Weighted()
    ddp = nn.parallel.DistributedDataParallel(wrapped)
    state = HookState(wrapped.held.named_parameters(), "topk", ratio=0.1, collective="split")
    state.load_state_dict(for_other_ranks(saved, "sum", rank, 1))
    ddp.register_comm_hook(state, method_hook)
    found = {}
    for step in range(2):
        ddp.zero_grad()
        ddp().backward()
        for name, parameter in net.items():
            found[f"{name}, {step}"] = parameter.grad.clone()
    return pickle.dumps(found)


def saving_abc(rank: int, workers: int) -> bytes:
    del workers
    state = state_of(parameters("abc"), ratio=0.1, collective="split")
    drive(state, rank, range(3))
    return pickle.dumps(state.state_dict())


def test_one_rank_alone_applies_what_was_pending() -> None:
    saved = answers(saving_abc, 2)
    pending = pending_gradient([each["parts"][0] for each in saved])
    (found,) = answers(alone_after_several, 1, saved)
    for name, value in pending.items():
        assert torch.allclose(found[f"{name}, 0"], 1 + value, atol=1e-5)
        assert torch.equal(found[f"{name}, 1"], torch.ones_like(value))


def strangers(rank: int, workers: int) -> dict[str, str]:
    del workers
    found = {}
    saved = state_of(parameters("abc"), ratio=0.1)
    drive(saved, rank, range(2))
    state = saved.state_dict()
    fewer, others = parameters("ab"), OrderedDict(x=nn.Parameter(torch.zeros(3)))
    frozen = parameters("abc")
    frozen[2][1].requires_grad_(False)
    for case, named in (("fewer", fewer), ("others", list(others.items())), ("frozen", frozen)):
        try:
            new = state_of(named, ratio=0.1)
            new.load_state_dict(state)
            found[case] = ",".join(new.state_dict()["parked"].get("error_buffer", {}))
        except ValueError as error:
            found[case] = str(error)
    return found


def test_pending_of_parameters_that_are_not_here_is_refused_by_name() -> None:
    for rank in on_ranks(strangers, 2):
        assert "pending for c, and there is no such parameter here" in rank["fewer"]
        assert "pending for a and 2 more" in rank["others"]
        assert rank["frozen"] == "c"
