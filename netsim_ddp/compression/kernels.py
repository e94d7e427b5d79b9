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
from types import ModuleType

import torch
from torch import Tensor

from netsim_ddp.compression.native import compiled_module
from netsim_ddp.compression.native import torch_kernels as twin
from netsim_ddp.switches import compiled_kernels

fused = compiled_module("fused")

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
        bad = _run(kernel, flat, flat, offsets, ks, values, indices, add=False)
    else:
        bounds = offsets.tolist()
        twin.select_segments(flat, bounds, ks.tolist(), values, indices)
        bad = twin.first_non_finite(flat, bounds)
    if bad >= 0:
        raise NonFiniteGradient(f"segment {bad} holds a NaN or inf", bad)


def accumulate_select(
    grad: Tensor,
    residual: Tensor,
    offsets: Tensor,
    ks: Tensor,
    values: Tensor,
    indices: Tensor,
    *,
    atomic: bool = True,
) -> None:
    """``residual += grad``, then move the selected entries of the sum out of it: they become exact 0.

    The memory of error feedback in one step: with e the residual and g the gradient (times the learning
    rate, where the caller works in that space), p = g + e, the entries sent are top_k(p) and e' = p -
    top_k(p) (Stich et al. 2018, Alg. 1; Karimireddy et al. 2019, Alg. 2). Zero is *written*, not obtained by
    subtraction, so residual and sent entries together are the rounded sum bit for bit.

    Args:
        grad: contiguous [N], not changed. residual: contiguous [N], updated in place.
        values: dtype of ``residual``. indices: int32 or int64. Both contiguous [sum(ks)].
        atomic: leave ``residual`` alone where the sum is not finite. Off, it is undefined then, which saves a pass
            over both: for a caller that can do without it.

    Raises:
        NonFiniteGradient: a gradient, or its sum with the residual, is NaN or inf. The residual is untouched, so
            the step can be skipped; ``values`` and ``indices`` are then undefined.
        ValueError: arguments that do not fit each other, or a residual that was not finite on entry.
    """
    _check(residual, offsets, ks, values, indices)
    require(
        grad.shape == residual.shape and grad.device == residual.device and grad.is_contiguous(),
        f"grad must be contiguous and like residual {tuple(residual.shape)} in shape and device",
    )
    require(
        torch.promote_types(grad.dtype, residual.dtype) == residual.dtype,
        f"a {residual.dtype} residual cannot hold sums with a {grad.dtype} gradient",
    )
    if (kernel := _fused(grad, residual, values, indices)) is not None:
        if atomic:
            check_sum(grad, residual, offsets)
        bad = _run(kernel, residual, grad, offsets, ks, values, indices, add=True)
        if bad >= 0 and atomic:
            raise ValueError(f"the residual of segment {bad} was not finite on entry")
        if bad >= 0:
            raise NonFiniteGradient(_BAD_SUM.format(bad), bad)
        return
    bounds = offsets.tolist()
    with torch.no_grad():
        total = residual + grad
        if not bool(twin.accumulate_select(total, residual, bounds, ks.tolist(), values, indices)):
            bad = twin.first_non_finite(total, bounds)
            raise NonFiniteGradient(_BAD_SUM.format(bad), bad)


def check_sum(grad: Tensor, residual: Tensor, offsets: Tensor) -> None:
    """Refuse a gradient [N] that is not finite, or whose sum with the finite residual [N] would not be.

    Raises:
        NonFiniteGradient: with the first such segment.
    """
    if (kernel := _fused(grad, residual)) is not None:
        arrays = (tensor.detach().numpy() for tensor in (grad, residual, offsets))
        bad = int(kernel.first_bad_segment(*arrays, torch.get_num_threads()))
    else:
        with torch.no_grad():
            bad = twin.first_non_finite(residual + grad, offsets.tolist())
    if bad >= 0:
        raise NonFiniteGradient(_BAD_SUM.format(bad), bad)


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
    fit = all(
        t.device.type == "cpu" and t.layout == torch.strided and t.is_contiguous() and t.numel() < _INT32_END
        for t in tensors
    )
    if not fit or {t.dtype for t in tensors if t.dtype.is_floating_point} != {torch.float32}:
        return None
    warm()  # says once where numba is missing
    return fused


def _run(
    kernel: ModuleType,
    flat: Tensor,
    grad: Tensor,
    offsets: Tensor,
    ks: Tensor,
    values: Tensor,
    indices: Tensor,
    *,
    add: bool,
) -> int:
    total, addend, *rest = (t.detach().numpy() for t in (flat, grad, offsets, ks, values, indices))
    return int(kernel.Problem(total, addend, add, *rest).run(torch.get_num_threads()))


def _check(flat: Tensor, offsets: Tensor, ks: Tensor, values: Tensor, indices: Tensor) -> None:
    """The kernels run without bounds checks, so nothing wrong may reach them."""
    require(
        flat.dim() == 1 and flat.is_contiguous(),
        f"the flat tensor must be contiguous and one-dimensional, not {tuple(flat.shape)}",
    )
    require(flat.dtype in twin.DTYPES, f"cannot select from {flat.dtype}")
    for name, table in (("offsets", offsets), ("ks", ks)):
        vector = table.dtype == torch.int64 and table.dim() == 1 and table.device.type == "cpu"
        require(vector, f"{name} must be an int64 vector on the CPU")
        require(table.is_contiguous(), f"{name} must be contiguous")
    sizes, total = offsets.diff(), int(ks.sum())
    require(
        offsets.numel() == ks.numel() + 1 and int(offsets[0]) == 0 and int(offsets[-1]) == flat.numel(),
        f"offsets must be {ks.numel() + 1} bounds from 0 to {flat.numel()}",
    )
    require(
        bool((sizes >= 0).all() and (ks <= sizes).all() and (ks >= sizes.clamp(max=1)).all()),
        "every segment needs 1 <= k <= its size, and k = 0 where it is empty",
    )
    for name, out in (("values", values), ("indices", indices)):
        require(
            out.shape == (total,) and out.is_contiguous() and out.device == flat.device,
            f"{name} must be contiguous [{total}] on {flat.device}, not {tuple(out.shape)}",
        )
    require(values.dtype == flat.dtype, f"values must be {flat.dtype}, not {values.dtype}")
    require(
        indices.dtype in (torch.int32, torch.int64), f"indices must be int32 or int64, not {indices.dtype}"
    )
    require(
        indices.dtype == torch.int64 or flat.numel() <= _INT32_END,
        f"int32 indices cannot address {flat.numel()} entries",
    )
