"""Exact Top-K over the segments of a flat tensor, with and without error feedback.

A *segment* is one parameter's stretch of a flat gradient: bounds ``offsets`` int64 [L + 1], starting at 0
and ending at N, and ``ks`` int64 [L] entries to keep, 1 <= k <= n (0 for an empty segment). Both are on
the CPU. The chosen entries of segment i are the k_i largest magnitudes, of equal ones the lower index;
they are written in ascending index order (global positions), so a given input has exactly one result.

CPU float32 takes one fused numba kernel, on as many threads as torch may use; everything else takes a torch
twin with the same result, bit for bit. ``NETSIM_KERNELS=torch`` in the environment makes all take the twin.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netsim_ddp.compression.native import compiled_module
from netsim_ddp.compression.native import torch_kernels as twin
from netsim_ddp.switches import compiled_kernels

fused = compiled_module("fused")

I64 = NDArray[np.int64]
Gradient = Tensor | Sequence[Tensor]
"""A flat gradient [N], or the tensors that it lies in, in order."""

_INT32_END = 2**31
_BAD_SUM = "the gradient of segment {0}, or its sum with the residual, is not finite"


class NonFiniteGradient(ArithmeticError):
    """A NaN or inf among the values to select from. ``segment`` is the number of the first bad segment."""

    def __init__(self, message: str, segment: int) -> None:
        super().__init__(message)
        self.segment = segment


def require(holds: bool, message: str, error: type[ValueError] = ValueError) -> None:
    """Raise ``error`` with ``message`` unless what it demands ``holds``."""
    if not holds:
        raise error(message)


@functools.cache
def warm() -> None:
    """Compile the kernels, or load them from numba's cache, for every signature in use.

    Call it once before workers fork; it starts no thread. Costs about 4 s the first time on a machine and
    0.3 s afterwards. Without numba it warns, once, and the torch twin does the work; with ``NETSIM_KERNELS=torch`` it
    does so without a word.
    """
    if fused is None:
        if compiled_kernels():
            warnings.warn(
                "numba is not installed: selecting with torch, several times slower (pip install numba)",
                RuntimeWarning,
                stacklevel=2,
            )
        return
    from netsim_ddp.compression.native.signatures import compile_kernels  # which imports numba

    if (problem := compile_kernels()) is not None:
        warnings.warn(f"the compiled kernels could not be stored: {problem}", RuntimeWarning, stacklevel=2)


def release() -> None:
    """Give back the scratch memory that calls keep for the next one, a few times k entries."""
    if fused is not None:
        fused.release()


def all_finite(tensor: Tensor) -> bool:
    """Whether ``tensor`` (any shape, dtype, device) holds neither NaN nor inf; one pass over it."""
    if tensor.numel() and (kernel := _fused(tensor)) is not None:
        return bool(kernel.all_finite(tensor.detach().reshape(-1).numpy()))
    return bool(torch.isfinite(tensor).all())


def zeros(numel: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """[numel] of ``dtype``. float32 on the CPU is numpy's, which asks Linux for large pages: a pass over many of them
    looks up fewer addresses."""
    if device.type == "cpu" and dtype == torch.float32:
        return torch.from_numpy(np.zeros(numel, np.float32))
    return torch.zeros(numel, dtype=dtype, device=device)


def largest(tensor: Tensor) -> float:
    """The largest magnitude of ``tensor`` (any shape, floating), NaN where there is one; 0 where it is empty."""
    return float(torch.linalg.vector_norm(tensor.detach(), torch.inf)) if tensor.numel() else 0.0


def select(flat: Tensor, offsets: Tensor, ks: Tensor, values: Tensor, indices: Tensor) -> None:
    """Write the selected entries of ``flat`` [N] to ``values`` and ``indices`` [sum(ks)]; ``flat`` stays.

    Args:
        flat: contiguous, float16, bfloat16, float32 or float64.
        offsets, ks: the segments, see the module's docstring.
        values: contiguous, dtype and device of ``flat``. indices: int32 or int64, same device.

    Raises:
        NonFiniteGradient: a segment holds a NaN or inf (``values`` and ``indices`` are then undefined).
        ValueError: arguments that do not fit each other.
    """
    _check(flat, offsets, ks, values, indices)
    if (kernel := _fused(flat, values, indices)) is not None:
        bad = _run(kernel, flat, flat, None, offsets, ks, values, indices)
    else:
        bounds = offsets.tolist()
        twin.select_segments(flat, bounds, ks.tolist(), values, indices)
        bad = twin.first_non_finite(flat, bounds)
    if bad >= 0:
        raise NonFiniteGradient(f"segment {bad} holds a NaN or inf", bad)


def accumulate_select(
    grad: Gradient,
    residual: Tensor,
    offsets: Tensor,
    ks: Tensor,
    values: Tensor,
    indices: Tensor,
    *,
    total: Tensor | None = None,
) -> None:
    """Add residual and gradient, and move the selected entries of the sum out of it: they become exact 0.

    The memory of error feedback in one step: with e the residual and g the gradient (times the learning
    rate, where the caller works in that space), p = g + e, the entries sent are top_k(p) and e' = p -
    top_k(p) (Stich et al. 2018, Alg. 1; Karimireddy et al. 2019, Alg. 2). Zero is *written*, not obtained by
    subtraction, so e' and sent entries together are the rounded sum bit for bit.

    Args:
        grad: contiguous [N], not changed; with ``total`` also one contiguous tensor for each segment, of its size.
        residual: contiguous [N]: e, and without ``total`` then e'.
        values: dtype of ``residual``. indices: int32 or int64. Both contiguous [sum(ks)].
        total: contiguous [N], apart from the others; becomes e', and the residual stays e. That saves a pass over the
            gradient, which else is read beforehand: a sum that is not finite must not replace e.

    Raises:
        NonFiniteGradient: a gradient, or its sum with the residual, is NaN or inf. The residual is untouched, so
            the step can be skipped; ``values``, ``indices`` and ``total`` are then undefined.
        ValueError: arguments that do not fit each other, or a residual that was not finite on entry.
    """
    out = residual if total is None else total
    sizes = _check(out, offsets, ks, values, indices)
    whole = isinstance(grad, Tensor)
    parts = [grad] if isinstance(grad, Tensor) else list(grad)
    require(whole or total is not None, "gradients that lie apart need a total")
    _check_addends([residual, *parts], [out.numel(), *([out.numel()] if whole else sizes)], out)
    bad = -1
    if (kernel := _fused(out, residual, values, indices, *parts)) is not None:
        # Of each segment, where float 0 of a flat gradient would lie of which it is a part.
        places = np.array([part.data_ptr() for part in parts], np.int64)
        places = np.full(len(sizes), places[0]) if whole else places - 4 * offsets.numpy()[:-1]
        if total is None:
            arrays = (tensor.detach().numpy() for tensor in (parts[0], residual, offsets))
            bad = int(kernel.first_bad_segment(*arrays, torch.get_num_threads()))
        if bad < 0:
            bad = _run(kernel, out, residual, places, offsets, ks, values, indices)
            if bad >= 0 and total is None:
                raise ValueError(f"the residual of segment {bad} was not finite on entry")
    else:
        bounds = offsets.tolist()
        with torch.no_grad():
            sums = add(grad, residual, torch.empty_like(residual) if total is None else total)
            finite = twin.accumulate_select(sums, bounds, ks.tolist(), values, indices)
            if total is None:
                residual.copy_(torch.where(finite, sums, residual))
            if not bool(finite):
                bad = twin.first_non_finite(sums.index_copy_(0, indices.long(), values), bounds)
    if bad >= 0:
        raise NonFiniteGradient(_BAD_SUM.format(bad), bad)


def add(grad: Gradient, residual: Tensor, total: Tensor) -> Tensor:
    """``total`` [N] = ``residual`` [N] + gradient; returns ``total``, which may be ``residual`` itself."""
    parts = [grad] if isinstance(grad, Tensor) else grad
    sizes = [part.numel() for part in parts]
    for part, rest, out in zip(
        parts, residual.split_with_sizes(sizes), total.split_with_sizes(sizes), strict=True
    ):
        torch.add(rest, part.detach().reshape(-1), out=out)
    return total


def check_finite(flat: Tensor, offsets: Tensor) -> None:
    """Refuse a tensor [N] that holds a NaN or inf.

    Raises:
        NonFiniteGradient: with the first segment that does.
    """
    if not all_finite(flat):
        bad = twin.first_non_finite(flat, offsets.tolist())
        raise NonFiniteGradient(f"segment {bad} holds a NaN or inf", bad)


def _fused(*tensors: Tensor) -> ModuleType | None:
    """Returns the module of the compiled kernels, ready, if they take ``tensors``."""
    for t in tensors:
        if not (t.is_cpu and t.layout is torch.strided and t.is_contiguous() and t.numel() < _INT32_END):
            return None
        if t.dtype.is_floating_point and t.dtype is not torch.float32:
            return None
    warm()  # says once where numba is missing
    return fused


def _run(kernel: ModuleType, total: Tensor, residual: Tensor, gradients: I64 | None, *rest: Tensor) -> int:
    """Without ``gradients`` the entries of ``total`` are copied; ``rest`` are the other arguments of :func:`select`."""
    sums, before, offsets, ks, *out = (tensor.detach().numpy() for tensor in (total, residual, *rest))
    add = gradients is not None
    problem = kernel.Problem(sums, before, gradients if add else np.zeros_like(ks), add, offsets, ks, *out)
    return int(problem.run(torch.get_num_threads()))


def _check(flat: Tensor, offsets: Tensor, ks: Tensor, values: Tensor, indices: Tensor) -> list[int]:
    """The kernels run without bounds checks, so nothing wrong may reach them; returns the segments' sizes."""
    # Texts are made only for errors: they would take longer than a small selection.
    if flat.dim() != 1 or not flat.is_contiguous():
        raise ValueError(f"the flat tensor must be contiguous and one-dimensional, not {tuple(flat.shape)}")
    if flat.dtype not in twin.DTYPES:
        raise ValueError(f"cannot select from {flat.dtype}")
    for name, table in (("offsets", offsets), ("ks", ks)):
        if not (table.dtype == torch.int64 and table.dim() == 1 and table.is_cpu and table.is_contiguous()):
            raise ValueError(f"{name} must be a contiguous int64 vector on the CPU")
    bounds, counts = offsets.numpy(), ks.numpy()
    require(
        len(bounds) == len(counts) + 1 and bounds[0] == 0 and bounds[-1] == flat.numel(),
        f"offsets must be {len(counts) + 1} bounds from 0 to {flat.numel()}",
    )
    sizes, total = bounds[1:] - bounds[:-1], int(counts.sum())
    require(
        bool(((sizes >= 0) & (counts <= sizes) & (counts >= np.minimum(sizes, 1))).all()),
        "every segment needs 1 <= k <= its size, and k = 0 where it is empty",
    )
    for name, out in (("values", values), ("indices", indices)):
        if not (out.shape == (total,) and out.is_contiguous() and out.device == flat.device):
            raise ValueError(f"{name} must be contiguous [{total}] on {flat.device}, not {tuple(out.shape)}")
    if values.dtype != flat.dtype:
        raise ValueError(f"values must be {flat.dtype}, not {values.dtype}")
    if indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"indices must be int32 or int64, not {indices.dtype}")
    if indices.dtype == torch.int32 and flat.numel() > _INT32_END:
        raise ValueError(f"int32 indices cannot address {flat.numel()} entries")
    return [int(size) for size in sizes]


def _check_addends(addends: Sequence[Tensor], sizes: Sequence[int], total: Tensor) -> None:
    """Residual first, then the gradients."""
    require(
        [each.numel() for each in addends] == list(sizes)
        and all(each.is_contiguous() and each.device == total.device for each in addends)
        and addends[0].dtype == total.dtype,
        f"grad and residual must be contiguous, on {total.device}, and of the sum's size, {total.numel()}",
    )
    for kind in {each.dtype for each in addends}:
        require(
            kind.is_floating_point and torch.promote_types(kind, total.dtype) == total.dtype,
            f"a {total.dtype} residual cannot hold sums with a {kind} gradient",
        )
