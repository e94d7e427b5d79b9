"""Makes the record of one repeat from what its ranks and the link's counters say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from netsim_ddp.communication.framing import acknowledgement_bytes
from netsim_ddp.link.base import Counters
from netsim_ddp.results.record import RankRecord, RepeatRecord, StepRecord
from netsim_ddp.steps.link_model import LinkModel
from netsim_ddp.steps.phases import StepSample, step_records

_SAMPLES = TypeAdapter(list[StepSample])


def repeat_record(
    records: Sequence[dict[str, Any]],
    counted: Sequence[Sequence[Counters] | None],
    aggregate_bytes: int | None,
    model: LinkModel | None = None,
    message_s: Mapping[str, float] | None = None,
    warmup: int = 0,
) -> tuple[RepeatRecord, int, int]:
    """Join the ranks' samples and the counters around the measured steps.

    Args:
        counted: the link's counters before and after each stretch that was measured; None where it has none.
        aggregate_bytes: the largest packet of the link, which an acknowledgement answers; None on a link that
            charges by arithmetic and knows no acknowledgements.
        model: the link's own, to hold the exchanges against; None where it has none.
        message_s: what a message costs this host, by the kind of exchange.
        warmup: the steps that the connections had carried before.

    Returns:
        The record of the repeat, and how many packets its link dropped and sent again.
    """
    samples = [_SAMPLES.validate_python(record["samples"]) for record in records]
    rows = list(zip(*samples, strict=True))
    if model is not None and rows:
        model.warm(rows[0], warmup)
    steps = [_step_records(row, model) for row in rows]
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
                host_late_s=record["charged"][2],
                host_late_count=round(record["charged"][3]),
                parameters_sha256=record["sha256"],
                selection=record["statistics"],
                steps=[row[rank] for row in steps],
            )
        )
    pairs = [pair for stretch in stretches for pair in zip(*stretch, strict=True)]
    return (
        RepeatRecord(ranks=ranks, message_s=dict(message_s or {})),
        sum(after.drops - before.drops for before, after in pairs),
        sum(after.retransmits - before.retransmits for before, after in pairs),
    )


def _step_records(samples: Sequence[StepSample], model: LinkModel | None) -> list[StepRecord]:
    """The records of one step, with what the link's model says of its exchanges."""
    records = step_records(samples)
    found = None if model is None else model.step(samples)
    if found is None:
        return records
    update = {"exchange_s": found.took_s, "model_s": found.model_s, "line_s": found.line_s}
    return [record.model_copy(update=update) for record in records]
