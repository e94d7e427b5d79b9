"""What a rank's selection did over the measured steps, as its report carries it to the result file."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from netsim_ddp.compression.statistics import Statistics


def selected(steps: Iterable[Statistics]) -> dict[str, Any] | None:
    """The fields of :class:`netsim_ddp.results.record.SelectionRecord`: every step's totals, and of each layer the mean
    over steps; None where nothing was measured."""
    rows = list(steps)
    if not rows:
        return None
    layers = {name: _mean([row.layers[name] for row in rows]) for name in rows[0].layers}
    return {"steps": [_plain(row) | {"payload_bytes": row.payload_bytes} for row in rows], "layers": layers}


def _plain(row: Statistics) -> dict[str, Any]:
    return {
        "entries": row.entries,
        "ratio": row.ratio,
        "energy_kept": row.energy_kept,
        "residual_norm": row.residual_norm,
    }


def _mean(rows: list[Statistics]) -> dict[str, Any]:
    plain = [_plain(row) for row in rows]
    return {key: None if plain[0][key] is None else fmean(each[key] for each in plain) for key in plain[0]}
