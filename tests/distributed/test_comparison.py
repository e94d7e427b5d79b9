"""Ranks that are about to do different things say so, all of them, and exchange nothing."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp import CompressedAdam, DistributedBackend, HookState, method_hook
from netsim_ddp.communication import building, comparison
from netsim_ddp.communication.comparison import RanksDisagree
from netsim_ddp.communication.segments import Group
from netsim_ddp.errors import RankTimeout
from tests.distributed.ranks import on_ranks


def model(*sizes: int, names: str = "abcdefgh") -> nn.ParameterDict:
    pairs = [(name, nn.Parameter(torch.zeros(size))) for name, size in zip(names, sizes, strict=False)]
    return nn.ParameterDict(OrderedDict(pairs))  # a plain dict would be sorted


def filled(parameters: nn.ParameterDict, seed: int) -> nn.ParameterDict:
    for number, parameter in enumerate(parameters.values()):
        generator = torch.Generator().manual_seed(100 * seed + number)
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return parameters


def backend(parameters: nn.ParameterDict, method: str, options: dict[str, Any], rank: int) -> None:
    made = DistributedBackend(method=method, params=options)
    for step in range(2):
        made.allreduce_gradients(filled(parameters, 10 * step + rank).named_parameters())


def hook(parameters: nn.ParameterDict, method: str, options: dict[str, Any], rank: int) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = parameters

        def forward(self, factor: float) -> torch.Tensor:
            return torch.stack([parameter.sum() * factor for parameter in self.held.values()]).sum()

    # DDP itself compares the shapes only; what the state is made for is another matter.
    wrapped = Sum()
    ddp = DistributedDataParallel(wrapped)
    state = HookState(wrapped.named_parameters(), method, **options)
    ddp.register_comm_hook(state, method_hook)
    ddp(float(rank)).backward()


def adam(parameters: nn.ParameterDict, method: str, options: dict[str, Any], rank: int) -> None:
    optimizer = CompressedAdam(parameters.named_parameters(), freeze_after=1, method=method, params=options)
    for step in range(3):
        filled(parameters, 10 * step + rank)
        optimizer.step()


def answer(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except (RanksDisagree, RankTimeout) as error:
        return str(error)
    return "went on"


OPTIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "values": (
        "topk-allgather",
        {"ratio": 0.1, "values": "fp16"},
        {"ratio": 0.1, "values": "bf16"},
        "rank 1 has values=bf16, rank 0 has values=fp16",
    ),
    "ratio": ("topk", {"ratio": 0.05}, {"ratio": 0.2}, "rank 1 has ratio=0.2, rank 0 has ratio=0.05"),
    "one left out": (
        "topk-allgather",
        {"ratio": 0.05},
        {"ratio": 0.05, "indices": "int32"},
        "rank 1 has indices=int32, rank 0 has indices=packed",
    ),
    "the default written out": ("topk-allgather", {"ratio": 0.05}, {"ratio": 0.05, "values": "fp32"}, ""),
    "rank of powersgd": ("powersgd", {"rank": 1}, {"rank": 2}, "rank 1 has rank=2, rank 0 has rank=1"),
}


def with_other_options(rank: int, workers: int) -> dict[str, str]:
    del workers
    found = {}
    for case, (method, first, second, _) in OPTIONS.items():
        for way in (backend, hook, adam):
            options = second if rank == 1 else first
            found[f"{case}, {way.__name__}"] = answer(
                lambda way=way, method=method, options=options: way(model(500, 30), method, options, rank)
            )
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_other_options_are_named_on_every_rank(workers: int) -> None:
    for rank in on_ranks(with_other_options, workers):
        for case, (_, _, _, expected) in OPTIONS.items():
            for way in ("backend", "hook", "adam"):
                said = rank[f"{case}, {way}"]
                assert said.startswith(expected or "went on"), (case, way, said)


def with_other_models(rank: int, workers: int) -> dict[str, str]:
    del workers
    odd = rank == 1
    cases = {
        "one more": model(40, 50, 60) if odd else model(40, 50),
        "one less": model(40) if odd else model(40, 50),
        "another order": model(40, 50, names="ba") if odd else model(50, 40, names="ab"),
        "another shape": model(40, 51) if odd else model(40, 50),
        "another type": model(40, 50).half() if odd else model(40, 50),
    }
    return {
        case: answer(lambda mine=mine: backend(mine, "topk", {"ratio": 0.1}, rank))
        for case, mine in cases.items()
    }


@pytest.mark.parametrize("workers", [2, 3])
def test_other_models_are_named_on_every_rank(workers: int) -> None:
    for rank in on_ranks(with_other_models, workers):
        assert rank["one more"].startswith("rank 1 has 3 parameters, rank 0 has 2: c is not on rank 0")
        assert rank["one less"].startswith("rank 1 has 1 parameters, rank 0 has 2: b is not on rank 1")
        assert rank["another order"].startswith(
            "rank 1 has as parameter 0 b (40, float32), rank 0 has a (50, float32)"
        )
        assert (
            "rank 1 has as parameter 1 b (51, float32), rank 0 has b (50, float32)" in rank["another shape"]
        )
        assert "rank 1 has as parameter 0 a (40, float16), rank 0 has a (40, float32)" in rank["another type"]


def a_caught_difference(rank: int, workers: int) -> tuple[str, str, list[float]]:
    """A version that differs, then none."""
    del workers
    mine = filled(model(64), rank)
    made = DistributedBackend()
    building.netsim_ddp.__version__, before = f"0.{rank}", building.netsim_ddp.__version__
    first = answer(lambda: made.allreduce_gradients(mine.named_parameters()) and None)
    building.netsim_ddp.__version__ = before
    second = answer(lambda: made.allreduce_gradients(mine.named_parameters()) and None)
    assert mine["a"].grad is not None
    return first, second, mine["a"].grad[:3].tolist()


def test_a_caught_difference_leaves_a_working_backend() -> None:
    one, other = on_ranks(a_caught_difference, 2)
    assert one == other
    assert one[0].startswith("rank 1 has netsim 0.1, rank 0 has 0.0")
    mean = (filled(model(64), 0)["a"].grad + filled(model(64), 1)["a"].grad) / 2  # type: ignore[operator]
    assert one[1] == "went on"
    assert one[2] == pytest.approx(mean[:3].tolist())


def one_refuses(rank: int, workers: int) -> list[str]:
    """One rank's parameter is of a type that nobody exchanges."""
    del workers
    said = []
    for made in (DistributedBackend(), DistributedBackend(method="topk")):
        mine = filled(model(30).double() if rank == 1 else model(30), rank)
        try:
            made.allreduce_gradients(mine.named_parameters())
        except ValueError as error:
            said.append(str(error))
    return said


def test_a_rank_that_cannot_go_on_takes_the_others_along() -> None:
    for rank, said in enumerate(on_ranks(one_refuses, 3)):
        assert len(said) == 2
        for text in said:
            assert "parameter a is float64" in text
            assert text.startswith("parameter a") if rank == 1 else text.startswith("rank 1 cannot go on")


def one_is_absent(rank: int, workers: int, folder: str) -> tuple[str, float]:
    dist.destroy_process_group()
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/s", rank=rank, world_size=workers, timeout=timedelta(seconds=3)
    )
    begin = time.monotonic()
    if rank == 1:
        time.sleep(5)
        return "went on", time.monotonic() - begin
    said = answer(lambda: backend(model(30), "dense", {}, rank))
    return said, time.monotonic() - begin


def test_a_rank_that_does_not_come_is_named_at_the_deadline(tmp_path: Any) -> None:
    found = on_ranks(one_is_absent, 3, str(tmp_path))
    for rank in (0, 2):
        said, seconds = found[rank]
        assert said.startswith("rank 1 did not come to the exchange")
        assert 2.5 < seconds < 30


class Store:
    """A store in which ``arrival`` is laid down while somebody looks for ``late``, and is missed by that look."""

    timeout_s = 0.05

    def __init__(self, late: str = "", arrival: Callable[[dict[str, str]], None] | None = None) -> None:
        self.kept: dict[str, str] = {}
        self.log: list[str] = []
        self._late, self._arrival = late, arrival

    def set(self, key: str, value: str, _until: float) -> None:
        self.log.append(f"set {key}")
        self.kept[key] = value

    def has(self, key: str, _until: float) -> bool:
        found = key in self.kept
        if key == self._late and self._arrival is not None:
            self._arrival(self.kept)
        return found

    def get(self, key: str, _until: float) -> str:
        return self.kept[key]

    def delete(self, key: str, _until: float) -> None:
        self.log.append(f"delete {key}")
        self.kept.pop(key, None)


def verdict(rank: int, store: Store, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(comparison, "GroupStore", lambda _: store)
    return comparison._Table(Group(rank, 2, None)).verdict("digest")


def test_an_answer_that_comes_between_two_looks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 looks for an answer, then whether rank 0 is there at all: both were missed by who looked at the moment
    at which rank 0 answered and left."""

    def answered(kept: dict[str, str]) -> None:
        kept["to/1"] = kept["of/1"][:16] + "same"

    assert verdict(1, Store("of/0", answered), monkeypatch) == "same"


def test_rank_0_leaves_after_it_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    store.kept["of/1"] = "0123456789abcdef" + "digest"
    assert verdict(0, store, monkeypatch) == "same"
    assert store.log.index("set to/1") < store.log.index("delete of/0")


def nothing_per_step(rank: int, workers: int) -> list[int]:
    """How often the ranks compare."""
    del workers
    counted, original = [0], comparison._Table

    class Counting(original):  # type: ignore[misc, valid-type]
        def verdict(self, digest: str) -> str:
            counted[0] += 1
            return str(super().verdict(digest))

    comparison._Table = Counting  # type: ignore[misc]
    try:
        made, mine = DistributedBackend(method="topk"), model(100, 20)
        seen = []
        for step in range(4):
            made.allreduce_gradients(filled(mine, 10 * step + rank).named_parameters())
            seen.append(counted[0])
    finally:
        comparison._Table = original  # type: ignore[misc]
    return seen


def test_the_ranks_compare_once_and_not_every_step() -> None:
    assert on_ranks(nothing_per_step, 2) == [[1, 1, 1, 1]] * 2
