"""Result files of any size for the reports' tests: synthetic, seeded, and never published.

The arithmetic is that of a step (compute + codec + bytes / rate) with noise from repeat to repeat, so that curves
cross and intervals have a width; it measures nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from netsim_ddp.results.fields import Tool
from netsim_ddp.results.record import Cell, LinkRecord, RankRecord, RepeatRecord, Result, StepRecord
from netsim_ddp.results.summary import PHASES, summarise
from netsim_ddp.results.training_record import EpochRecord
from netsim_ddp.units import format_rate

PARAMETERS = 1_078_666
# name, parameters, overlapped, bytes that a rank sends per parameter at P = infinity, codec seconds, gathers
METHODS: tuple[tuple[str, dict[str, Any], bool, float, float, bool], ...] = (
    ("dense", {}, False, 8.0, 0.0, False),
    ("dense", {}, True, 8.0, 0.0, False),
    ("fp16", {}, False, 4.0, 1e-3, False),
    ("powersgd", {"rank": 2}, False, 0.12, 6e-3, False),
    ("topk-allgather", {"ratio": 0.01}, False, 0.05, 3e-3, True),
    ("topk", {"ratio": 0.01, "collective": "split"}, False, 0.1, 3e-3, False),
    ("topk", {"ratio": 0.01, "collective": "split"}, True, 0.1, 3e-3, False),
    ("topk", {"ratio": 0.01, "collective": "split", "values": "fp16"}, True, 0.06, 3.5e-3, False),
)


def sweep(
    *,
    bandwidths: Sequence[int] = (10**7, 10**8, 10**9),
    workers: Sequence[int] = (2, 4),
    methods: int = len(METHODS),
    repeats: int = 3,
    steps: int = 4,
    seed: int = 0,
    model: str | None = "simple_cnn",
    **fields: Any,
) -> Result:
    """One result with a cell for every bandwidth, number of workers and method."""
    noise = random.Random(seed)
    cells = [
        _cell(noise, method, rate, count, repeats, steps, model)
        for rate in bandwidths
        for count in workers
        for method in METHODS[:methods]
    ]
    return make(summarise(cells), **fields)


def make(cells: Sequence[Cell], **fields: Any) -> Result:
    defaults: dict[str, Any] = {
        "tool": Tool(version="0.0"),
        "created_utc": "2026-01-01T00:00:00+00:00",
        "status": "complete",
        "environment": {"platform": "none: synthetic", "cores": 2, "python": "3.11"},
        "scenario": {"model": "simple_cnn", "steps": 4, "repeats": 3, "seed": 0, "ratio": 0.01},
        "command": "netsim sweep synthetic.yaml",
        "model_parameters": PARAMETERS,
    }
    return Result(cells=list(cells), **{**defaults, **fields})


def _cell(
    noise: random.Random,
    method: tuple[str, dict[str, Any], bool, float, float, bool],
    rate: int,
    workers: int,
    repeats: int,
    steps: int,
    model: str | None,
) -> Cell:
    name, params, overlap, bytes_each, codec, gathers = method
    sent = PARAMETERS * bytes_each * ((workers - 1) if gathers else (workers - 1) / workers)
    wire = sent * 8 / rate
    exposed = max(wire - 8e-3, 0.0) if overlap else wire
    records = []
    for _ in range(repeats):
        slower = noise.gauss(1.0, 0.02)
        ranks = []
        for rank in range(workers):
            taken = [_step(noise, slower, codec, exposed, wire) for _ in range(steps)]
            total = round(sent * steps)
            ranks.append(
                RankRecord(
                    rank=rank,
                    tx_bytes=total,
                    rx_bytes=total,
                    payload_bytes=round(total / 1.047),
                    predicted_tx_bytes=float(total),
                    peak_memory_bytes=10**8,
                    residual_bytes=4 * PARAMETERS if "ratio" in params else 0,
                    steps=taken,
                )
            )
        records.append(RepeatRecord(ranks=ranks))
    plain = ",".join([name, *(f"{key}={value}" for key, value in params.items() if key != "collective")])
    return Cell(
        id=f"{plain}{',overlap=on' if overlap else ''} @ {workers} x {format_rate(rate)}",
        method=name,
        params=dict(params),
        model=model,
        axes={"bandwidth": format_rate(rate), "workers": workers},
        workers=workers,
        bandwidth_bps=rate,
        execution="replayed",
        overlap=overlap,
        threads=2,
        link=LinkRecord(
            mechanism="tc",
            requested_bps=rate,
            configured_bps=rate,
            measured_bps=rate * 0.956,
            ceiling_bps=rate * 0.9564,
            retransmits=3,
            congestion="cubic",
            shape=format_rate(rate),
        ),
        repeats=records,
    )


def _step(noise: random.Random, slower: float, codec: float, exposed: float, wire: float) -> StepRecord:
    phases = {
        "compute_s": 12e-3 * slower * noise.gauss(1.0, 0.01),
        "compress_s": codec * 0.6 * slower,
        "communicate_s": exposed * slower,
        "wait_s": 2e-4,
        "decompress_s": codec * 0.4 * slower,
        "optimizer_s": 6e-4,
        "other_s": 1e-4,
    }
    wall = sum(phases.values())
    return StepRecord(wall_s=wall, elapsed_s=wall * 2, hidden_s=wire - exposed, loss=2.3, **phases)


def training(
    *,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 5,
    accuracy: bool = True,
    diverged: bool = False,
    **fields: Any,
) -> Result:
    """A training result: dense and topk, one repeat per seed, each with its curve; ``diverged``: NaN losses."""
    cells = []
    for name, params, _, bytes_each, codec, _ in (METHODS[0], METHODS[5]):
        repeats = []
        for seed in seeds:
            noise = random.Random(f"{name} {seed}")
            curve = []
            for epoch in range(1, epochs + 1):
                reached = 0.97 - 0.5 / epoch + noise.gauss(0, 0.005)
                curve.append(
                    EpochRecord(
                        epoch=epoch,
                        steps=12,
                        learning_rate=0.1,
                        train_loss=float("nan") if diverged else 2.3 / epoch,
                        train_accuracy=reached if accuracy else None,
                        validation_loss=float("nan") if diverged else 2.4 / epoch,
                        validation_accuracy=reached if accuracy else None,
                        elapsed_s=epoch * 12 * (0.013 + codec + bytes_each * PARAMETERS * 0.75 * 8 / 2e7),
                        tx_bytes=round(12 * bytes_each * PARAMETERS * 0.75),
                    )
                )
            ranks = [
                RankRecord(
                    rank=rank,
                    tx_bytes=sum(epoch.tx_bytes for epoch in curve),
                    rx_bytes=0,
                    payload_bytes=0,
                    peak_memory_bytes=10**8,
                    steps=[],
                )
                for rank in range(4)
            ]
            repeats.append(RepeatRecord(ranks=ranks, seed=seed, epochs=curve))
        cells.append(
            Cell(
                id=name,
                method=name,
                params=dict(params),
                model="simple_cnn",
                dataset="digits",
                workers=4,
                bandwidth_bps=20_000_000,
                threads=1,
                link=LinkRecord(
                    mechanism="bucket",
                    requested_bps=20_000_000,
                    configured_bps=20_000_000,
                    measured_bps=20e6,
                    ceiling_bps=19.1e6,
                    shape="20 Mbit/s",
                ),
                repeats=repeats,
            )
        )
    defaults = {"kind": "training", "command": "netsim train --epochs 5"}
    return make(cells, **{**defaults, **fields})


# Single cells with the figures that a test asks for.

DEFAULT_PHASES = {"compute": 50.0, "other": 1.0}


def make_step(
    wall_ms: float, *, loss: float | None = None, hidden: float = 0.0, **phases: float
) -> StepRecord:
    """A step of ``wall_ms`` whose phases (ms, names without ``_s``) are given; what is left communicates."""
    given_ms = {**DEFAULT_PHASES, **phases}
    given_ms.setdefault("communicate", wall_ms - math.fsum(given_ms.values()))
    seconds = {name: given_ms.get(name.removesuffix("_s"), 0.0) / 1e3 for name in PHASES}
    return StepRecord(
        wall_s=wall_ms / 1e3, elapsed_s=wall_ms * 3e-3, hidden_s=hidden / 1e3, loss=loss, **seconds
    )


def make_rank(
    steps: Sequence[StepRecord],
    *,
    rank: int = 0,
    tx: float = 0,
    residual: int = 0,
    predicted: float | None = None,
) -> RankRecord:
    """``tx`` and ``predicted``: bytes per step."""
    sent = round(tx * len(steps))
    return RankRecord(
        rank=rank,
        tx_bytes=sent,
        rx_bytes=sent,
        payload_bytes=sent // 2,
        predicted_tx_bytes=predicted * len(steps) if predicted is not None else None,
        peak_memory_bytes=1000 + rank,
        residual_bytes=residual,
        steps=list(steps),
    )


def make_link(mechanism: str = "tc", **fields: Any) -> LinkRecord:
    defaults = {
        "requested_bps": 10**9,
        "configured_bps": 10**9,
        "measured_bps": 956e6,
        "ceiling_bps": 956.4e6,
        "retransmits": 1,
    }
    return LinkRecord.model_validate({"mechanism": mechanism, **defaults, **fields})


def make_cell(
    method: str,
    runs_ms: Sequence[float],
    *,
    ranks: int = 2,
    steps: int = 4,
    tx: float = 0,
    residual: int = 0,
    predicted: float | None = None,
    loss: float | None = None,
    phases: Mapping[str, float] | None = None,
    link: LinkRecord | None = None,
    **fields: Any,
) -> Cell:
    """A cell with one repeat of equal steps per entry of ``runs_ms``."""
    repeats = [
        RepeatRecord(
            ranks=[
                make_rank(
                    [make_step(ms, loss=loss, **(phases or {}))] * steps,
                    rank=rank,
                    tx=tx,
                    residual=residual,
                    predicted=predicted,
                )
                for rank in range(ranks)
            ]
        )
        for ms in runs_ms
    ]
    defaults: dict[str, Any] = {
        "id": method + (",overlap=on" if fields.get("overlap") else ""),
        "workers": 8,
        "bandwidth_bps": 10**9,
        "threads": 2,
    }
    return Cell(method=method, link=link or make_link(), repeats=repeats, **{**defaults, **fields})


def make_result(cells: Sequence[Cell], **fields: Any) -> Result:
    defaults: dict[str, Any] = {
        "environment": {"cores": 2},
        "scenario": {"model": "resnet50", "steps": 20, "repeats": 3, "seed": 0, "compute_s": 0.05},
        "command": "netsim run",
        "model_parameters": 25_557_032,
    }
    return make(summarise(cells), **{**defaults, **fields})
