"""The process group ``netsim`` in real processes: right data, never early, counted, or refused by name."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp.communication.shaped.futures import DeadlineTimer
from netsim_ddp.communication.shaped.group import ShapedProcessGroup, shaped_group
from netsim_ddp.errors import NetsimError, RankTimeout, UsageError
from netsim_ddp.link.bucket.clock import LinkClock
from netsim_ddp.link.bucket.operations import GroupMember, OperationTable
from netsim_ddp.link.bucket.schedule import Operation, charges
from netsim_ddp.link.spec import LinkSpec
from tests.distributed.ranks import on_ranks

pytestmark = [pytest.mark.alone, pytest.mark.no_kernels]

RATE = 50_000_000
NUMEL = 250_000
BIG = Operation("allreduce", 4 * NUMEL, itemsize=4)


# What each rank does


def operations(rank: int, workers: int, n: int, group: Any) -> dict[str, Any]:
    """Every handled collective once; the tensors that it filled."""
    x = torch.arange(n, dtype=torch.float32) + rank
    root = workers - 1
    out: dict[str, Any] = {}

    def blank(count: int = 1) -> list[torch.Tensor]:
        return [torch.zeros(n) for _ in range(count)]

    for name in ("allreduce", "reduce", "broadcast"):
        out[name] = x.clone()
    dist.all_reduce(out["allreduce"], group=group)
    dist.reduce(out["reduce"], root, group=group)
    if rank != root:
        del out["reduce"]  # undefined elsewhere
    dist.broadcast(out["broadcast"], root, group=group)
    out["allgather"] = blank(workers)
    dist.all_gather(out["allgather"], x, group=group)
    out["all_gather_into_tensor"] = torch.zeros(n * workers)
    dist.all_gather_into_tensor(out["all_gather_into_tensor"], x, group=group)
    out["gather"] = blank(workers)
    dist.gather(x, out["gather"] if rank == root else None, root, group=group)
    out["scatter"] = torch.zeros(n)
    dist.scatter(out["scatter"], [x + i for i in range(workers)] if rank == root else None, root, group=group)
    out["reduce_scatter"] = torch.zeros(n)
    dist.reduce_scatter(out["reduce_scatter"], [x + i for i in range(workers)], group=group)
    out["reduce_scatter_tensor"] = torch.zeros(n)
    dist.reduce_scatter_tensor(out["reduce_scatter_tensor"], torch.arange(n * workers) + x[0], group=group)
    out["all_to_all"] = blank(workers)
    dist.all_to_all(out["all_to_all"], [x + i for i in range(workers)], group=group)
    rows = [n + i for i in range(workers)]  # uneven: n + i entries for rank i
    out["all_to_all_single"] = torch.zeros((n + rank) * workers)
    sent = torch.arange(sum(rows), dtype=torch.float32) * (rank + 1)
    dist.all_to_all_single(out["all_to_all_single"], sent, [n + rank] * workers, rows, group=group)
    out["coalesced"] = [x.clone(), x.clone() * 2]
    with_group = dist.group.WORLD if group is None else group
    with_group.allreduce_coalesced(out["coalesced"], dist.AllreduceCoalescedOptions()).wait()
    objects: list[Any] = [None] * workers
    dist.all_gather_object(objects, {"rank": rank}, group=group)
    out["objects"] = [torch.tensor(o["rank"]) for o in objects]
    return out


def differing(rank: int, workers: int, gloo: Any) -> list[str]:
    ours, plain = operations(rank, workers, 5, None), operations(rank, workers, 5, gloo)
    bad = []
    for name, value in plain.items():
        pairs = zip(ours[name], value, strict=True) if isinstance(value, list) else [(ours[name], value)]
        if not all(torch.equal(a, b) for a, b in pairs):
            bad.append(name)
    return bad


def gradients(group: Any, hook: str) -> list[torch.Tensor]:
    """Gradients after three steps of a small model under DDP in several buckets."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))
    ddp = DistributedDataParallel(
        model, process_group=group, bucket_cap_mb=25 if hook == "powersgd" else 0.01
    )
    if hook == "fp16":
        ddp.register_comm_hook(group, default_hooks.fp16_compress_hook)
    elif hook == "powersgd":
        state = powerSGD_hook.PowerSGDState(group, 1, start_powerSGD_iter=2, min_compression_rate=1)
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    data = torch.randn(16, 64, generator=torch.Generator().manual_seed(dist.get_rank()))
    for _ in range(4):
        ddp.zero_grad()
        ddp(data).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def refusal(call: Any) -> str:
    try:
        call()
    except (NotImplementedError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def messages(rank: int, workers: int) -> dict[str, Any]:
    """Two tagged messages to every peer, received in the other order."""
    peers = [(rank + i) % workers for i in range(1, workers)]
    received = {(p, tag): torch.zeros(10_000) for p in peers for tag in (1, 2)}
    dist.barrier()
    start = time.monotonic()
    works = [
        dist.isend(torch.full((10_000,), 10.0 * rank + tag), p, tag=tag) for p in peers for tag in (1, 2)
    ]
    works += [dist.irecv(received[p, tag], p, tag=tag) for tag in (2, 1) for p in peers]
    for work in works:
        work.wait()
    end = time.monotonic()
    right = all(bool((t == 10.0 * p + tag).all()) for (p, tag), t in received.items())
    pair = [dist.P2POp(dist.isend, torch.ones(3), (rank + 1) % workers)]
    pair.append(dist.P2POp(dist.irecv, torch.zeros(3), (rank - 1) % workers))
    for work in dist.batch_isend_irecv(pair):
        work.wait()
    future = dist.isend(torch.ones(1), 1).get_future() if rank == 0 else None
    if rank == 1:
        dist.recv(torch.zeros(1), 0)
    if future is not None:
        future.wait()
    return {"start": start, "end": end, "right": right}


def body(rank: int, workers: int) -> dict[str, Any]:
    group = shaped_group()
    gloo = dist.new_group(backend="gloo")
    x = torch.zeros(NUMEL)
    dist.all_reduce(x)
    found: dict[str, Any] = {"all_reduce": [], "differing": differing(rank, workers, gloo)}
    for _ in range(4):
        dist.barrier(gloo)
        before = group.charged()
        start = time.monotonic()
        dist.all_reduce(x)
        found["all_reduce"].append((start, time.monotonic()))
    found["charged"] = [now - then for now, then in zip(group.charged(), before, strict=True)]
    dist.barrier(gloo)
    start = time.monotonic()
    works = [dist.all_reduce(torch.zeros(NUMEL // 2), async_op=True) for _ in range(3)]
    early = [work.is_completed() for work in works]
    chained = works[0].get_future().then(lambda f: f.value()[0].sum())
    for work in reversed(works):
        work.wait()
    found["in_flight"] = {
        "start": start,
        "end": time.monotonic(),
        "early": early,
        "sum": float(chained.wait()),
    }
    found["messages"] = messages(rank, workers)
    for hook in ("plain", "fp16", "powersgd"):
        ours, plain = gradients(dist.group.WORLD, hook), gradients(gloo, hook)
        found[hook] = all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    one = torch.ones(1)
    found["refused"] = {
        "any source": refusal(lambda: dist.recv(one)),
        "sparse": refusal(lambda: dist.all_reduce(one.to_sparse())),
        "monitored_barrier": refusal(group.monitored_barrier),
        "coalescing": refusal(lambda: group._start_coalescing(torch.device("cpu"))),
        "split_group": refusal(lambda: group.split_group([0])),
        "cuda": refusal(lambda: group._get_backend(torch.device("cuda"))),
        "bare tensor": refusal(lambda: group.allreduce(one)),
    }
    part = dist.new_group([0, 1], timeout=timedelta(seconds=2))
    if rank < 2:
        y = torch.full((10,), float(rank + 1))
        dist.all_reduce(y, group=part)
        found["part"] = float(y[0]), shaped_group(part).charged()
    dist.barrier(gloo)
    if rank == 0:
        start = time.monotonic()
        try:
            dist.all_reduce(torch.ones(10), group=part)
        except RuntimeError as error:
            found["timeout"] = time.monotonic() - start, str(error)
    dist.barrier(gloo)
    return found


@pytest.fixture(scope="module", params=[2, 3, 4])
def run(request):
    return request.param, on_ranks(body, request.param, bucket_bps=RATE)


def ideal(workers: int, op: Operation = BIG) -> float:
    return LinkClock(LinkSpec(workers, RATE)).complete(op, [0.0] * workers).deadline


def test_every_collective_gives_what_gloo_gives(run):
    _, ranks = run
    assert [rank["differing"] for rank in ranks] == [[]] * len(ranks)


def test_an_all_reduce_is_never_early_and_hardly_late(run):
    workers, ranks = run
    late = []
    for calls in zip(*(rank["all_reduce"] for rank in ranks), strict=True):
        start = max(begin for begin, _ in calls)
        late += [end - start - ideal(workers) for _, end in calls]
    assert min(late) >= -1e-6
    assert sorted(late)[len(late) // 2] < 0.050  # milliseconds on an idle machine; this one is shared
    assert [tuple(rank["charged"]) for rank in ranks] == list(zip(*charges(BIG, workers), strict=True))


def test_operations_in_flight_share_the_link(run):
    workers, ranks = run
    half = Operation("allreduce", 4 * (NUMEL // 2), itemsize=4)
    start = max(rank["in_flight"]["start"] for rank in ranks)
    for rank in ranks:
        assert rank["in_flight"]["early"] == [False] * 3
        assert rank["in_flight"]["sum"] == 0.0
        assert (
            0.95 * 3 * ideal(workers, half)
            <= rank["in_flight"]["end"] - start
            <= 3 * ideal(workers, half) + 0.3
        )


def test_messages_meet_by_tag_and_pay_for_the_line(run):
    workers, ranks = run
    line = 2 * (workers - 1) * 40_000 * 8 / RATE * 1514 / 1448
    for rank in ranks:
        assert rank["messages"]["right"]
        assert line <= rank["messages"]["end"] - rank["messages"]["start"] < line + 0.5


@pytest.mark.parametrize("hook", ["plain", "fp16", "powersgd"])
def test_ddp_gradients_equal_those_under_gloo(run, hook):
    assert all(rank[hook] for rank in run[1])


def test_what_is_not_emulated_is_refused_by_name(run):
    for rank in run[1]:
        for what, error in rank["refused"].items():
            assert "the netsim process group does not emulate" in error, what
            assert "--link tc" in error


def test_a_group_of_some_ranks_works_and_keeps_gloos_timeout(run):
    _, ranks = run
    assert [rank["part"][0] for rank in ranks[:2]] == [3.0, 3.0]
    took, error = ranks[0]["timeout"]
    assert 1.0 < took < 30.0
    assert error


def test_every_method_that_moves_data_is_overridden():
    """A torch that learns a new operation must not send it past the emulated link unnoticed."""
    harmless = {"rank", "size", "get_group_store", "unbox", "boxed", "get_backend", "_backend_id"}
    harmless |= {
        "_add_ephemeral_timeout",
        "_get_backend_name",
        "_get_sequence_number_for_group",
        "_has_hooks",
    }
    harmless |= {"_id", "_enable_collectives_timing", "_register_backend", "_register_on_completion_hook"}
    harmless |= {"_set_default_backend", "_set_group_desc", "_set_group_name", "_wait_for_pending_works"}
    harmless |= {"_set_sequence_number_for_group", "get_reconfigure_handle", "perform_nocolor_split"}
    for name in dir(dist.ProcessGroup):
        method = getattr(dist.ProcessGroup, name)
        if name.startswith("__") or "_hook" in name or "conduit" in name or not callable(method):
            continue
        if name in harmless or isinstance(method, type) or name in ("BackendType",):
            continue
        assert getattr(ShapedProcessGroup, name) is not method, name


# The table and the timer, without processes


def pair_of_members(slots: int = 4) -> tuple[GroupMember, GroupMember]:
    spec = LinkSpec(2, RATE)
    table = OperationTable(2, slots=slots, groups=2)
    clock = LinkClock(spec, table.clock)
    return GroupMember(table, clock, 0, (0, 1), 0), GroupMember(table, clock, 0, (0, 1), 1)


def test_a_slot_is_used_again_only_when_all_have_taken_their_deadline():
    first, second = pair_of_members(slots=2)
    for _ in range(5):
        collects = [m.call(BIG, (), 1.0) for m in (first, second)]
        assert [c() is not None for c in collects] == [True, True]
    assert first.tx_bytes == 5 * charges(BIG, 2)[0][0]
    for _ in range(2):
        late = first.call(BIG, (), 1.0)
    assert late() is None
    with pytest.raises(RankTimeout, match="2 calls ago"):
        first.call(BIG, (), 0.05)


def test_ranks_that_call_different_operations_are_told():
    first, second = pair_of_members()
    first.call(BIG, (), 1.0)
    with pytest.raises(NetsimError, match="another rank something else"):
        second.call(Operation("barrier"), (), 1.0)


def test_messages_of_one_tag_meet_in_order_and_those_of_another_do_not():
    first, second = pair_of_members()
    sent = [first.post(1, tag, 1000 * tag, sending=True) for tag in (1, 2, 2)]
    received = second.post(0, 2, 9999, sending=False)
    assert [c() is None for c in sent] == [True, False, True]
    assert received() is not None
    assert second.rx_bytes == charges(Operation("send", 2000), 2)[1][1]
    for _ in range(62):  # two of the 64 places belong to the messages that still wait
        first.post(1, 5, 1, sending=True)
    with pytest.raises(UsageError, match="in flight from rank 0 to rank 1"):
        first.post(1, 5, 1, sending=True)


def test_the_table_has_room_for_so_many_groups_and_says_so():
    table = OperationTable(2, groups=2)
    assert [table.group_index(name) for name in "aba"] == [0, 1, 0]
    with pytest.raises(UsageError, match="keeps 2 groups"):
        table.group_index("c")


def test_the_timer_is_never_early_and_a_callback_may_wait_for_a_later_one():
    timer, later, log = DeadlineTimer(), threading.Event(), []
    start = time.monotonic()
    timer.at(start + 0.05, lambda: log.append(("wait", later.wait(5), time.monotonic())))
    timer.at(start + 0.10, later.set)
    timer.at(start + 0.02, lambda: log.append(("first", True, time.monotonic())))
    assert later.wait(5)
    time.sleep(0.05)
    assert [(name, ok) for name, ok, _ in log] == [("first", True), ("wait", True)]
    assert log[0][2] >= start + 0.02
    assert log[1][2] >= start + 0.10
