"""Checks of the average itself: the same on every rank, for every gradient, however often and wherever it is built."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netsim_ddp.communication.executor import InOrder, pipeline, stages
from netsim_ddp.communication.segments import Local, Wire
from netsim_ddp.tools.check import require
from netsim_ddp.tools.check.conservation import Totals
from netsim_ddp.tools.check.context import (
    SMALL,
    Context,
    Passed,
    Run,
    Shapes,
    digest,
    fault_of,
    require_equal,
)

LONG = 130
"""Steps after which ranks must still agree: past 10, 50, 64, 100 and 128."""
FEW = 6


def builds(context: Context) -> Passed:
    run = Run(context, SMALL)
    for each in run.segments:
        require(
            isinstance(each, Local | Wire),
            f"segments() holds a {type(each).__name__}, which is neither a Local nor a Wire",
        )
    for segment in run.segments:
        if isinstance(segment, Local):
            require(
                segment.phase in ("compress", "decompress"),
                f"a Local's phase is {segment.phase!r}: write compress or decompress",
            )
    wires = [each for each in run.segments if isinstance(each, Wire)]
    require(bool(wires), "it has no Wire: nothing is exchanged")
    for wire in wires:
        for what, sizes in (
            ("payload_bytes is", [wire.payload_bytes]),
            ("messages() hold", list(wire.messages())),
        ):
            require(
                all(isinstance(size, int) and size >= 0 for size in sizes),
                f"before the first exchange, {what} {sizes[:3]}: bytes are whole numbers from 0",
            )
    residual = run.method.residual_bytes
    require(isinstance(residual, int), f"residual_bytes is {residual!r}, not a whole number")
    run.method.state_dict()
    return Passed(f"{len(wires)} exchanges per step")


def identical(context: Context) -> Passed:
    """Many steps of changing gradients: also none, equal ones, and one rank's alone."""
    run, digests, fault = Run(context, SMALL), list[str](), None
    for step in range(LONG):
        average = run.average(_changing(context, run.numel, step))
        fault = fault_of(average, run.numel)
        digests.append(f"step {step}: {fault}" if fault else digest(average))
        if fault:
            break
    for step, row in enumerate(zip(*context.gather(digests), strict=False)):
        require_equal(row, f"step {step}")
    require(fault is None, digests[-1])
    return Passed(f"the same bits after each of {LONG} steps")


def _changing(context: Context, numel: int, step: int) -> Tensor:
    gradient, kind = context.gradient(numel, step), step % 16
    special = {
        11: torch.zeros_like(gradient),
        12: gradient * (context.group.rank == step % context.group.world_size),
        13: gradient.sign(),
    }
    return special[kind] if kind in special else gradient * (1, 1e-3, 1e3)[kind % 3]


SIZES: dict[str, Shapes] = {
    "one parameter of one element": {"one": (1,)},
    "fewer elements than ranks": {"pair": (2,)},
    "an empty parameter": {"empty": (0,), "five": (5,), "none": (3, 0)},
    "a matrix of one row": {"row": (1, 7), "column": (9, 1), "cube": (2, 1, 3)},
}


def sizes(context: Context) -> Passed:
    """Parameters of odd sizes, and gradients that are zero, equal, or one rank's alone."""
    patterns: dict[str, Callable[[int], Tensor]] = {
        "gradients that are zero": torch.zeros,
        "gradients of equal elements": torch.ones,
        "one rank's gradient and zeros": lambda n: context.gradient(n, 7) * (context.group.rank == 0),
    }

    def sound(run: Run, average: Tensor, about: str) -> Tensor:
        fault = fault_of(average, run.numel)
        context.agree(fault and f"{about}: {fault}")
        context.same_bits(average, about)
        return average

    for about, shapes in SIZES.items():
        run = Run(context, shapes, about)
        totals = Totals(run.numel)
        for step in range(FEW):
            totals.add(context.mean(run.numel, step), sound(run, run.step(step), about))
        if run.method.residual_bytes > 0:
            zero = torch.zeros(run.numel)
            for _ in range(60):
                totals.add(zero, run.average(zero))
            require(
                not totals.missing > 0.05, f"{about}: {totals.judge(context.group.world_size, 'of 60 steps')}"
            )
    for about, pattern in patterns.items():
        run = Run(context, SMALL, about)
        for _ in range(3):
            sound(run, run.average(pattern(run.numel)), about)
    return Passed("one element, an empty parameter, fewer elements than ranks; zero and equal gradients")


def deterministic(context: Context) -> Passed:
    """The same bits from a second instance, and whatever stands in the global random numbers."""
    digests = []
    for about, seed, gives in (
        ("the first instance", 1, ""),
        ("a second instance", 1, "a second instance gives"),
        ("other global random numbers", 2, "other global random numbers give"),
    ):
        for seed_library in (torch.manual_seed, np.random.seed, random.seed):
            seed_library(10 * seed + context.group.rank)
        before = _global_random()
        run = Run(context, SMALL, about)
        digests.append([digest(run.step(step)) for step in range(FEW)])
        moved = [name for name, state in _global_random().items() if state != before[name]]
        require(not moved, f"it changes the global random numbers of {' and '.join(moved)}")
        require(digests[-1] == digests[0], f"{gives} other bits for the same gradients")
    return Passed("a second instance gives the same bits; global random numbers untouched", data=digests[0])


def _global_random() -> dict[str, str]:
    return {
        "torch": digest(torch.get_rng_state()),
        "numpy": repr(np.random.get_state(legacy=False)),
        "random": repr(random.getstate()),
    }


def clean(context: Context) -> Passed:
    """What is not the method's own is as it was: the gradient's layout, the parameters, torch's settings."""
    settings, flat = _settings(), context.flat(SMALL)
    shapes, offsets, data = dict(flat.shapes), flat.offsets.tolist(), flat.data
    run = Run(context, SMALL, flat=flat)
    for step in range(FEW):
        average = run.step(step)
        run.method.statistics()
        run.method.state_dict()
        require(
            digest(average) == digest(run.method.average),
            "state_dict() or statistics() changes the average of the step before",
        )
    require(
        list(flat.shapes.items()) == list(shapes.items()),
        "it changes flat.shapes, which belongs to netsim: copy it",
    )
    require(
        flat.data is data and flat.offsets.tolist() == offsets and len(flat.views) == len(shapes),
        "it changes flat.data, flat.views or flat.offsets themselves; only their contents are yours",
    )
    for name, parameter in zip(shapes, flat.parameters, strict=True):
        require(
            not parameter.detach().any() and parameter.grad is None,
            f"it changes the parameter {name} or its grad: write to `average` alone",
        )
    for name, value in _settings().items():
        require(
            settings[name] == value,
            f"it changes {name} for the whole process (from {settings[name]} to {value})",
        )
    return Passed("the gradient's layout, the parameters and torch's global settings are as they were")


def _settings() -> dict[str, Any]:
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "the environment variables": digest(torch.tensor(list(repr(sorted(os.environ.items())).encode()))),
        "numpy's error settings": repr(np.geterr()),
    }


def buckets(context: Context) -> Passed:
    """Three buckets in flight, as ``overlap`` runs them, beside the same three one after the other."""
    flat, names = context.flat(SMALL), list(SMALL)
    spans = list(pairwise((0, 2, 3, len(SMALL))))[::-1]
    methods = [context.build(flat.part(first, last)) for first, last in spans]
    alone = [
        Run(context, {name: SMALL[name] for name in names[first:last]}, "a bucket alone")
        for first, last in spans
    ]
    staged = [stages(method.segments()) for method in methods]
    bits = list[str]()
    off, whole = [0.0] * len(spans), [0.0] * len(spans)
    for step in range(FEW):
        gradient = context.gradient(flat.numel, step)
        flat.data.copy_(gradient)
        context.progress(step, "communicate, with three buckets in flight")
        for _ in pipeline(InOrder(), staged):
            pass
        averages = [method.average.clone() for method in methods]
        bits.append(digest(torch.cat(averages)))
        for number, ((first, last), run, average) in enumerate(zip(spans, alone, averages, strict=True)):
            other = run.average(gradient[int(flat.offsets[first]) : int(flat.offsets[last])])
            off[number] += float((average - other).norm())
            whole[number] += float(other.norm())
    context.agree(
        *(
            f"bucket {number} (parameters {first} to {last - 1}) in flight with others is"
            f" {off[number] / (whole[number] or 1.0):.0%} off the same bucket alone: instances share something, or it"
            " works on the first bucket only"
            for number, (first, last) in enumerate(spans)
            if not off[number] <= 0.02 * whole[number] + 1e-12
        )
    )
    for step, row in enumerate(zip(*context.gather(bits), strict=True)):
        require_equal(row, f"three buckets, step {step}")
    return Passed("three buckets in flight give the same bits on all ranks, and what each gives alone")
