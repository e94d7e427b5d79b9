"""Every gradient of a model in one contiguous buffer, in parameter order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from netsim_ddp.communication.parameters import UnusableParameter, check_gradient, narrowed, trained
from netsim_ddp.compression.kernels import zeros


class FlatGradients:
    """A float32 buffer [N] with one view per parameter.

    A method works on the whole buffer: one pass, one message per step. When a parameter's ``grad`` *is* its view
    (:meth:`attach`) backward writes straight into the buffer; otherwise :meth:`gather` and :meth:`scatter`
    copy, one memory pass each. A method that borrows needs no copy: it reads gradients where they lie, and writes the
    average there (:meth:`lend`).

    Args:
        named_parameters: as ``model.named_parameters()`` gives them; those that need no gradient are left out.
        data: the memory to use, a stretch of a larger buffer; new memory by default.

    Raises:
        UnusableParameter: (a ValueError and a UsageError) no parameter needs a gradient, they live on several devices,
            or one is of a type that is not exchanged, or has another's name.
    """

    def __init__(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], data: torch.Tensor | None = None
    ) -> None:
        named = trained(named_parameters)
        devices = {parameter.device for _, parameter in named}
        if len(devices) > 1:
            raise UnusableParameter(
                f"parameters live on several devices: {', '.join(sorted(map(str, devices)))}"
            )
        self.is_part = False
        """Whether this is one bucket of several."""
        self.parameters = [parameter for _, parameter in named]
        self.shapes = {name: parameter.shape for name, parameter in named}
        self.kinds = [parameter.dtype for parameter in self.parameters]
        """The types of the parameters; the buffer is float32."""
        self.offsets: NDArray[np.int64] = np.concatenate(
            [[0], np.cumsum([parameter.numel() for parameter in self.parameters])]
        ).astype(np.int64)
        size, device = int(self.offsets[-1]), devices.pop()
        self.data = zeros(size, device) if data is None else data
        self.views = self.views_of(self.data)
        self._attachable = {self.data.data_ptr(): self.views}
        self.lent: list[torch.Tensor] | None = None
        """What :meth:`lend` was given for this step."""

    def __repr__(self) -> str:
        part = "one bucket of " if self.is_part else ""
        return (
            f"FlatGradients({part}{len(self.parameters)} parameters, {self.data.numel():,} elements, "
            f"{self.data.device})"
        )

    def views_of(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """``buffer`` [N] cut into one view per parameter."""
        return [
            buffer[begin:end].view(parameter.shape)
            for begin, end, parameter in zip(self.offsets, self.offsets[1:], self.parameters, strict=False)
        ]

    def part(self, first: int, last: int) -> FlatGradients:
        """Parameters ``first`` to ``last - 1`` alone, on the same memory."""
        named = list(zip(self.names, self.parameters, strict=True))[first:last]
        part = FlatGradients(named, self.data[int(self.offsets[first]) : int(self.offsets[last])])
        part.is_part = self.is_part or last - first < len(self.parameters)
        return part

    @property
    def sources(self) -> list[torch.Tensor]:
        """Where each parameter's gradient lies, contiguous float32: what was lent, or the views of ``data``."""
        return self.views if self.lent is None else self.lent

    @property
    def lendable(self) -> bool:
        """Whether gradients may be lent: all of float32, in the host's memory."""
        return self.data.device.type == "cpu" and all(kind == torch.float32 for kind in self.kinds)

    def lend(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Until :meth:`take_back`, gradients lie in these tensors and not in ``data``, and the average is wanted there
        too: one for each parameter, of its size, None for one without. One that is not contiguous is copied, and a
        missing one is zero; both lie in their view.

        Raises:
            UnusableParameter: a gradient is sparse; nothing has been lent then.
        """
        for name, gradient in zip(self.shapes, gradients, strict=True):
            if gradient is not None:
                check_gradient(name, gradient)
        lent = []
        for gradient, view in zip(gradients, self.views, strict=True):
            if gradient is None:
                view.zero_()
            elif not gradient.is_contiguous():
                view.copy_(gradient)
            lent.append(view if gradient is None or not gradient.is_contiguous() else gradient)
        self.lent = lent

    def take_back(self, *, averaged: bool) -> None:
        """The step is over. If it was taken, ``averaged``, every parameter's ``grad`` gets what it has not yet; a
        missing one is created, as :meth:`scatter` does."""
        lent, self.lent = self.lent, None
        for parameter, view, where in zip(self.parameters, self.views, lent or [], strict=False):
            if averaged and where is view:
                parameter.grad = view.clone() if parameter.grad is None else parameter.grad.copy_(view)

    @property
    def names(self) -> list[str]:
        return list(self.shapes)

    @property
    def numel(self) -> int:
        return self.data.numel()

    def holds(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> bool:
        """Whether this buffer was laid out for exactly these parameters, as they are now: under these names, on their
        device, of their types."""
        device = self.data.device
        wanted = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        return len(wanted) == len(self.parameters) and all(
            ours is parameter and known == name and parameter.device == device and parameter.dtype == kind
            for ours, known, kind, (name, parameter) in zip(
                self.parameters, self.shapes, self.kinds, wanted, strict=True
            )
        )

    def attach(self, buffer: torch.Tensor | None = None) -> None:
        """Make every float32 parameter's ``grad`` a view of ``buffer`` [N], by default of ``data``. Clear gradients
        with ``optimizer.zero_grad(set_to_none=False)`` from then on, or the views are lost."""
        buffer = self.data if buffer is None else buffer
        if buffer.data_ptr() not in self._attachable:
            self._attachable[buffer.data_ptr()] = self.views_of(buffer)
        for parameter, view in zip(self.parameters, self._attachable[buffer.data_ptr()], strict=True):
            if parameter.dtype == torch.float32:
                parameter.grad = view

    def clear(self) -> None:
        """Begin a step: every gradient is zero, and where it can be a view of ``data``."""
        self.attach()
        self.data.zero_()
        for parameter in self.parameters:
            if parameter.dtype != torch.float32:  # has a gradient of its own, not a view of the zeros
                parameter.grad = None

    def gather(self, scale: float = 1.0) -> None:
        """Copy gradients that are not views into the buffer, divided by ``scale``; a missing gradient counts as zero.

        Raises:
            UnusableParameter: a gradient is sparse; nothing has been copied then.
        """
        self.check()
        for parameter, view in zip(self.parameters, self.views, strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                unscale(parameter.grad, scale, view)

    def check(self) -> None:
        """Refuse gradients that cannot be exchanged.

        Raises:
            UnusableParameter: one is sparse.
        """
        for name, parameter in zip(self.shapes, self.parameters, strict=True):
            if parameter.grad is not None:
                check_gradient(name, parameter.grad)

    def fitted(self, buffer: torch.Tensor, scale: float = 1.0) -> list[tuple[int, torch.Tensor]]:
        """Take out of the averages in ``buffer`` [N] what their parameters' types cannot hold, times ``scale``.

        Returns:
            What was taken out, float32, each with the position where it begins.
        """
        beyond: list[tuple[int, torch.Tensor]] = []
        if all(kind == buffer.dtype for kind in self.kinds):
            return beyond
        for begin, view, kind in zip(self.offsets, self.views_of(buffer), self.kinds, strict=False):
            fits, rest = narrowed(view, kind, scale)
            if rest is not None:
                view.copy_(fits)
                beyond.append((int(begin), rest.reshape(-1)))
        return beyond

    def scatter(self, buffer: torch.Tensor, scale: float = 1.0) -> None:
        """Copy ``buffer`` [N], times ``scale``, back into gradients; a missing one is created, so that a parameter
        which only some ranks used still gets the same update on all of them."""
        for parameter, view in zip(self.parameters, self.views_of(buffer), strict=True):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(view, dtype=parameter.dtype)
            rescale(view, scale, parameter.grad)

    def fill_gradients(self, value: float) -> None:
        """Make every gradient ``value``, those that are missing too."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.fill_(value)

    def segment_of(self, position: int) -> str:
        """The name of the parameter that holds flat ``position``."""
        return self.names[int(np.searchsorted(self.offsets, position, side="right")) - 1]


def unscale(gradient: torch.Tensor, scale: float, out: torch.Tensor) -> None:
    """``out = gradient / scale``, float32 in one pass; both may be the same memory."""
    if scale != 1.0 and gradient.dtype == out.dtype:
        torch.div(gradient, scale, out=out)
        return
    if gradient.data_ptr() != out.data_ptr():
        out.copy_(gradient)
    if scale != 1.0:  # in a wider type than the gradient's
        out.div_(scale)


def rescale(average: torch.Tensor, scale: float, out: torch.Tensor) -> None:
    """``out = average * scale``, the way back."""
    if scale != 1.0 and average.dtype == out.dtype:
        torch.mul(average, scale, out=out)
    elif scale != 1.0:
        out.copy_(average * scale)
    elif average.data_ptr() != out.data_ptr():
        out.copy_(average)


def check_layout(flat: FlatGradients, model: nn.Module) -> None:
    """Refuse a model whose parameters are no longer those that ``flat`` was laid out for.

    Raises:
        UnusableParameter: one was added or removed, or needs a gradient that did not, or the other way round.
    """
    if flat.holds(model.named_parameters()):
        return
    here = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    changed = sorted(here.symmetric_difference(flat.names))
    what = (
        f"{changed[0]} {'now' if changed[0] in here else 'no longer'} needs a gradient"
        if changed
        else "an order"
    )
    raise UnusableParameter(
        f"the model's parameters changed while it was trained: {what}",
        hint="set requires_grad before the first step, in the function that builds the model",
    )
