"""What one message costs this host beside the link: measured by a run's ranks, all at once, before its first step."""

from __future__ import annotations

import time
from statistics import median

import torch

from netsim_ddp.communication.exchange import PeerExchange, all_reduce
from netsim_ddp.communication.segments import Group, Wire
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.ranks.channel import RankChannel
from netsim_ddp.steps.execution import Spend
from netsim_ddp.steps.link_model import LinkModel

ROUNDS, FEWEST, WARM_UP = 20, 3, 3
BUDGET_S = (
    0.5  # per kind of exchange: with a long delay, or with many ranks on this host, fewer rounds must do
)
TINY = 64  # bytes that a rank sends each other one
WORKED, TOGETHER = 16 << 20, 128 << 20
"""Bytes that each rank, and all of them, write before each round where ranks compute: a step's messages find caches
full of something else, too."""
PAUSE_S = 5e-3
"""What each rank spends before each round where its work is replayed."""


def message_costs(
    channel: RankChannel, group: Group, spec: LinkSpec, spend: Spend | None
) -> dict[str, float]:
    """Seconds that this host adds to every message, by the kind of exchange: of an all-reduce and of an exchange with
    every peer.

    The smallest ones are timed from the last rank's start to the last one's end, each after some work, as in a step;
    what the link's own model says of them is taken off, and the rest divided by the messages that a rank sends. Every
    rank returns the same numbers. All ranks share this host's clock.

    Args:
        spend: how ranks whose work is replayed spend it, until a moment; None where they do it.
    """

    def spans(wire: Wire, rounds: int) -> list[tuple[float, float]]:
        return _spans(channel, wire, rounds, ranks, spend)

    ranks = group.world_size
    rooms = [torch.zeros(TINY, dtype=torch.uint8) for _ in range(2 * ranks)]
    exchange = PeerExchange("cost", group, rooms[:ranks], rooms[ranks:], TINY)
    model = LinkModel(spec, {})
    found = {}
    reduction = all_reduce(torch.zeros(ranks * TINY // 4), group)
    for wire, count in ((reduction, 2 * (ranks - 1)), (exchange, ranks - 1)):
        # Computed once: it takes as long as the square of the ranks, which share this host's processors.
        ideal = channel.gather("ideal", model.alone(wire.sent(), ranks) if group.rank == 0 else None)[0]
        first = channel.gather("cost", spans(wire, WARM_UP))[0]
        # A round with all that is written before it.
        a_round = (first[-1][0] - first[0][0]) / (WARM_UP - 1)
        rounds = max(FEWEST, min(ROUNDS, int(BUDGET_S / max(ideal, a_round, 1e-6))))
        told = channel.gather("cost", spans(wire, rounds))
        took = [
            max(end for _, end in row) - max(begin for begin, _ in row) for row in zip(*told, strict=True)
        ]
        found[wire.sent().kind] = max(0.0, (median(took) - ideal) / count)
    return found


def _spans(
    channel: RankChannel, wire: Wire, rounds: int, ranks: int, spend: Spend | None
) -> list[tuple[float, float]]:
    """When each of ``rounds`` exchanges began and ended on this rank."""
    work = torch.zeros(min(WORKED, TOGETHER // ranks) // 4, dtype=torch.float32, device="cpu")
    channel.gather("costs")
    spans = []
    for _ in range(rounds):
        if spend is None:
            work.add_(1.0)
        else:
            spend(time.monotonic() + PAUSE_S)
        begin = time.monotonic()
        wire.run()
        spans.append((begin, time.monotonic()))
    return spans
