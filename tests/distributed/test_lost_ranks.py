"""A rank that dies, stops, raises or is late in mid-training under DDP's hook: every other rank ends within the process
group's timeout, with one error that names that rank and the method."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp import HookState, method_hook
from netsim_ddp.communication.exchange import PeerExchange
from netsim_ddp.communication.exchange_errors import ExchangeFailed
from netsim_ddp.communication.segments import Collective
from netsim_ddp.errors import RankTimeout
from tests.distributed.ranks import on_ranks

TIMEOUT_S = 4.0
LOST_STEP = 2


def die(*_: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def die_in_exchange() -> None:
    """Whatever is sent next is sent, and the answer not taken."""
    PeerExchange.finish = Collective.finish = die  # type: ignore[method-assign]


def raise_in_backward(model: nn.Module) -> None:
    def refuse(_: Tensor) -> Tensor:
        raise ValueError("this loss is broken")

    next(model.parameters()).register_hook(refuse)


FAULTS: dict[str, Callable[[nn.Module], None]] = {
    "dies": lambda _: die_in_exchange(),
    "stops": lambda _: os.kill(os.getpid(), signal.SIGSTOP),
    "is late": lambda _: time.sleep(TIMEOUT_S + 2),
    "raises": raise_in_backward,
}


def train(
    rank: int, workers: int, place: str, method: str, fault: str, lost: int, step: int, overlap: bool
) -> tuple[str, str, int | None]:
    """The error's class, its text and the rank it names."""
    dist.init_process_group(
        "gloo",
        init_method=place,
        rank=rank,
        world_size=workers,
        timeout=timedelta(seconds=TIMEOUT_S),
    )
    dist.barrier()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 700), nn.Linear(700, 700), nn.Linear(700, 3))
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=overlap, bucket_cap_mb=1)
    ddp.register_comm_hook(HookState(model, method, overlap=overlap), method_hook)
    try:
        for number in range(LOST_STEP + 2):
            loss = ddp(torch.randn(2, 100)).sum()
            if rank == lost and number == step:
                FAULTS[fault](model)
            model.zero_grad()
            loss.backward()
    except (RuntimeError, RankTimeout, ValueError) as error:
        return type(error).__name__, str(error), getattr(error, "rank", None)
    return "went on", "", None


def lose(
    rank: int, workers: int, place: str, folder: str, lost: int, words: tuple[Any, ...]
) -> tuple[str, str, int | None]:
    """The same of every rank; the lost one is a child of this process, which looks after it."""
    dist.destroy_process_group()
    done = [Path(folder, str(number)) for number in range(workers) if number != lost]
    if rank != lost or words[1] in ("is late", "raises"):
        try:
            return train(rank, workers, place, *words)
        finally:
            Path(folder, str(rank)).touch()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            train(rank, workers, place, *words)
        os._exit(1)
    while not all(path.exists() for path in done):
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # on_ranks ends one
    return "lost", "", None


@pytest.mark.parametrize(
    ("workers", "method", "fault", "overlap"),
    [
        (3, "topk", "dies", True),
        (3, "fp16", "stops", False),
        (3, "powersgd", "is late", True),
        (2, "topk", "raises", True),
    ],
)
def test_a_rank_that_is_lost_in_an_exchange_is_named_with_the_method(
    tmp_path: Path, workers: int, method: str, fault: str, overlap: bool
) -> None:
    lost = workers - 1
    words = (method, fault, lost, LOST_STEP, overlap)
    *others, gone = on_ranks(lose, workers, f"file://{tmp_path}/store", str(tmp_path), lost, words)
    for kind, text, named in others:
        assert kind == ExchangeFailed.__name__, text
        assert f"of method {method} (" in text
        assert f"waited for rank {lost} and did not end" in text
        assert named == lost
        assert ".cc:" not in text
    if fault == "is late":
        assert "Ranks 0 and 1 had given this rank up before" in gone[1]
    if fault == "raises":
        assert gone[:2] == ("ValueError", "this loss is broken")


def test_a_rank_0_that_stops_with_the_store_leaves_nobody_waiting(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    words = ("topk", "stops", 0, 0, False)
    _, (kind, text, named) = on_ranks(lose, 2, place, str(tmp_path), 0, words)
    assert (kind, named) == (RankTimeout.__name__, 0), text
    assert "rank 0 has stopped" in text


def test_a_failed_exchange_is_still_a_runtime_error() -> None:
    assert issubclass(ExchangeFailed, RuntimeError)
