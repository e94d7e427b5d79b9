"""Trials of the answer itself: the same on every rank, for every gradient, however often and wherever it is built."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netsim_ddp.communication.pipeline import InOrder, pipeline, stages
from netsim_ddp.communication.segments import Local, Wire
from netsim_ddp.tools.trials.bench import SMALL, Bench, Fault, Found, Run, Shapes, digest, strange_average
from netsim_ddp.tools.trials.ledger import Ledger

LONG = 130
"""Steps after which ranks must still agree: past 10, 50, 64, 100 and 128."""
FEW = 6


def builds(bench: Bench) -> Found:
    run = Run(bench, SMALL)
    strange = [each for each in run.segments if not isinstance(each, Local | Wire)]
    if strange:
        raise Fault(f"segments() holds a {type(strange[0]).__name__}, which is neither a Local nor a Wire")
    phases = [s.phase for s in run.segments if isinstance(s, Local)]
    wrong = [phase for phase in phases if phase not in ("compress", "decompress")]
    if wrong:
        raise Fault(f"a Local's phase is {wrong[0]!r}: write compress or decompress")
    wires = [each for each in run.segments if isinstance(each, Wire)]
    if not wires:
        raise Fault("it has no Wire: nothing is exchanged")
    for wire in wires:
        for what, sizes in (
            ("payload_bytes is", [wire.payload_bytes]),
            ("messages() hold", list(wire.messages())),
        ):
            if any(not isinstance(size, int) or size < 0 for size in sizes):
                raise Fault(f"before the first exchange, {what} {sizes[:3]}: bytes are whole numbers from 0")
    if not isinstance(run.method.residual_bytes, int):
        raise Fault(f"residual_bytes is {run.method.residual_bytes!r}, not a whole number")
    run.method.state_dict()
    return Found(f"{len(wires)} exchanges per step")


def identical(bench: Bench) -> Found:
    """Many steps of changing gradients: also none, equal ones, and one rank's alone."""
    run = Run(bench, SMALL)
    digests = list[str]()
    for step in range(LONG):
        average = run.average(_changing(bench, run.numel, step))
        fault = strange_average(average, run.numel)
        if fault is None and not bool(average.isfinite().all()):
            fault = f"step {step}: the average of finite gradients is not finite"
        if fault:
            digests.append(fault)
            break
        digests.append(digest(average))
    rows = bench.gather(digests)
    for step, row in enumerate(zip(*rows, strict=False)):
        if len(set(row)) > 1:
            odd = next(rank for rank, each in enumerate(row) if each != row[0])
            raise Fault(f"at {len(rows)} ranks, step {step}: rank {odd}'s average is not rank 0's")
    if len(digests) < LONG:
        raise Fault(digests[-1])
    return Found(f"the same bits after each of {LONG} steps")


def _changing(bench: Bench, numel: int, step: int) -> Tensor:
    gradient = bench.gradient(numel, step)
    kind = step % 16
    if kind == 11:
        return torch.zeros_like(gradient)
    if kind == 12:
        return gradient * (bench.group.rank == step % bench.group.world_size)
    if kind == 13:
        return gradient.sign()
    return gradient * (1, 1e-3, 1e3)[kind % 3]


SIZES: dict[str, Shapes] = {
    "one parameter of one element": {"one": (1,)},
    "fewer elements than ranks": {"pair": (2,)},
    "an empty parameter": {"empty": (0,), "five": (5,), "none": (3, 0)},
    "a matrix of one row": {"row": (1, 7), "column": (9, 1), "cube": (2, 1, 3)},
}


def sizes(bench: Bench) -> Found:
    """Parameters of odd sizes, and gradients that are zero, equal, or one rank's alone."""
    patterns: dict[str, Callable[[int], Tensor]] = {
        "gradients that are zero": torch.zeros,
        "gradients of equal elements": torch.ones,
        "one rank's gradient and zeros": lambda n: bench.gradient(n, 7) * (bench.group.rank == 0),
    }
    for about, shapes in SIZES.items():
        run = Run(bench, shapes, about)
        ledger = Ledger(run.numel)
        for step in range(FEW):
            ledger.note(bench.mean(run.numel, step), _plain(bench, run, run.step(step), about))
        if run.method.residual_bytes > 0:
            for _ in range(60):
                ledger.note(torch.zeros(run.numel), run.average(torch.zeros(run.numel)))
            if ledger.share > 0.05:
                raise Fault(f"{about}: {ledger.judge(bench.group.world_size, 'of 60 steps')}")
    for about, pattern in patterns.items():
        run = Run(bench, SMALL, about)
        for _ in range(3):
            _plain(bench, run, run.average(pattern(run.numel)), about)
    return Found("one element, an empty parameter, fewer elements than ranks; zero and equal gradients")


def _plain(bench: Bench, run: Run, average: Tensor, about: str) -> Tensor:
    """``average``, if it is finite, float32 [N] and the same everywhere."""
    fault = strange_average(average, run.numel)
    if fault is None and not bool(average.isfinite().all()):
        fault = "the average is not finite"
    bench.agree(fault and f"{about}: {fault}")
    bench.same_bits(average, about)
    return average


def deterministic(bench: Bench) -> Found:
    """The same bits from a second instance, and whatever stands in the global random numbers."""
    digests = []
    for about, seed in (
        ("the first instance", 1),
        ("a second instance", 1),
        ("other global random numbers", 2),
    ):
        _seed_everything(10 * seed + bench.group.rank)
        before = _global_random()
        run = Run(bench, SMALL, about)
        digests.append([digest(run.step(step)) for step in range(FEW)])
        after = _global_random()
        moved = [name for name in before if before[name] != after[name]]
        if moved:
            raise Fault(f"it changes the global random numbers of {' and '.join(moved)}")
        if digests[-1] != digests[0]:
            given = "other global random numbers give" if seed == 2 else "a second instance gives"
            raise Fault(f"{given} other bits for the same gradients")
    return Found("a second instance gives the same bits; global random numbers untouched", data=digests[0])


def _seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _global_random() -> dict[str, str]:
    state = np.random.get_state(legacy=False)
    return {
        "torch": digest(torch.get_rng_state()),
        "numpy": repr(state),
        "random": repr(random.getstate()),
    }


def clean(bench: Bench) -> Found:
    """What is not the method's own is as it was: the gradient's layout, the parameters, torch's settings."""
    settings = _settings()
    flat = bench.flat(SMALL)
    shapes, offsets, data = dict(flat.shapes), flat.offsets.copy(), flat.data
    run = Run(bench, SMALL)
    run.flat = flat
    run.method = bench.build(flat)
    run.segments = run.method.segments()
    for step in range(FEW):
        average = run.step(step)
        run.method.statistics()
        run.method.state_dict()
        if digest(average) != digest(run.method.average):
            raise Fault("state_dict() or statistics() changes the average of the step before")
    if dict(flat.shapes) != shapes or list(flat.shapes) != list(shapes):
        raise Fault("it changes flat.shapes, which belongs to netsim: copy it")
    if flat.data is not data or flat.offsets.tolist() != offsets.tolist() or len(flat.views) != len(shapes):
        raise Fault(
            "it changes flat.data, flat.views or flat.offsets themselves; only their contents are yours"
        )
    for name, parameter in zip(shapes, flat.parameters, strict=True):
        if parameter.detach().any() or parameter.grad is not None:
            raise Fault(f"it changes the parameter {name} or its grad: write to `average` alone")
    for name, value in _settings().items():
        if settings[name] != value:
            raise Fault(f"it changes {name} for the whole process (from {settings[name]} to {value})")
    return Found("the gradient's layout, the parameters and torch's global settings are as they were")


def _settings() -> dict[str, Any]:
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "the environment variables": digest(torch.tensor(list(repr(sorted(os.environ.items())).encode()))),
        "numpy's error settings": repr(np.geterr()),
    }


def buckets(bench: Bench) -> Found:
    """Three buckets in flight, as ``overlap`` runs them, beside the same three one after the other."""
    flat, cuts = bench.flat(SMALL), (0, 2, 3, len(SMALL))
    spans = list(pairwise(cuts))[::-1]
    methods = [bench.build(flat.part(first, last)) for first, last in spans]
    names = list(SMALL)
    alone = [
        Run(bench, {name: SMALL[name] for name in names[first:last]}, "a bucket alone")
        for first, last in spans
    ]
    staged = [stages(method.segments()) for method in methods]
    bits = list[str]()
    off, whole = [0.0] * len(spans), [0.0] * len(spans)
    for step in range(FEW):
        gradient = bench.gradient(flat.numel, step)
        flat.data.copy_(gradient)
        bench.progress(step, "communicate, with three buckets in flight")
        for _ in pipeline(InOrder(), staged):
            pass
        averages = [method.average.clone() for method in methods]
        bits.append(digest(torch.cat(averages)))
        for number, ((first, last), run, average) in enumerate(zip(spans, alone, averages, strict=True)):
            other = run.average(gradient[int(flat.offsets[first]) : int(flat.offsets[last])])
            off[number] += float((average - other).norm())
            whole[number] += float(other.norm())
    faults = list[str]()
    for number, (first, last) in enumerate(spans):
        if not off[number] <= 0.02 * whole[number] + 1e-12:
            share = off[number] / (whole[number] or 1.0)
            faults.append(
                f"bucket {number} (parameters {first} to {last - 1}) in flight with others is {share:.0%} off the same"
                " bucket alone: instances share something, or it works on the first bucket only"
            )
    bench.agree(faults[0] if faults else None)
    for step, row in enumerate(zip(*bench.gather(bits), strict=True)):
        if len(set(row)) > 1:
            odd = next(rank for rank, each in enumerate(row) if each != row[0])
            raise Fault(
                f"at {len(row)} ranks, three buckets, step {step}: rank {odd}'s average is not rank 0's"
            )
    return Found("three buckets in flight give the same bits on all ranks, and what each gives alone")
