"""What the ranks of every experiment do alike: build the model, join the others with one and the same, and report."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from netsim_ddp.communication.parameters import check_types
from netsim_ddp.communication.segments import Group
from netsim_ddp.communication.shaped import group as shaped
from netsim_ddp.ranks.memory import peak_bytes
from netsim_ddp.ranks.process_group import device_name, join, pair_goodput, ring_goodput
from netsim_ddp.ranks.rank import Task
from netsim_ddp.steps.first_model import share_first_model
from netsim_ddp.steps.phases import StepSample
from netsim_ddp.workloads.workload import Workload, build_workload


class BuiltModel(Protocol):
    """What a rank trains, or plays: :class:`Workload`, or a recording's.

    Attributes:
        unused: names of the parameters that got no gradient when training was tried.
    """

    model: nn.Module
    unused: list[str]

    @property
    def parameters_count(self) -> int: ...


class ModelTask(Task):
    """The task of a rank that has a model."""

    def build(self, device: torch.device, *, batch_size: int, try_training: bool) -> Workload:
        """Build this rank's model and data; with ``try_training`` a trial step shows what does not fit."""
        self.say("building the model")
        settings = self.job.settings
        return build_workload(
            model=settings.model,
            dataset=settings.dataset,
            batch_size=batch_size,
            rank=self.job.rank,
            world_size=self.job.world_size,
            seed=settings.seed,
            device=device,
            data_dir=settings.data_dir,
            text=settings.text,
            loss=settings.loss_function,
            try_training=try_training,
            refuse=check_types,
        )

    def join(self, built: BuiltModel, device: torch.device) -> tuple[Group, dict[str, Any]]:
        """Join the process group, and have rank 0's model on all ranks.

        Returns:
            The group, and what the command wants to know of the rank: the fields of
            :meth:`netsim_ddp.steps.experiment.Experiment.take_facts`, but for ``probed_bps``.
        """
        self.say("joining the process group")
        # The command's deadline acts long before this one, which only keeps a wait from being endless.
        slow = 400 * built.parameters_count / self.job.spec.lowest_bps * 8
        group, backend = join(self.channel, self.job, self.shared, device, spare_s=slow)
        return group, {
            "parameters": built.parameters_count,
            "backend": backend,
            "device": device_name(device),
            "differed": share_first_model(
                self.channel, group, built.model, self.job.settings.model, self.say
            ),
            "unused": built.unused,
        }

    def probe(self, group: Group, device: torch.device) -> float | None:
        """Bit/s from this rank to the next one, where no probe of the command's could measure it; else None."""
        if self.job.mechanism not in ("bucket", "host") or group.world_size == 1:
            return None
        return ring_goodput(self.channel, group, self.job, device)

    def probe_alone(self, group: Group, device: torch.device, together_bps: float | None) -> float | None:
        """Bit/s of one pair alone on a bucket link, where :meth:`probe` found that all at once get less."""
        if together_bps is None or self.job.mechanism != "bucket":
            return None
        return pair_goodput(self.channel, group, self.job, device, together_bps)

    def begin(self, group: Group) -> None:
        """Start the time of a bucket link, on rank 0: what was sent before does not count."""
        if self.job.rank == 0 and self.job.mechanism == "bucket" and group.world_size > 1:
            shaped.shaped_group().begin()

    def charged(self) -> tuple[int, int, float, int]:
        """What the token bucket has counted so far: bytes sent, bytes received, seconds that the host was late, and how
        often."""
        if self.shared.operations is None or self.job.world_size == 1:
            return 0, 0, 0.0, 0
        group = shaped.shaped_group()
        return (*group.charged(), group.host_late_s, group.host_late_count)

    def finish(self, values: Tensor, samples: Sequence[StepSample], **own: Any) -> None:
        """Hand over this rank's record, and end.

        Args:
            values: what must be the same bits on every rank.
            own: further fields of the record.
        """
        self.channel.result(
            {
                "rank": self.job.rank,
                "samples": [dataclasses.asdict(sample) for sample in samples],
                "peak_memory_bytes": peak_bytes(),
                "sha256": hashlib.sha256(values.cpu().contiguous().numpy().data).hexdigest(),
                **own,
            }
        )
        self.say("leaving")
        self.channel.gather("done")
