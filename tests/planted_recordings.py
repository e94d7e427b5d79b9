"""Recordings with values that a test knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from netsim_ddp.results.fields import Tool
from netsim_ddp.results.recording import Bucket, Gradients, Parameter, Pass, RankSteps, Recording, Step
from netsim_ddp.results.recording_file import write

SIZES = {"first.weight": [300, 10], "first.bias": [300], "last.weight": [7, 300]}


def step(begin_s: float = 0.0, *, full_s: list[float | None] | None = None, exposed_s: float = 0.0) -> Step:
    """4 ms of data, 10 of forward, 20 of backward, 5 of optimizer; bucket 0 is full at 40% of backward."""
    full = [0.022, 0.034] if full_s is None else full_s
    end = 0.034 + exposed_s
    return Step(
        begin_s=begin_s,
        passes=[Pass(forward_s=0.004, backward_s=0.014, end_s=end)],
        full_s=full,
        done_s=[None if moment is None else end for moment in full],
        optimizer_s=end + 0.001,
        end_s=end + 0.006,
    )


def recording(*, sets: int = 2, ranks: int = 1, **own: Any) -> Recording:
    parameters = [Parameter(name=name, shape=shape) for name, shape in SIZES.items()]
    sizes = [parameter.numel for parameter in parameters]
    count = len(own["buckets"]) if "buckets" in own else 2
    moments: list[float | None] = [0.034 - 0.012 * i / max(count - 1, 1) for i in range(count)][::-1]
    fields: dict[str, Any] = {
        "tool": Tool(version="0"),
        "created_utc": "2026-01-01T00:00:00+00:00",
        "source": "ddp",
        "program": ["train.py"],
        "environment": {},
        "model": "Net",
        "optimizer": "SGD",
        "world_size": ranks,
        "parameters": parameters,
        "buckets": [
            Bucket(parameters=["last.weight"], numel=2100),
            Bucket(parameters=["first.weight", "first.bias"], numel=3300),
        ],
        "ranks": [
            RankSteps(
                rank=rank,
                device="cpu",
                steps=[step(begin, full_s=moments) for begin in (0.0, 0.05)],
            )
            for rank in range(ranks)
        ],
        "gradients": Gradients(
            kind="full", steps=list(range(sets)), kept=sizes, scales=[[0.5] * len(sizes)] * sets
        ),
    }
    return Recording(**fields | own)


def gradients(of: Recording, seed: int = 0) -> list[np.ndarray]:
    """One array for each set of ``of``, of values between -1 and 1."""
    draw = np.random.default_rng(seed)
    count = sum(of.gradients.kept)
    return [draw.uniform(-1, 1, count).astype(np.float16) for _ in of.gradients.steps]


def file(path: Path, of: Recording | None = None) -> Path:
    of = recording() if of is None else of
    write(path, of, gradients(of))
    return path


def apart(**own: Any) -> Recording:
    """Two ranks; rank 1 has all gradients 8 ms after rank 0, at 42 ms; the buckets are through at 50 and 60."""

    def steps(late_s: float) -> list[Step]:
        first, last, end = 0.022 + late_s, 0.034 + late_s, 0.062
        return [
            Step(
                begin_s=0.1 * number,
                passes=[Pass(forward_s=0.004, backward_s=0.014, end_s=end)],
                full_s=[first, last],
                done_s=[0.050, 0.060],
                optimizer_s=end + 0.001,
                end_s=end + 0.006,
            )
            for number in range(3)
        ]

    ranks = [RankSteps(rank=rank, device="cpu", steps=steps(0.008 * rank)) for rank in range(2)]
    return recording(ranks=2, **own).model_copy(update={"ranks": ranks})
