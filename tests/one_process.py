"""The ranks of a sparse method in one process: their messages are handed over by copying."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from netsim_ddp.communication.exchange import PeerExchange
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Group, Local, Method


@contextmanager
def alone() -> Iterator[None]:
    """A process group of one, which methods ask for its kind."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Ranks:
    """``ranks`` instances of ``kind``, one for each, on parameters of these shapes.

    Make them inside :func:`alone`.
    """

    def __init__(self, kind: type[Method], shapes: Sequence[Any], ranks: int, **options: Any) -> None:
        named = [(f"p{i}", nn.Parameter(torch.empty(shape))) for i, shape in enumerate(shapes)]
        self.methods = [
            kind(FlatGradients(named), Group(rank, ranks), **options)  # type: ignore[call-arg]
            for rank in range(ranks)
        ]
        self.segments = [method.segments() for method in self.methods]

    def step(self, gradients: Sequence[Tensor], *, lent: bool = False) -> list[Tensor]:
        """One step of all, ``gradients[r]`` (flat) being rank r's; ``lent`` where that is possible.

        Returns:
            each rank's average, float32 [N].
        """
        for method, gradient in zip(self.methods, gradients, strict=True):
            if lent and method.borrows:
                method.flat.lend([view.clone() for view in method.flat.views_of(gradient)])
            else:
                method.flat.data.copy_(gradient)
        for pieces in zip(*self.segments, strict=True):
            if isinstance(pieces[0], Local):
                for piece in pieces:
                    piece.run()
            else:
                hand_over(pieces)
        averages = [
            method.average.clone()
            if method.flat.lent is None
            else torch.cat([x.view(-1) for x in method.flat.lent])
            for method in self.methods
        ]
        for method in self.methods:
            method.flat.lent = None
        return averages


def hand_over(exchanges: Sequence[Any]) -> None:
    """What :meth:`PeerExchange.run` does on ranks of their own."""
    for sender, exchange in enumerate(exchanges):
        assert isinstance(exchange, PeerExchange)
        for receiver, size in enumerate(exchange.sizes):
            if receiver != sender:
                room = exchanges[receiver]._incoming[sender]
                room[:size].copy_(exchange._outgoing[receiver][:size])
