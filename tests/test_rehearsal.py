"""One rank's step without the others: what it works on and sends is what a step among them works on and sends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn

from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Collective, Group
from netsim_ddp.errors import UsageError
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.methods import METHODS, entry_of
from netsim_ddp.predict.clock import Computed, PredictedLink
from netsim_ddp.predict.message_cost import MessageCost
from netsim_ddp.predict.rehearsal import Finish, Full, Rehearsal, Start, Work, _beside, _undisturbed, rehearse
from netsim_ddp.steps.phases import step_records

SIZES = [(200, 300), (300,), (64, 200), (7,)]


def _flat() -> FlatGradients:
    return FlatGradients((f"p{number}", nn.Parameter(torch.zeros(size))) for number, size in enumerate(SIZES))


def _gradients(seed: int = 0) -> list[list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [[torch.randn(size, generator=draw) for size in SIZES] for _ in range(2)]


def _rehearsed(
    name: str, ranks: int, *, parts: int = 1, flat: FlatGradients | None = None, **params: Any
) -> Rehearsal:
    count = len(SIZES)
    buckets = [(0, count)] if parts == 1 else [(2, count), (0, 2)]
    return rehearse(name, params, flat or _flat(), buckets, _gradients(), Group(0, ranks))


def _taking(found: Rehearsal, each_s: float) -> Rehearsal:
    """``found``, as if its local pieces had taken ``each_s`` in every step: what they took here is this machine's."""
    events = (
        replace(event, took_s=(each_s,)) if isinstance(event, Work) else event for event in found.events
    )
    return replace(found, events=tuple(events))


CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in METHODS),
    ("topk", {"collective": "split", "values": "int8"}),
    ("topk", {"collective": "split", "keep": False}),
    ("topk", {"collective": "allgather", "values": "fp16", "momentum": 0.9}),
    ("topk", {"collective": "split", "adaptive": True}),
    ("powersgd", {"rank": 2}),
]


@pytest.mark.kernels
@pytest.mark.parametrize(("name", "params"), CASES, ids=[f"{name}-{params}" for name, params in CASES])
def test_every_method_can_be_rehearsed_among_any_number_of_ranks(name: str, params: dict[str, Any]) -> None:
    for ranks in (2, 3, 17):
        found = _rehearsed(name, ranks, parts=2, **params)
        fulls = [event.bucket for event in found.events if isinstance(event, Full)]
        starts = [event.wire for event in found.events if isinstance(event, Start)]
        assert fulls == [0, 1]
        assert sorted(event.wire for event in found.events if isinstance(event, Finish)) == sorted(starts)
        assert all(len(event.took_s) >= 5 for event in found.events if isinstance(event, Work))
        assert starts


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("name", ["dense", "fp16", "bf16", "topk", "topk-allgather"])
def test_it_sends_what_the_registry_says(name: str, ranks: int) -> None:
    draw = torch.Generator().manual_seed(0)
    flat = FlatGradients([("p", nn.Parameter(torch.zeros(2_000_000)))])
    gradients = [[torch.randn(2_000_000, generator=draw)]]
    found = rehearse(name, {}, flat, [(0, 1)], gradients, Group(0, ranks))
    expected = entry_of(name).wire_bytes(flat.numel, ranks, {"collective": found.collective or ""})
    assert found.wire_bytes == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize("name", ["dense", "fp16"])
def test_the_average_of_ranks_that_all_do_alike_is_what_one_of_them_sends(name: str) -> None:
    flat = _flat()
    rehearse(name, {}, flat, [(0, len(SIZES))], _gradients()[:1], Group(0, 4))
    near = {} if name == "dense" else {"rtol": 1e-2, "atol": 1e-3}
    for view, gradient in zip(flat.views, _gradients()[0], strict=True):
        torch.testing.assert_close(view, gradient, **near)


def test_an_exchange_of_ones_own_says_what_it_lacks() -> None:
    own = Collective("own", lambda: None, 4, (4,))
    own.method = "my_module:factory"
    with pytest.raises(UsageError, match="my_module:factory would send in own is not known"):
        own.echo()


@pytest.fixture
def link() -> Iterator[PredictedLink]:
    return PredictedLink(LinkSpec(workers=4, rate_bps=10**8), {}, None)


def test_a_dense_step_is_compute_and_line_and_what_comes_after(link: PredictedLink) -> None:
    found = _taking(_rehearsed("dense", 4), 0.002)
    sample = link.play(found, Computed((0.03,), 0.03, after_s=0.01), 0)
    (record,) = step_records([sample])
    local = sum(max(event.took_s) for event in found.events if isinstance(event, Work))
    line = found.wire_bytes * 8 / 1e8
    assert record.compute_s == pytest.approx(0.03)
    assert record.optimizer_s == pytest.approx(0.01)
    assert record.communicate_s == pytest.approx(line, rel=0.03)
    assert record.wall_s == pytest.approx(0.03 + line + local + 0.01, rel=0.03)


def test_what_backward_hides_takes_no_time(link: PredictedLink) -> None:
    found = _rehearsed("dense", 4, parts=2)
    early = link.play(found, Computed((0.001, 1.0), 1.0), 0)
    late = link.play(found, Computed((1.0, 1.0), 1.0), 0)
    (a,), (b,) = step_records([early]), step_records([late])
    assert a.wall_s < b.wall_s
    assert a.hidden_s > b.hidden_s


def test_a_hosts_cost_of_messages_is_told_apart() -> None:
    found = _rehearsed("topk", 4, collective="split")
    walls = []
    for cost in (0.0, 1e-3):
        costs = {"alltoall": MessageCost(3 * cost, cost)}
        link = PredictedLink(LinkSpec(workers=4, rate_bps=10**9), costs, None)
        walls.append(link.play(found, Computed((0.01,), 0.01), 0).end)
    assert walls[1] - walls[0] == pytest.approx(2 * (3 + 2) * 1e-3, rel=0.01)


def test_steps_differ_as_the_rehearsed_ones_did(link: PredictedLink) -> None:
    found = _rehearsed("topk", 4)
    ends = []
    for number in range(5):
        begin = link.begin()
        ends.append(link.play(found, Computed((0.01,), 0.01), number).end - begin)
    assert len(set(ends)) > 1
    assert median(ends) > 0.01


def test_an_exchange_begins_with_the_slowest_rank() -> None:
    late = {}
    for workers in (2, 8, 64):
        found = _rehearsed("topk", workers)
        first = next(event for event in found.events if isinstance(event, Work))
        slow = {id(first): (0.0, 0.0, 0.0, 0.1)}
        events = tuple(
            replace(event, took_s=slow.get(id(event), (0.0,))) if isinstance(event, Work) else event
            for event in found.events
        )
        link = PredictedLink(LinkSpec(workers=workers, rate_bps=10**12), {}, None)
        played = [
            link.play(replace(found, events=events), Computed((0.01,), 0.01), step) for step in range(200)
        ]
        records = step_records(played)
        assert all(
            record.wall_s == pytest.approx(0.01 + record.compress_s, rel=0.02, abs=1e-3) for record in records
        )
        late[workers] = sum(record.compress_s > 0.09 for record in records) / 200
    assert late[2] == pytest.approx(1 - 0.75**2, abs=0.1)
    assert late[8] == pytest.approx(1 - 0.75**8, abs=0.1)
    assert late[64] == 1


def test_what_several_ranks_do_at_once_ends_with_the_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it fails: a child that stayed would take a core until the command ends."""
    children: list[int] = []
    fork = os.fork

    def forking() -> int:
        children.append(fork())
        return children[-1]

    monkeypatch.setattr(os, "fork", forking)
    flat = _flat()
    buckets = [(0, len(SIZES))]

    def rehearsed(at_once: int) -> Rehearsal:
        return rehearse("topk", {}, flat, buckets, _gradients(), Group(0, 4), at_once=at_once)

    together, alone = rehearsed(3), rehearsed(1)
    assert [type(event) for event in together.events] == [type(event) for event in alone.events]
    assert together.wire_bytes == alone.wire_bytes

    def fails() -> NoReturn:
        raise RuntimeError("a fault of the method")

    with pytest.raises(RuntimeError, match="a fault"), _beside(lambda: None, 2):
        fails()
    assert len(children) == 4
    for child in children:
        with pytest.raises(ChildProcessError):
            os.waitpid(child, os.WNOHANG)


@pytest.mark.parametrize(("stolen", "tries"), [([0.0], 1), ([0.2, 0.01], 2), ([0.3, 0.1, 0.2], 3)])
def test_what_others_disturbed_is_rehearsed_again(
    stolen: list[float], tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter(stolen)

    class Told:
        share = property(lambda _: next(shares))

    monkeypatch.setattr("netsim_ddp.predict.rehearsal.StolenTime", Told)
    monkeypatch.setattr("netsim_ddp.predict.rehearsal.BUDGET_S", 0.0)
    took = iter(range(100))
    steps = _undisturbed(lambda: [Work("compress", (float(next(took)),))])
    best = stolen.index(min(stolen))
    assert [each.took_s for (each,) in steps if isinstance(each, Work)] == [
        (float(5 * best + n),) for n in range(5)
    ]
    assert next(took) == 5 * tries
