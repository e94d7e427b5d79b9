"""Error feedback: what was not sent is added to the next gradient instead of being lost.

With g the gradient, e the residual and C the compressor: p = g + e; send C(p); e' = p - C(p) (Karimireddy et
al. 2019, Alg. 2, EF-SGD; Stich et al. 2018, Alg. 1, Mem-SGD; Lin et al. 2018, Sec. 3, call it local gradient
accumulation). Two conditions are easy to miss:

* C(p) is this rank's **own** approximation, never the average over ranks: subtracting the average leaves the
  ranks' disagreement in the residual for ever.
* C(p) is what the *others receive*: after rounding to fp16, after saturation. See
  :func:`return_rounding_error` and ``received`` of :meth:`netsim_ddp.compression.codec.Codec.encode`.

Residuals here are in gradient space: they are not rescaled when the learning rate changes. They belong to one
rank; save each rank's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from netsim_ddp.compression.kernels import all_finite, require, zeros


def return_rounding_error(residual: Tensor, indices: Tensor, sent: Tensor, received: Tensor) -> None:
    """Put what rounding took from the sent entries back: ``residual[indices] += sent - received``.

    Args:
        residual: flat [N], updated in place. indices: int32 or int64 [k], distinct. sent: [k] before
            rounding. received: [k] as the others decode them.
    """
    residual.index_add_(0, indices, (sent - received).to(residual.dtype))


@dataclass
class _Layout:
    """The vectors of one layout: the residuals, and once somebody asks for it the memory of the next ones."""

    shapes: dict[str, torch.Size]
    flat: Tensor
    views: dict[str, Tensor] = field(init=False)
    spare: _Layout | None = None

    def __post_init__(self) -> None:
        parts = self.flat.split_with_sizes([shape.numel() for shape in self.shapes.values()])
        self.views = {
            name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def serves(self, dtype: torch.dtype, device: torch.device) -> bool:
        """``cuda`` without a number is the current device, and matches any tensor's ``cuda:0``."""
        here = self.flat.device
        return self.flat.dtype == dtype and here.type == device.type and device.index in (None, here.index)


class ErrorFeedbackBuffer:
    """One residual per parameter name, zero at first use.

    Three ways to use it, over the same residuals: :meth:`compensate` and :meth:`update` per tensor; :meth:`flat`, which
    hands out all of them as one vector, to work on in place; and with it :meth:`spare` and :meth:`exchange`, for
    :func:`netsim_ddp.compression.kernels.accumulate_select` to write the next ones beside them. An exchange makes every
    tensor that was got before, from ``[name]`` or :meth:`flat`, the memory of later residuals: it is valid for a step.

    Args:
        device: where residuals are kept; None means each gradient's own device.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = None if device is None else torch.device(device)
        """Where residuals are kept; None: on each gradient's own device."""
        self._buffers: dict[str, Tensor] = {}
        self._flats: dict[tuple[str, ...], _Layout] = {}
        self.resets = 0
        """How often :meth:`reset` was called."""

    def __contains__(self, name: object) -> bool:
        return name in self._buffers

    def __getitem__(self, name: str) -> Tensor:
        """The residual itself, not a copy; until the next :meth:`exchange`."""
        return self._buffers[name]

    def names(self) -> list[str]:
        """Names in order of first use."""
        return list(self._buffers)

    @property
    def nbytes(self) -> int:
        """Bytes that the residuals take."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())

    def compensate(self, name: str, gradient: Tensor) -> Tensor:
        """``gradient`` + residual, a new tensor of any shape on the gradient's device; changes no residual.

        Raises:
            ValueError: the shape is not the one that ``name`` had before.
        """
        buffer = self._buffers.get(name)
        if buffer is None:
            buffer = self._buffers[name] = torch.zeros_like(
                gradient, device=self.device, requires_grad=False, memory_format=torch.contiguous_format
            )
        self._check_shape(name, gradient.shape)
        return gradient.detach() + buffer.to(gradient.device)

    def update(self, name: str, compensated: Tensor, approx: Tensor) -> None:
        """Residual = ``compensated`` - ``approx``, both of the parameter's shape.

        Args:
            compensated: what :meth:`compensate` returned.
            approx: this rank's own approximation of it, dense, **as the other ranks receive it**; never the
                average over ranks.

        Raises:
            ValueError: ``name`` was never compensated, or a shape differs.
            ArithmeticError: the new residual would not be finite; the old one is kept.
        """
        require(name in self._buffers, f"{name!r} has no residual: call compensate first")
        self._check_shape(name, compensated.shape)
        self._check_shape(name, approx.shape)
        rest = compensated.detach() - approx.detach()
        if not all_finite(rest):
            raise ArithmeticError(f"the residual of {name!r} would hold a NaN or inf")
        self._buffers[name].copy_(rest)

    def flat(
        self,
        layout: Mapping[str, torch.Size],
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """One vector [N] whose stretches, in layout order, *are* the residuals of those names.

        The same layout gives the same tensor at every call, until it is exchanged. Residuals that exist are
        moved in, whether they were single or part of another layout (DDP reorders its buckets after the
        first step); vectors given out for another layout with any of these names are stale from then on.
        Other names are left alone.

        Args:
            layout: shape of every parameter, by name. device: default the buffer's own, else the CPU.

        Raises:
            ValueError: a known name has another shape; nothing has changed then.
        """
        target = torch.device(device) if device is not None else self.device or torch.device("cpu")
        key = tuple(layout)
        known = self._flats.get(key)
        if known is not None and known.shapes == layout and known.serves(dtype, target):
            return known.flat
        for name, shape in layout.items():
            if name in self._buffers:
                self._check_shape(name, shape)
        size = sum(shape.numel() for shape in layout.values())
        new = _Layout(dict(layout), zeros(size, target, dtype))
        self._flats = {names: old for names, old in self._flats.items() if not set(names) & set(key)}
        for name, view in new.views.items():
            if name in self._buffers:
                view.copy_(self._buffers[name])
            self._buffers[name] = view
        self._flats[key] = new
        return new.flat

    def spare(self, flat: Tensor) -> Tensor:
        """A second vector like ``flat``, which :meth:`flat` gave: the memory that the next residuals may be written to.

        Raises:
            ValueError: the residuals are no longer in ``flat``.
        """
        return self._spare(flat).flat

    def exchange(self, flat: Tensor) -> Tensor:
        """What is in :meth:`spare` are the residuals from now on, and ``flat`` is spare; returns their vector.

        Raises:
            ValueError: the residuals are no longer in ``flat``.
        """
        new = self._spare(flat)
        key = tuple(new.shapes)
        new.spare, self._flats[key].spare = self._flats[key], None
        self._flats[key] = new
        self._buffers.update(new.views)
        return new.flat

    def _spare(self, flat: Tensor) -> _Layout:
        layout = next((known for known in self._flats.values() if known.flat is flat), None)
        if layout is None:
            raise ValueError("these residuals have been laid out anew: get their vector from flat()")
        if layout.spare is None:
            layout.spare = _Layout(layout.shapes, zeros(flat.numel(), flat.device, flat.dtype))
        return layout.spare

    @contextmanager
    def as_it_was_if_this_fails(self) -> Iterator[None]:
        """What is laid out anew inside comes to nothing if an exception is raised there."""
        buffers, flats = dict(self._buffers), dict(self._flats)
        try:
            yield
        except BaseException:
            self._buffers, self._flats = buffers, flats
            raise

    def state_dict(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """A copy of every residual, by name, or of those of ``names`` that there are, in their order. Per rank: each
        rank saves its own."""
        return {
            name: self._buffers[name].detach().clone()
            for name in (self._buffers if names is None else names)
            if name in self._buffers
        }

    def load_state_dict(self, state: Mapping[str, Tensor], names: Iterable[str] | None = None) -> None:
        """Take over saved residuals; everything is checked before anything changes.

        An empty buffer takes every name. One in use keeps its tensors (so a vector from :meth:`flat` stays
        valid), devices and dtypes, and wants exactly its own names, or ``names`` of them.

        Raises:
            ValueError: names or shapes differ, an entry is no floating tensor, or is not finite.
        """
        for name, saved in state.items():
            require(
                isinstance(saved, Tensor) and saved.is_floating_point(),
                f"the saved residual of {name!r} is not a floating tensor",
            )
            require(all_finite(saved), f"the saved residual of {name!r} holds a NaN or inf")
            if name in self._buffers:
                self._check_shape(name, saved.shape)
        own = set(self._buffers if names is None else names)
        missing, unknown = sorted(own - set(state)), sorted(set(state) - own)
        require(
            not own or set(state) == own,
            f"saved residuals do not match: missing {missing}, unknown {unknown}",
        )
        for name, saved in state.items():
            if name in self._buffers:
                self._buffers[name].copy_(saved)
            else:
                self._buffers[name] = saved.detach().to(self.device or saved.device, copy=True).contiguous()

    def reset(self) -> None:
        """Set every residual to zero, in place. What split-reduce's owners keep for later steps goes with it."""
        self.resets += 1
        for buffer in self._buffers.values():
            buffer.zero_()

    def to(self, device: torch.device | str) -> ErrorFeedbackBuffer:
        """Move every residual, and later ones, to ``device``; vectors given out before are stale."""
        self.device = torch.device(device)
        layouts = list(self._flats.values())
        self._buffers = {name: buffer.to(self.device) for name, buffer in self._buffers.items()}
        self._flats = {}
        for layout in layouts:
            self.flat(layout.shapes, self.device, layout.flat.dtype)
        return self

    def _check_shape(self, name: str, shape: torch.Size) -> None:
        known = self._buffers[name].shape
        require(known == shape, f"{name!r} has a residual of shape {tuple(known)}, not {tuple(shape)}")
