"""Stands in for an accelerator: real gradients, made beforehand, and a clock instead of the arithmetic."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from torch import Tensor

from netsim_ddp.workloads.workload import Workload

# Linux wakes a sleeper 50 to 100 us late (timer slack); the rest of the wait is spent awake.
_AWAKE_SECONDS = 200e-6
_yield_processor: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))


def record_gradient_sets(workload: Workload, count: int, examples: int | None = None) -> list[list[Tensor]]:
    """Gradients of ``count`` real forward and backward passes over the workload's next ``count`` batches, or over the
    first ``examples`` of each.

    Returns ``count`` lists with one tensor per trained parameter, in ``model.parameters()`` order, of the
    parameter's shape and device; zeros where a parameter took no part. Each set is as large as the model:
    three sets of ResNet-50 take 307 MB.

    Parameters, their ``.grad`` and the buffers (BatchNorm's statistics) are left as they were found.
    """
    model = workload.model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    sets: list[list[Tensor]] = []
    for _ in range(count):
        images, targets = workload.next_batch()
        loss = workload.loss(model(images[:examples]), targets[:examples])
        # autograd.grad instead of backward(): it leaves .grad alone and triggers no hook of a wrapper.
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        sets.append(
            [
                torch.zeros_like(parameter)
                if gradient is None
                else gradient.clone(memory_format=torch.contiguous_format)
                for parameter, gradient in zip(parameters, found, strict=True)
            ]
        )
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    return sets


def sleep_until(
    deadline: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Return when ``clock`` has reached ``deadline`` (seconds, absolute), never before; at once if it has.

    Sleeps to 0.2 ms before the deadline and yields the processor through the rest, so that many ranks on few
    cores do not take them from each other. ``time.perf_counter`` and ``time.monotonic`` are the same clock
    on Linux and macOS. Returns how late it is, in seconds.
    """
    while (remaining := deadline - clock()) > 0:
        if remaining > _AWAKE_SECONDS:
            sleep(remaining - _AWAKE_SECONDS)
        else:
            _yield_processor()
    return -remaining
