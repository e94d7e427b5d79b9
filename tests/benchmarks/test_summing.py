"""What one of eight ranks does with the messages of a split-reduce step, ResNet-50, run by ``make bench``: decode the
requests, sum them, select and encode the answer; decode the answers and write the average.

The caches are evicted before each step, as the forward and backward pass of a large model does. ``test_buckets`` has
the model in five buckets, as ``overlap`` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from netsim_ddp.communication.methods.topk_split import TopKSplitReduce
from netsim_ddp.communication.segments import Local
from netsim_ddp.workloads.models import get_model
from tests.one_process import Ranks, alone

RANKS, RATIO, BUCKETS, ROUNDS = 8, 0.01, 5, 15


class Received:
    """Rank 0 of a step that the others have written their messages for."""

    def __init__(self, shapes: list[torch.Size], lent: bool, **options: Any) -> None:
        numel = sum(shape.numel() for shape in shapes)
        gradients = [torch.randn(numel, generator=torch.Generator().manual_seed(r)) for r in range(RANKS)]
        ranks = Ranks(TopKSplitReduce, shapes, RANKS, ratio=RATIO, **options)
        ranks.step(gradients)
        self.method = ranks.methods[0]
        self.method.provisional = True  # a step can be taken again
        self.work = [
            piece.run
            for piece in ranks.segments[0]
            if isinstance(piece, Local) and piece.phase == "decompress"
        ]
        self.lent = [torch.empty(shape) for shape in shapes] if lent else None

    def run(self) -> None:
        self.method.flat.lent = self.lent
        for work in self.work:
            work()

    def again(self) -> None:
        """Before the same step."""
        self.method._open = True
        self.method.roll_back()


def sizes() -> list[torch.Size]:
    return [parameter.shape for parameter in get_model("resnet50", 1000, seed=0).parameters()]


def cut(shapes: list[torch.Size], parts: int) -> list[list[torch.Size]]:
    """Into parts of about equal size."""
    numel, so_far = sum(shape.numel() for shape in shapes), 0
    found: list[list[torch.Size]] = [[] for _ in range(parts)]
    for shape in shapes:
        found[min(parts - 1, so_far * parts // numel)].append(shape)
        so_far += shape.numel()
    return found


@pytest.fixture(scope="module")
def evicting() -> Iterator[Tensor]:
    torch.set_num_threads(1)
    with alone():
        yield torch.ones(16_000_000)


@pytest.mark.parametrize("lent", [False, True], ids=["own", "lent"])
@pytest.mark.parametrize("parts", [1, BUCKETS], ids=["whole", "buckets"])
@pytest.mark.parametrize("values", ["fp32", "fp16"])
def test_decoding_and_summing(benchmark, evicting, parts, lent, values):
    received = [Received(shapes, lent, values=values) for shapes in cut(sizes(), parts)]

    def before() -> None:
        for each in received:
            each.again()
        evicting.add_(1)

    def work() -> None:
        for each in received:
            each.run()

    benchmark.pedantic(work, setup=before, rounds=ROUNDS, warmup_rounds=2)
