"""How long a sweep will take: from what its cells took before, else from bytes / line rate, arithmetic and start-up.

The constants are round figures of one 2-core machine, where they are right to a factor of two; what else the machine
does right now is reckoned with. As soon as repeats have been measured, here or in an earlier result, the rest is scaled
to them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.methods import entry_of
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.names import DATASETS, TORCHVISION_PREFIX
from netsim_ddp.results.record import Cell
from netsim_ddp.scenario import available_cores, ranks_at_once
from netsim_ddp.sweep.plan import Run, Unit, trains

IMPORT_S, LINK_S, LINK_RANK_S, PROBE_S = 5.0, 0.2, 0.04, 1.2
"""A fork server that has imported torch; a tc link, and each of its ranks; its probe."""
RANKS_S, RANK_S = 0.5, 0.1
"""Starting the ranks of a repeat, and each of them: forked, model built, group joined, link probed."""
FLOPS_PER_CORE = 15e9
CODEC_PER_PARAMETER_S, CODEC_PER_ENTRY_S = 5e-9, 60e-9
"""Selecting among the parameters; packing, sending on and adding what was selected."""
MESSAGE_S = 0.2e-3
HEADERS = 1514 / 1448
LOOPBACK_BPS = 10e9
ROUNDS_PER_MESSAGE = 2  # the receiver's readiness, then the message


@dataclass(frozen=True)
class _Model:
    parameters: float
    multiply_adds: float
    """Multiplications of the forward pass of one input of ``size`` pixels or tokens; they grow with its size."""
    size: int


MODELS: Mapping[str, _Model] = {
    "simple_cnn": _Model(1.08e6, 2.26e6, 8 * 8),
    "resnet18": _Model(11.7e6, 1.81e9, 224 * 224),
    "resnet50": _Model(25.6e6, 4.09e9, 224 * 224),
    "resnet18-small": _Model(11.2e6, 555e6, 32 * 32),
    "resnet50-small": _Model(23.5e6, 1.3e9, 32 * 32),
    "transformer": _Model(2.23e6, 7.34e6, 64),
}
TORCHVISION = _Model(20e6, 2e9, 224 * 224)
UNKNOWN = _Model(10e6, 50e6, 32 * 32)
RECORDED_SETS = 3
"""Real steps that a rank takes for the gradients of ``--compute``, once for all repeats of a fork server."""
READY_PASSES = 6
"""Passes of the real batch on one rank alone, likewise once: they show when its gradients are ready."""
IMAGES = 50_000
"""The size that is assumed of a data set whose files decide."""


@dataclass
class Estimate:
    """Seconds of units, from ``known`` means by cell where there are some, else from :func:`repeat_seconds`, scaled by
    how much longer or shorter than that the known ones took."""

    known: dict[str, list[float]] = field(default_factory=dict)
    _formulas: dict[str, float] = field(default_factory=dict)

    def add(self, unit: Unit, seconds: float) -> None:
        self._formulas[unit.cell.id] = repeat_seconds(unit)
        self.known.setdefault(unit.cell.id, []).append(seconds / len(unit.repeats))

    def of(self, unit: Unit) -> float:
        if times := self.known.get(unit.cell.id):
            return len(unit.repeats) * sum(times) / len(times)
        return len(unit.repeats) * repeat_seconds(unit) * self._scale()

    def total(self, units: Iterable[Unit]) -> float:
        return math.fsum(self.of(unit) for unit in units)

    def _scale(self) -> float:
        took = math.fsum(sum(self.known[name]) / len(self.known[name]) for name in self._formulas)
        expected = math.fsum(self._formulas.values())
        return took / expected if expected else 1.0


def earlier(cells: Iterable[Cell]) -> dict[str, list[float]]:
    """What the repeats of an earlier result took, by cell."""
    took = {cell.id: [each.took_s for each in cell.repeats if each.took_s is not None] for cell in cells}
    return {name: times for name, times in took.items() if times}


def start_seconds(runs: Sequence[Run]) -> float:
    """Links, their probes, interpreters and recordings, once for all."""
    shaped = [
        spec for spec, how in {run.wanted for run in runs} if how in ("tc", "auto") and spec.workers > 1
    ]
    made = math.fsum(LINK_S + LINK_RANK_S * spec.workers + PROBE_S for spec in shaped)
    servers: dict[tuple[object, ...], list[Any]] = {}
    for run in runs:
        settings: Any = run.settings
        emulated = getattr(settings, "compute_s", None) is not None
        recording = (settings.seed, settings.batch_size) if emulated else ()
        key = (settings.model, settings.dataset, settings.threads, trains(settings), *recording)
        servers.setdefault(key, []).append(settings)
    recorded = 0.0
    for users in servers.values():
        most = max(users, key=lambda each: each.workers)
        if getattr(most, "compute_s", None) is not None:
            recorded += RECORDED_SETS * _compute_seconds(most) * _crowded(most)
            if any(method.params.get("overlap") for each in users for method in each.methods):
                recorded += READY_PASSES * _compute_seconds(most)
    return made + (len(servers) * IMPORT_S + recorded) * _slowed(1)


def repeat_seconds(unit: Unit) -> float:
    """One repeat by the formulas, with its share of the rates that are tried before it."""
    settings: Any = unit.run.settings
    workers, cores = int(settings.workers), available_cores()
    emulated = _emulated_seconds(settings)
    replayed = getattr(settings, "execution", "") == "replayed"
    slowed = _slowed(settings.threads if replayed else workers * settings.threads)
    codec = 0.0
    if not entry_of(unit.cell.method.name).is_baseline:
        kept = float(unit.cell.method.params.get("ratio", 0.0))
        codec = (CODEC_PER_PARAMETER_S + CODEC_PER_ENTRY_S * kept) * _model(settings).parameters * slowed
    compute = _compute_seconds(settings) * slowed if emulated is None else emulated
    crowded = _crowded(settings)
    steps = _steps(settings)
    wire, messages = _wire_seconds(unit.cell.method, settings, steps)
    if replayed:
        # Twice: for real, so many ranks at a time as there are cores for, then for the clock.
        real = codec + (compute if emulated is None else 0.0)
        step = (
            real * math.ceil(workers / ranks_at_once(workers, settings.threads))
            + wire
            + messages
            + compute
            + codec
            + wire
            + messages
        )
    else:
        # What sleeps for a clock's sake takes no processor from the others.
        step = compute * (crowded if emulated is None else 1.0) + codec * crowded + wire + messages * crowded
    started = (RANKS_S + RANK_S * workers * max(1.0, workers / cores)) * _slowed(workers)
    trainings = 1 + len(getattr(settings, "tuned_rates", ())) / len(unit.repeats)
    return float(trainings) * (started + steps * step + _validation_seconds(settings) * slowed)


def _emulated_seconds(settings: Any) -> float | None:
    """Seconds of a step's local work that is not done but waited for; None where it is done."""
    recording = getattr(settings, "recording", None)
    if recording is None:
        return getattr(settings, "compute_s", None)
    return float((recording.computed_s + recording.after_s) * settings.scale_compute)


def _model(settings: Any) -> _Model:
    if (recording := getattr(settings, "recording", None)) is not None:
        return _Model(recording.parameters, 0.0, 1)
    name = str(settings.model)
    return MODELS.get(name, TORCHVISION if name.startswith(TORCHVISION_PREFIX) else UNKNOWN)


def _forward_seconds(settings: Any) -> float:
    """Returns the seconds of one input's forward pass on one rank's threads, on a machine that does nothing else."""
    model, dataset = _model(settings), DATASETS.get(settings.dataset or "")
    size = model.size
    if dataset is not None:
        size = math.prod(dataset.shape[1:] if dataset.kind == "images" else dataset.shape)
    cores = float(max(1, settings.threads))
    return 2 * model.multiply_adds * size / model.size / (FLOPS_PER_CORE * cores)


def _compute_seconds(settings: Any) -> float:
    """Forward and backward of one batch: the backward pass does twice the forward's arithmetic."""
    return 3 * _forward_seconds(settings) * float(settings.batch_size)


def _validation_seconds(settings: Any) -> float:
    """Returns the seconds of validation of all epochs of a training; the ranks share the validation set."""
    if not trains(settings):
        return 0.0
    dataset = DATASETS.get(settings.dataset or "")
    inputs = (dataset.validation if dataset else None) or IMAGES / 10
    share = inputs / settings.workers * _crowded(settings)
    return float(settings.epochs * share * _forward_seconds(settings))


def _crowded(settings: Any) -> float:
    """Returns how many of the ranks' threads share a core."""
    return max(1.0, float(settings.workers * settings.threads) / available_cores())


def _slowed(threads: int) -> float:
    """How much longer ``threads`` threads take beside what the machine does now.

    At most as if every runnable thread got the same share, at least not at all (others may be of lower priority, or
    soon done): the geometric mean of the two is never further from the truth than the root of that span.
    """
    cores, others = available_cores(), busy_threads()
    wanted = max(1, threads)
    return math.sqrt(max(1.0, min(cores, wanted) * (wanted + others) / (cores * wanted)))


def busy_threads() -> float:
    """The load of the last minute."""
    return os.getloadavg()[0]


def _steps(settings: Any) -> int:
    """Returns the number of steps of one repeat, on one rank."""
    if not trains(settings):
        return int(settings.steps + settings.warmup)
    known = DATASETS.get(settings.dataset or "")
    images = (known.train if known else None) or IMAGES
    count = max(1, images // (settings.batch_size * settings.workers * settings.accumulate))
    return int(settings.epochs * min(count, settings.steps_per_epoch or count))


def _wire_seconds(method: MethodSpec, settings: Any, steps: int) -> tuple[float, float]:
    """Bytes / line rate of one step with the rounds' delay, and what this host takes for its messages; about, where a
    method's bytes depend on the model's shapes."""
    workers = int(settings.workers)
    if workers == 1:
        return 0.0, 0.0
    entry = entry_of(method.name)
    sent = entry.wire_bytes(_model(settings).parameters, workers, method.params)
    rounds = entry.rounds(workers)
    if settings.link == "none":
        return sent * 8 / LOOPBACK_BPS, rounds * MESSAGE_S
    spec: LinkSpec = settings.link_spec()
    seconds = sent * HEADERS * 8 / spec.lowest_bps
    if spec.peak_bps is not None:  # what the credit covers goes at the peak
        covered = min(1.0, (spec.credit_bytes or 0) / (sent * HEADERS * steps))
        seconds *= 1 - covered * (1 - spec.lowest_bps / spec.peak_bps)
    return seconds + rounds * ROUNDS_PER_MESSAGE * spec.delay_s, rounds * MESSAGE_S
