"""When a backward pass of the model has each gradient ready, measured on rank 0 in a process of its own.

No other rank runs then, and the process ends with the measurement: the ranks that play the times back have not built
anything yet, so that nothing of theirs (parameters, statistics, random numbers, peak memory) is touched.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.ranks.memory import available_bytes, peak_bytes
from netsim_ddp.ranks.process_group import choose_device, device_name
from netsim_ddp.steps.execution import CudaClock
from netsim_ddp.steps.model_task import ModelTask
from netsim_ddp.steps.phases import Clock, HostClock
from netsim_ddp.workloads.workload import Workload

PASSES = 5
SMALL_BATCH = 4
"""The batch of the pass that shows how much memory an example takes."""
USABLE = 0.8
"""The share of the free memory that may be used: what an example takes is not measured to the byte."""
_SIGN_OF_LIFE_S = 1.0


class ReadyTask(ModelTask):
    """Measure; the result is what :class:`netsim_ddp.results.ready.ReadyTimes` wants to know."""

    def run(self) -> None:
        device = choose_device(self.job.settings.device, self.job.rank)
        workload = self.build(device, batch_size=self.job.settings.batch_size, try_training=True)
        inputs, targets = workload.next_batch()
        passes = Passes(workload, device, self.say)
        batch = passes.largest_batch(inputs, targets)
        forward, shares = passes.measure(inputs[:batch], targets[:batch])
        self.channel.result(
            {
                "batch_size": batch,
                "passes": PASSES,
                "device": device_name(device),
                "forward_share": forward,
                "parameters": shares,
            }
        )
        self.channel.gather("done")


class Passes:
    """Forward and backward passes of a workload's model, as in a training step, with the moment of each gradient.

    Gradients are accumulated into one flat buffer, as in a training step; hooks stay on the parameters.

    Args:
        flat: that buffer, if there is one already.
    """

    def __init__(
        self,
        workload: Workload,
        device: torch.device,
        say: Callable[[str], None],
        flat: FlatGradients | None = None,
    ) -> None:
        self._workload, self._device, self._say = workload, device, say
        self._clock: Clock = CudaClock() if device.type == "cuda" else HostClock()
        self._flat = flat or FlatGradients(workload.model.named_parameters())
        self._marks: dict[str, Any] = {}
        self._told = time.monotonic()
        for name, parameter in zip(self._flat.names, self._flat.parameters, strict=True):
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda _, name=name: self._mark(name)
            )

    def _mark(self, name: str) -> None:
        """The last time counts: checkpointed layers that share a parameter add to its gradient one after the other."""
        self._marks[name] = self._clock.mark()
        if time.monotonic() - self._told > _SIGN_OF_LIFE_S:  # one pass may take longer than a hang is given
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        self._say("measuring when its gradients are ready")

    def once(self, inputs: Tensor, targets: Tensor) -> tuple[float, dict[str, float]]:
        """Forward's share of one pass, and of each parameter the moment of its gradient as a share of backward."""
        self._tell()
        self._flat.clear()
        self._marks = {}
        begin = self._clock.mark()
        loss = self._workload.loss(self._workload.model(inputs), targets)
        half = self._clock.mark()
        loss.backward()  # type: ignore[no-untyped-call]
        end = self._clock.mark()
        named = {name: mark for name, mark in self._marks.items() if name in self._flat.shapes}
        start, middle, stop, *moments = self._clock.seconds([begin, half, end, *named.values()])
        backward = max(stop - middle, 1e-9)
        shares = {
            name: min(max((moment - middle) / backward, 0.0), 1.0)
            for name, moment in zip(named, moments, strict=True)
        }
        return (middle - start) / max(stop - start, 1e-9), {
            name: shares.get(name, 1.0) for name in self._flat.names
        }

    def measure(self, inputs: Tensor, targets: Tensor) -> tuple[float, dict[str, float]]:
        """Medians of :data:`PASSES` passes after one that warms up."""
        self.once(inputs, targets)
        rows = [self.once(inputs, targets) for _ in range(PASSES)]
        return median(share for share, _ in rows), {
            name: median(shares[name] for _, shares in rows) for name in self._flat.names
        }

    def largest_batch(self, inputs: Tensor, targets: Tensor, within_s: float | None = None) -> int:
        """The examples of the batch, or as many as there is memory for, by what a pass of a few of them takes; and time
        for, where :meth:`measure` is to take no longer than ``within_s``."""
        count = len(inputs)
        small = min(count, SMALL_BATCH)
        before, begin = _resident(self._device), time.monotonic()
        self.once(inputs[:small], targets[:small])
        if within_s is not None:
            each_s = (time.monotonic() - begin) / small
            count = max(small, min(count, int(within_s / (PASSES + 1) / each_s)))
        each = max(_peak(self._device) - before, 0) / small
        on_gpu = self._device.type == "cuda"
        free = torch.cuda.mem_get_info(self._device)[0] if on_gpu else available_bytes()
        if free is None or each * count <= USABLE * free:
            return count
        return max(small, int(USABLE * free / each))


def _resident(device: torch.device) -> int:
    """Bytes that this process holds; where the system does not tell, the most that it has held."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        with open("/proc/self/statm", encoding="utf-8") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return _peak(device)


def _peak(device: torch.device) -> int:
    """The most bytes that this process has held; of a GPU's, since :func:`_resident`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()
