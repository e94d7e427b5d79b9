"""Which collective ``topk`` uses: fewer bytes against fewer rounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.methods.topk_allgather import TopKAllGather
from netsim_ddp.communication.methods.topk_split import TopKSplitReduce
from netsim_ddp.communication.segments import Group, Method
from netsim_ddp.compression.codec import Codec
from netsim_ddp.compression.topk import entry_count

COLLECTIVES = ("auto", "split", "allgather")


def collective_seconds(
    collective: str, world_size: int, payload: float, link_bps: float, round_s: float
) -> float:
    """What a step's exchanges take at least: bytes / line rate, and ``round_s`` for each sequential round.

    Args:
        payload: bytes of one rank's entries. With P ranks an all-gather sends (P-1) of them in one round,
            split-reduce 2 (P-1)/P in two.
    """
    if collective == "allgather":
        return (world_size - 1) * payload * 8 / link_bps + round_s
    return 2 * (world_size - 1) / world_size * payload * 8 / link_bps + 2 * round_s


def choose_collective(world_size: int, payload: float, link_bps: float, round_s: float) -> str:
    """``split`` or ``allgather``, whichever takes less; of equals the all-gather, which applies every entry."""
    split, gathered = (
        collective_seconds(name, world_size, payload, link_bps, round_s) for name in ("split", "allgather")
    )
    return "split" if split < gathered else "allgather"


def collective_of(numel: int, group: Group, options: Mapping[str, Any]) -> str:
    """``split`` or ``allgather``: what ``options`` of ``topk`` ask for, or by cost.

    Args:
        numel: of the gradient that is exchanged as one.

    Raises:
        ValueError: another word for the collective.
    """
    collective = options.get("collective", "auto")
    if collective not in COLLECTIVES:
        raise ValueError(f"collective {collective!r} is not one of {', '.join(COLLECTIVES)}")
    if collective != "auto":
        return str(collective)
    if "keep" in options:  # which is split-reduce's alone
        return "split"
    codec = Codec(**{key: options[key] for key in ("values", "indices") if key in options})
    payload = codec.expected(entry_count(numel, options.get("ratio", 0.01)), numel)
    return choose_collective(group.world_size, payload, group.link_bps, group.round_s)


def topk(flat: FlatGradients, group: Group, *, collective: str = "auto", **options: Any) -> Method:
    """``topk``: split-reduce or an all-gather, by cost from P, k, the link's rate and its round time.

    Args:
        collective: ``auto``, ``split`` or ``allgather``.
        options: as :class:`TopKSplitReduce` takes them; ``keep`` is split-reduce's alone and asks for it.

    Raises:
        ValueError: another word for the collective.
    """
    chosen = collective_of(flat.numel, group, {**options, "collective": collective})
    method = TopKSplitReduce if chosen == "split" else TopKAllGather
    return method(flat, group, **options)
