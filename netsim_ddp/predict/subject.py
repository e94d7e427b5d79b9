"""Whose training is predicted: the layout of its gradients, what they look like, and when they are ready."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netsim_ddp.communication.executor import ddp_buckets
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.methods.topk import collective_of
from netsim_ddp.communication.parameters import check_types
from netsim_ddp.communication.segments import SMALL_ROUND_S, Group
from netsim_ddp.methods import entry_of, takes
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.predict.clock import Computed
from netsim_ddp.predict.rehearsal import Rehearsal, rehearse
from netsim_ddp.results.ready import ReadyTimes
from netsim_ddp.results.recorded import RecordedTraining
from netsim_ddp.results.recording import Recording
from netsim_ddp.scenario.predict import PredictScenario
from netsim_ddp.steps.execution import substituted_seconds
from netsim_ddp.steps.ready_task import PASSES, Passes
from netsim_ddp.steps.recorded_program import schedule_of
from netsim_ddp.workloads.emulated import record_gradient_sets
from netsim_ddp.workloads.recording.model import RecordedModel, layout
from netsim_ddp.workloads.recording.reconstruction import reconstruct, sets_of
from netsim_ddp.workloads.workload import Workload, build_workload

GRADIENT_SETS = 2
BATCH = 2
"""Of the passes whose gradients are taken: what matters is how they are distributed."""
READY_S = 4.0
"""The moments hang little on the batch: with 4 examples ResNet-50's five buckets are full within two of 50 ms of when
they are with 32, which is as much as one measurement differs from the next."""
BUILDS = {
    "model", "dataset", "data_dir", "text", "loss_function", "batch_size", "seed", "threads", "recording",
}  # fmt: skip
"""The settings that decide what a subject is."""


@dataclass
class Subject:
    """A training's gradients.

    Attributes:
        parts: DDP's buckets, first and last + 1 parameter of each.
        recording: where the training was recorded.
        workload: of a model that was not, until its gradients' moments are known.
        ready: when they are ready.
        rehearsed: what has been rehearsed of it.
    """

    flat: FlatGradients
    gradients: Sequence[Sequence[Tensor]]
    parts: Sequence[tuple[int, int]]
    recording: Recording | None = None
    workload: Workload | None = None
    ready: ReadyTimes | None = None
    rehearsed: dict[tuple[object, ...], Rehearsal] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        return self.flat.numel

    def buckets(self, overlap: bool) -> list[tuple[int, int]]:
        return list(self.parts) if overlap else [(0, len(self.flat.parameters))]

    def computed(self, scenario: PredictScenario, buckets: Sequence[tuple[int, int]]) -> list[Computed]:
        """What each of some steps computes, as ``netsim run --compute`` plays it, or ``netsim run --recording``: of the
        recorded ranks the last one counts at every moment, since all wait for it."""
        if self.recording is not None:
            return _recorded_steps(self.recording, scenario.scale_compute)
        assert scenario.compute_s is not None
        if len(buckets) == 1 or self.ready is None:
            return [Computed((scenario.compute_s,) * len(buckets), scenario.compute_s)]
        names = [self.flat.names[first:last] for first, last in buckets]
        return [Computed(tuple(self.ready.bucket_times(scenario.compute_s, names)), scenario.compute_s)]

    def rehearse(
        self, scenario: PredictScenario, method: MethodSpec, repeat: int, at_once: int = 1
    ) -> Rehearsal:
        """The step of ``method``, by ``at_once`` processes at the same time; from memory where only the link differs,
        unless a method chooses by it."""
        spec, params = scenario.link_spec(), dict(method.params)
        buckets = self.buckets(bool(params.pop("overlap", False)))
        group = Group(
            0, scenario.workers, link_bps=float(spec.slowest_bps), round_s=SMALL_ROUND_S + 2 * spec.delay_s
        )
        chosen = tuple(_chosen(method, self.flat, bucket, group) for bucket in buckets)
        times = scenario.codec_from
        key = (method.id, scenario.workers, chosen, None if times is None else times.name, repeat, at_once)
        if key not in self.rehearsed:
            self.rehearsed[key] = rehearse(
                method.name,
                params,
                self.flat,
                buckets,
                self.gradients,
                group,
                None if times is None else lambda work: substituted_seconds(times, work),
                as_ddp=self.recording is not None and "gloo" in entry_of(method.name).ddp_backends,
                at_once=at_once,
            )
        return self.rehearsed[key]


def _chosen(method: MethodSpec, flat: FlatGradients, bucket: tuple[int, int], group: Group) -> str | None:
    """How the method would exchange that part on the group's link."""
    options = {key: value for key, value in method.params.items() if key != "overlap"}
    numel = sum(parameter.numel() for parameter in flat.parameters[slice(*bucket)])
    return collective_of(numel, group, options) if takes(method.name, "collective") else None


def subject_of(scenario: PredictScenario) -> Subject:
    """The subject of ``scenario``, built once for all links, workers and methods.

    Raises:
        UsageError: the model cannot be built or trained.
    """
    return _built(scenario.model_copy(update={"methods": ()}).model_dump_json(include=BUILDS))


def forget() -> None:
    """Let go of the last subject, and of the memory that its gradients take."""
    _built.cache_clear()


@lru_cache(maxsize=1)
def _built(settings: str) -> Subject:
    values: dict[str, Any] = json.loads(settings)
    torch.set_num_threads(values["threads"])
    if values["recording"] is not None:
        return _recorded(RecordedTraining(**values["recording"]), values["seed"])
    workload = _workload(values, values["batch_size"])
    gradients = record_gradient_sets(workload, GRADIENT_SETS, BATCH)
    flat = FlatGradients(workload.model.named_parameters())
    return Subject(flat, gradients, ddp_buckets(flat), workload=workload)


def _recorded(summary: RecordedTraining, seed: int) -> Subject:
    recording = summary.open()
    parameters, parts = layout(recording)
    model = RecordedModel(parameters, torch.device("cpu"))
    check_types(model.named_parameters())
    gradients = [[torch.empty(each.shape) for each in parameters] for _ in range(sets_of(recording))]
    reconstruct(Path(summary.path), recording, gradients, seed)
    return Subject(FlatGradients(model.named_parameters()), gradients, parts, recording)


def _recorded_steps(recording: Recording, scale: float) -> list[Computed]:
    found = []
    for steps in zip(*(rank.steps for rank in recording.ranks), strict=True):
        each = [schedule_of(step, scale) for step in steps]
        ready = [max(moments) for moments in zip(*(one.ready_s for one in each), strict=True)]
        found.append(
            Computed(
                tuple(ready), ready[-1], max(one.after_s for one in each), max(one.forward_s for one in each)
            )
        )
    return found


def _workload(values: dict[str, Any], batch_size: int) -> Workload:
    return build_workload(
        model=values["model"],
        dataset=values["dataset"],
        batch_size=batch_size,
        rank=0,
        world_size=1,
        seed=values["seed"],
        device="cpu",
        data_dir=values["data_dir"],
        text=values["text"],
        loss=values["loss_function"],
        try_training=True,
        refuse=check_types,
    )


def measure_ready_times(subject: Subject, scenario: PredictScenario, machine: str) -> ReadyTimes:
    """When a backward pass of ``subject``, a model that was not recorded, has each gradient ready: measured here, in
    passes of the scenario's batch, or of as many of its examples as :data:`READY_S` has time for."""
    workload = subject.workload
    assert workload is not None
    inputs, targets = workload.next_batch()
    passes = Passes(workload, torch.device("cpu"), lambda _: None, subject.flat)
    batch = passes.largest_batch(inputs, targets, READY_S)
    forward, shares = passes.measure(inputs[:batch], targets[:batch])
    subject.ready = ReadyTimes(
        model=scenario.model,
        batch_size=batch,
        passes=PASSES,
        machine=machine,
        threads=scenario.threads,
        forward_share=forward,
        parameters=shares,
    )
    subject.workload = None
    for parameter in workload.model.parameters():  # nobody computes with them any more
        parameter.data = parameter.data.new_zeros(()).expand(parameter.shape)
    return subject.ready
