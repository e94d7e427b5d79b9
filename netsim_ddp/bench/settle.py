"""From what the ranks and the counters say to the records of one repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from netsim_ddp.bench.phases import StepSample, settle
from netsim_ddp.communication.framing import acknowledgement_bytes
from netsim_ddp.link.base import Counters
from netsim_ddp.results.record import RankRecord, RepeatRecord


@dataclass(frozen=True)
class Settled:
    """One repeat, and what its link lost on the way."""

    repeat: RepeatRecord
    drops: int
    retransmits: int


def settle_repeat(
    records: Sequence[dict[str, Any]],
    counted: Sequence[Sequence[Counters] | None],
    aggregate_bytes: int | None,
) -> Settled:
    """Join the ranks' samples and the counters around the measured steps.

    Args:
        counted: the link's counters before and after each stretch that was measured; None where it has none.
        aggregate_bytes: the largest packet of the link, which an acknowledgement answers; None on a link that
            charges by arithmetic and knows no acknowledgements.
    """
    samples = [[_sample(raw) for raw in record["samples"]] for record in records]
    steps = [settle(row) for row in zip(*samples, strict=True)]
    known = [counters for counters in counted if counters is not None]
    stretches = list(zip(known[::2], known[1::2], strict=True))
    ranks = []
    for rank, record in enumerate(records):
        tx, rx = (round(charge) for charge in record["charged"][:2])
        if stretches:
            tx = sum(after[rank].tx_bytes - before[rank].tx_bytes for before, after in stretches)
            rx = sum(after[rank].rx_bytes - before[rank].rx_bytes for before, after in stretches)
        predicted = float(record["predicted_bytes"])
        if aggregate_bytes is not None:
            predicted += acknowledgement_bytes(predicted, aggregate_bytes)  # a rank receives what it sends
        ranks.append(
            RankRecord(
                rank=rank,
                tx_bytes=tx,
                rx_bytes=rx,
                payload_bytes=record["payload_bytes"],
                predicted_tx_bytes=predicted,
                peak_memory_bytes=record["peak_memory_bytes"],
                residual_bytes=record["residual_bytes"],
                parameters_sha256=record["sha256"],
                selection=record["statistics"],
                steps=[row[rank] for row in steps],
            )
        )
    pairs = [pair for stretch in stretches for pair in zip(*stretch, strict=True)]
    drops = sum(after.drops - before.drops for before, after in pairs)
    retransmits = sum(after.retransmits - before.retransmits for before, after in pairs)
    return Settled(RepeatRecord(ranks=ranks), drops, retransmits)


def _sample(raw: dict[str, Any]) -> StepSample:
    laps = [(phase, begin, end) for phase, begin, end in raw["laps"]]
    transfers = [(begin, end) for begin, end in raw["transfers"]]
    return StepSample(**{**raw, "laps": laps, "transfers": transfers})
