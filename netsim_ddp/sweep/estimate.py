"""How long a sweep will take: from what its cells took before, else from bytes / line rate, arithmetic and start-up.

The constants are round figures of one 2-core machine, good for an order of magnitude; as soon as repeats have been
measured, here or in an earlier result, the rest is scaled to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.methods import MethodSpec
from netsim_ddp.names import DATASETS
from netsim_ddp.results.record import Cell
from netsim_ddp.scenario import available_cores
from netsim_ddp.sweep.plan import Run, Unit, trains

IMPORT_S, LINK_S, PROBE_S = 5.0, 0.3, 1.2
"""A fork server that has imported torch; a tc link; its probe."""
RANKS_S, RANK_S = 0.5, 0.1
"""Starting the ranks of a repeat, and each of them: forked, model built, group joined, link probed."""
FLOPS_PER_CORE = 15e9
CODEC_PER_PARAMETER_S = 5e-9
MESSAGE_S = 0.2e-3
PACKED_BYTES = {"fp32": 5.05, "fp16": 3.05, "bf16": 3.05, "int8": 2.05, "int8-stochastic": 2.05}
HEADERS = 1514 / 1448
LOOPBACK_BPS = 10e9
ROUNDS_PER_MESSAGE = 2  # the receiver's readiness, then the message


@dataclass(frozen=True)
class _Model:
    parameters: float
    multiply_adds: float
    """Of the forward pass of one input."""


MODELS: Mapping[str, _Model] = {
    "simple_cnn": _Model(1.08e6, 2.3e6),
    "resnet18": _Model(11.7e6, 1.8e9),
    "resnet50": _Model(25.6e6, 4.1e9),
}
UNKNOWN = _Model(10e6, 50e6)


@dataclass
class Estimate:
    """Seconds of units, from ``known`` means by cell where there are some, else from :func:`repeat_seconds`, scaled by
    how much longer or shorter than that the known ones took."""

    known: dict[str, list[float]] = field(default_factory=dict)
    _formulas: dict[str, float] = field(default_factory=dict)

    def learn(self, unit: Unit, seconds: float) -> None:
        self._formulas[unit.cell.id] = repeat_seconds(unit)
        self.known.setdefault(unit.cell.id, []).append(seconds / len(unit.repeats))

    def of(self, unit: Unit) -> float:
        count = len(unit.repeats)
        if times := self.known.get(unit.cell.id):
            return count * sum(times) / len(times)
        return count * repeat_seconds(unit) * self._scale()

    def total(self, units: Iterable[Unit]) -> float:
        return math.fsum(self.of(unit) for unit in units)

    def _scale(self) -> float:
        both = [
            (sum(self.known[name]) / len(self.known[name]), took) for name, took in self._formulas.items()
        ]
        expected = math.fsum(formula for _, formula in both)
        return math.fsum(took for took, _ in both) / expected if expected else 1.0


def earlier(cells: Iterable[Cell]) -> dict[str, list[float]]:
    """What the repeats of an earlier result took, by cell."""
    found = {}
    for cell in cells:
        times = [repeat.took_s for repeat in cell.repeats if repeat.took_s is not None]
        if times:
            found[cell.id] = times
    return found


def start_seconds(runs: Sequence[Run]) -> float:
    """Links, their probes and interpreters, once for all."""
    links = {run.wanted for run in runs}
    shaped = [how for spec, how in links if how in ("tc", "auto") and spec.workers > 1]
    servers = {(run.settings.model, run.settings.dataset, run.settings.threads) for run in runs}
    return len(shaped) * (LINK_S + PROBE_S) + len(servers) * IMPORT_S


def repeat_seconds(unit: Unit) -> float:
    """One repeat by the formulas."""
    settings: Any = unit.run.settings
    workers, cores = int(settings.workers), available_cores()
    model = MODELS.get(settings.model, UNKNOWN)
    emulated: float | None = getattr(settings, "compute_s", None)
    local = 6 * model.multiply_adds * settings.batch_size / (FLOPS_PER_CORE * max(1, settings.threads))
    if emulated is not None:
        local = emulated
    if unit.cell.method.name != "dense":
        local += CODEC_PER_PARAMETER_S * model.parameters
    crowded = max(1.0, workers * settings.threads / cores)
    steps = _steps(settings)
    wire = _wire_seconds(unit.cell.method, settings, steps)
    step = float(local) * crowded + wire
    if getattr(settings, "execution", "") == "replayed":
        # Twice: for real, one rank after the other, then for the clock.
        really = (0.0 if emulated is not None else local * workers) + wire
        step = float(really + local + wire)
    return RANKS_S + RANK_S * workers * max(1.0, workers / cores) + steps * step


def _steps(settings: Any) -> int:
    """Of one repeat, on one rank."""
    if not trains(settings):
        return int(settings.steps + settings.warmup)
    known = DATASETS.get(settings.dataset or "")
    images = known.train if known else 50_000
    count = max(1, images // (settings.batch_size * settings.workers * settings.accumulate))
    return int(settings.epochs * min(count, settings.steps_per_epoch or count))


def _wire_seconds(method: MethodSpec, settings: Any, steps: int) -> float:
    """Bytes / line rate and a few messages of one step; about, where a method's bytes depend on the model's shapes."""
    workers = int(settings.workers)
    if workers == 1:
        return 0.0
    parameters = MODELS.get(settings.model, UNKNOWN).parameters
    ring = 2 * (workers - 1) / workers
    packed = PACKED_BYTES.get(str(method.params.get("values", "fp32")), PACKED_BYTES["fp32"])
    kept = float(method.params.get("ratio", 0.01)) * parameters * packed
    sent = {
        "fp16": ring * 2 * parameters,
        "bf16": ring * 2 * parameters,
        "powersgd": ring * 4 * parameters * 0.005 * float(method.params.get("rank", 1)),
        "topk": min(ring, workers - 1) * kept,
        "topk-allgather": (workers - 1) * kept,
    }.get(method.name, ring * 4 * parameters)
    around = method.name not in ("topk", "topk-allgather")
    rounds = 2 * (workers - 1) if around else 2
    if settings.link == "none":
        return sent * 8 / LOOPBACK_BPS + rounds * MESSAGE_S
    spec: LinkSpec = settings.link_spec()
    seconds = sent * HEADERS * 8 / spec.lowest_bps
    if spec.peak_bps is not None:  # what the credit covers goes at the peak
        covered = min(1.0, (spec.credit_bytes or 0) / (sent * HEADERS * steps))
        seconds *= 1 - covered * (1 - spec.lowest_bps / spec.peak_bps)
    return seconds + rounds * (MESSAGE_S + ROUNDS_PER_MESSAGE * spec.delay_s)
