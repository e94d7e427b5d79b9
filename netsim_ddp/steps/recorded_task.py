"""One rank of one repeat that plays a recording: it trains nothing, and needs neither a model nor data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from netsim_ddp.communication.building import build_method
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.parameters import check_types
from netsim_ddp.communication.segments import Group
from netsim_ddp.methods import entry_of
from netsim_ddp.results.recorded import RecordedTraining as Summary
from netsim_ddp.scenario import ranks_at_once
from netsim_ddp.steps.compute_times import ComputeTimes
from netsim_ddp.steps.execution import Busy, Execution
from netsim_ddp.steps.programs import Program
from netsim_ddp.steps.recorded_program import RecordedTraining, schedule_of
from netsim_ddp.steps.worker import StepsTask, recorded
from netsim_ddp.workloads.recording.model import RecordedModel, layout
from netsim_ddp.workloads.recording.reconstruction import reconstruct, sets_of


@dataclass
class _Built:
    model: nn.Module
    parameters_count: int
    unused: list[str] = field(default_factory=list)


class RecordedTask(StepsTask):
    """Play the steps of the scenario's recording; see :class:`StepsTask`."""

    def prepare(self, device: torch.device) -> _Built:
        summary = self._summary
        self.say("reading the recording")
        self._recording = summary.open()
        parameters, self._buckets = layout(self._recording)
        self._model = RecordedModel(parameters, device)
        check_types(self._model.named_parameters())
        shapes = [torch.Size(each.shape) for each in parameters]
        # One rank of this host fills the memory that all of them read.
        with self.shared.barrier.turn():
            self._gradients = recorded(
                self.shared.common_recording,
                shapes,
                sets_of(self._recording),
                lambda views: reconstruct(Path(summary.path), self._recording, views, self.scenario.seed),
            )
        return _Built(self._model, summary.parameters)

    def compute_times(self, device: torch.device) -> ComputeTimes | None:
        """None: the recording has them."""

    @property
    def _summary(self) -> Summary:
        assert self.scenario.recording is not None
        return self.scenario.recording

    def execution(self, device: torch.device, times: ComputeTimes | None) -> Execution:
        found = super().execution(device, times)
        at_once = ranks_at_once(self.job.world_size, self.scenario.threads)
        on_this_kind = self._summary.device == device.type == "cpu" and self.scenario.scale_compute == 1.0
        if on_this_kind and at_once == self.job.world_size:
            # What was computed on a processor keeps one busy, which the exchanges beside it feel.
            found.computing = Busy(self.scenario.threads)
        return found

    def program(self, group: Group) -> Program:
        name, params, overlap = self.agreed(group, self._model)
        flat = FlatGradients(self._model.named_parameters())
        parts = [flat.part(*bucket) for bucket in self._buckets] if overlap else [flat]
        scale, steps = self.scenario.scale_compute, self._recording.steps_of(self.job.rank)
        turn = self.job.rank % len(self._gradients)
        return RecordedTraining(
            flat,
            group,
            [build_method(name, part, group, as_ddp=True, **params) for part in parts],
            # Every rank another set in each step: ranks that sent the same entries would have nothing to add up.
            self._gradients[turn:] + self._gradients[:turn],
            [schedule_of(step, scale) for step in steps],
            lambda: self.measured,
            self.say,
            as_ddp=overlap and self.by_ddp(group),
            divided=overlap
            and entry_of(name).is_baseline
            and self._recording.source == "ddp"
            and flat.lendable,
        )
