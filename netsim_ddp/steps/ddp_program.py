"""Dense training under torch's own DistributedDataParallel, in 16 bits too: the baselines that people run."""

from __future__ import annotations

from collections import Counter

import torch
from torch.nn.parallel import DistributedDataParallel

from netsim_ddp.communication.exchange import all_reduce
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Group
from netsim_ddp.communication.transfers import TransferLog, timed_all_reduce_hook
from netsim_ddp.steps.execution import Concurrent, Execution
from netsim_ddp.steps.phases import StepSample
from netsim_ddp.steps.programs import RealTraining, Say
from netsim_ddp.workloads.workload import Workload


class OverlappedTraining(RealTraining):
    """Each bucket is sent as soon as backward has filled it. Only for :class:`Concurrent` execution.

    Args:
        rounded: the type that gradients are sent in, as under torch's 16-bit hooks; None: their own.

    A parameter that took no part in a step has a gradient of zero, as with every other method. DDP itself waits for
    it for ever, or with ``find_unused_parameters`` exchanges one more message per step, which would not be the
    baseline of models that need none.
    """

    def __init__(
        self,
        workload: Workload,
        flat: FlatGradients,
        group: Group,
        optimizer: torch.optim.Optimizer,
        say: Say,
        rounded: torch.dtype | None = None,
    ) -> None:
        super().__init__(workload, flat, group, [], optimizer, say)
        self._log = TransferLog(group, rounded)
        if group.world_size > 1:
            model = DistributedDataParallel(
                workload.model,
                device_ids=[workload.device] if workload.device.type == "cuda" else None,
                process_group=group.process_group,
            )
            # As the other programs: BatchNorm's statistics stay local.
            model.require_forward_param_sync = False
            model.register_comm_hook(self._log, timed_all_reduce_hook)
            self._model = model
            sizes: Counter[torch.dtype] = Counter()
            for parameter in flat.parameters:
                sizes[rounded or parameter.dtype] += parameter.numel()
            self.wires = [all_reduce(torch.empty(size, dtype=kind), group) for kind, size in sizes.items()]

    def step(self, execution: Execution) -> StepSample:
        assert isinstance(execution, Concurrent)
        self._log.clear()
        sample = super().step(execution)
        sample.transfers = [(begin, end) for begin, end in self._log.transfers]
        sample.sent = list(self._log.sent)
        return sample

    def play(self, execution: Execution) -> None:
        assert isinstance(execution, Concurrent)
        # The last gradient is there: from here on only the wire is waited for.
        self._log.last_bucket = lambda: execution.computed_and_started(self)
        execution.local("other", self.optimizer.zero_grad)
        self._backward()
        if self.wires:
            self._send_the_rest()
            execution.waited(self)
        else:
            execution.computed()
        execution.local("optimizer", self._update)

    def _send_the_rest(self) -> None:
        """Tell DDP that the parameters which took no part have a gradient of zero, so that it sends their buckets."""
        missing = [parameter for parameter in self.flat.parameters if parameter.grad is None]
        if missing:
            torch.autograd.backward(missing, [torch.zeros_like(parameter) for parameter in missing])
