"""Checks of what a method keeps between steps: its state, the residual's bytes, and its memory."""

from __future__ import annotations

import collections
import copy
import functools
import gc
import io
import math
import resource
import sys
import types
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from netsim_ddp.errors import describe
from netsim_ddp.tools.check import CheckFailed, require
from netsim_ddp.tools.check.context import MIDDLE, SMALL, Context, Passed, Run, Shapes, digest
from netsim_ddp.tools.memory import release_freed, resident_bytes
from netsim_ddp.units import format_bytes

STEPS = 5
GROWTH: Shapes = {"matrix": (300, 300), "vector": (10_001,)}
WARM, WINDOW, WINDOWS = 60, 25, 4
GROWS_BYTES = 1e6 / 100
"""Per step, and more is too much."""
RESIDUAL_TOLERANCE, RESIDUAL_SPARE = 0.05, 1024


def state(context: Context) -> Passed:
    """Saved, loaded into a new instance and into one that has been used, and continued, against going on without."""
    run, plain = Run(context, SMALL), Run(context, SMALL)

    def goes_on(run: Run) -> list[str]:
        return [digest(run.step(STEPS + step)) for step in range(STEPS)]

    for step in range(STEPS):
        run.step(step)
        plain.step(step)
    saved = run.method.state_dict()
    continued = goes_on(run)  # what was saved must not follow
    require(continued == goes_on(plain), "state_dict() changes what comes after it")
    loaded = _through_a_file(saved)
    before = _fingerprint(loaded)
    for about, used in (("a new instance", 0), ("an instance that has been used", STEPS)):
        again = Run(context, SMALL, f"with the state loaded into {about}")
        for step in range(used):
            again.step(100 + step)
        again.method.load_state_dict(loaded)
        require(
            continued == goes_on(again),
            f"continued from its state_dict in {about} it gives other bits: save, as copies, and load all that the"
            " next step depends on",
        )
        require(
            _fingerprint(loaded) == before,
            "load_state_dict() keeps the caller's tensors, and the steps after it change them: copy",
        )
    return Passed(
        "continued from its state_dict, in a new instance and in a used one, it gives the same bits"
    )


def _through_a_file(saved: Mapping[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    try:
        return torch.load(file, weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever the user's state does to the unpickler
        raise CheckFailed(
            f"its state_dict is not plain ({describe(error)[:120]}): torch.load(weights_only=True) takes tensors,"
            " numbers, text, lists and dicts"
        ) from None


def _fingerprint(state: Any) -> list[str]:
    return [
        digest(leaf) if isinstance(leaf, Tensor) else repr(leaf) for leaf in tree_leaves(copy.copy(state))
    ]


def residual(context: Context) -> Passed:
    """``residual_bytes`` beside what the state holds and what the object keeps."""
    run = Run(context, MIDDLE)
    for step in range(STEPS):
        average = run.step(step)
    told = run.method.residual_bytes
    after = max(float(run.average(torch.zeros(run.numel)).norm()) for _ in range(2))
    tensors = [leaf for leaf in tree_leaves(run.method.state_dict()) if isinstance(leaf, Tensor)]
    everything = sum(each.nbytes for each in tensors)
    # Floating tensors that are shaped like the gradient, one of its parameters, or a rank's share of it.
    ranks, shapes = context.group.world_size, set(MIDDLE.values())
    shares = {run.numel, run.numel // ranks, -(-run.numel // ranks), *(math.prod(shape) for shape in shapes)}
    kept = sum(
        each.nbytes
        for each in tensors
        if each.is_floating_point() and (tuple(each.shape) in shapes or each.numel() in shares)
    )
    reachable = _reachable_bytes(run)
    fault = None
    if told == 0 and after > 1e-3 * float(average.norm()):
        fault = (
            "residual_bytes says 0, and updates come when the gradients have stopped: something is kept"
            f" ({format_bytes(kept)} of the gradient's shapes in its state)"
        )
    elif told < kept * (1 - RESIDUAL_TOLERANCE) - RESIDUAL_SPARE:
        fault = f"residual_bytes says {told:,} and its state keeps {kept:,} bytes of the gradient's shapes"
    elif told > everything * (1 + RESIDUAL_TOLERANCE) + RESIDUAL_SPARE:
        fault = f"residual_bytes says {told:,} and its state keeps {everything:,} bytes in all"
    elif told > reachable * (1 + RESIDUAL_TOLERANCE) + RESIDUAL_SPARE:
        fault = f"residual_bytes says {told:,} and the method's tensors take {reachable:,} bytes in all"
    context.agree(fault)
    return Passed(
        f"{format_bytes(told)}, of {format_bytes(everything)} in its state"
        if told
        else "no residual, as it says"
    )


def _reachable_bytes(run: Run) -> int:
    """Bytes of every tensor and array that the method's object leads to, beside the gradient's own."""
    seen, storages, todo = set[int](), dict[int, int](), [run.method, *run.segments]
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, np.ndarray):
            storages[value.__array_interface__["data"][0]] = value.nbytes
        else:
            todo += _parts(value)
    storages.pop(run.flat.data.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def _parts(value: Any) -> list[Any]:
    """What ``value`` holds: elements, attributes, what a function has closed over; not modules, classes or globals."""
    match value:
        case Mapping():
            return list(value.values())
        case list() | tuple() | set() | frozenset() | collections.deque():
            return list(value)
        case functools.partial():
            return [value.func, *value.args, *value.keywords.values()]
        case types.MethodType():
            return [value.__self__, value.__func__]
        case types.FunctionType():
            return [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        case type() | types.ModuleType():
            return []
    return list(getattr(value, "__dict__", {}).values())


def memory(context: Context) -> Passed:
    """The process's memory over many steps; what grows in every stretch of them is a leak."""
    run, readings = Run(context, GROWTH), list[int]()
    for step in range(WARM + WINDOW * WINDOWS + 1):
        run.step(step)
        if step >= WARM and (step - WARM) % WINDOW == 0:
            readings.append(_resident_bytes())
    grown = min(after - before for before, after in pairwise(readings)) / WINDOW
    context.agree(
        f"memory grows by {grown * 100 / 1e6:.1f} MB per 100 steps of {run.numel:,} parameters, steadily: something"
        " is kept of every step"
        if grown > GROWS_BYTES
        else None
    )
    return Passed(f"memory has stopped growing after {WARM} steps")


def _resident_bytes() -> int:
    """What this process has of the machine's memory, after what is free was given back."""
    gc.collect()
    release_freed()
    try:
        return resident_bytes("VmRSS")
    except OSError:  # no /proc: the highest so far
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
