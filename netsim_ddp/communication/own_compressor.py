"""What a user hands to a backend, a compressor and a residual buffer: the method that does as they say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from netsim_ddp.communication.exchange import peer_exchange
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Group, Local, Method, Segment
from netsim_ddp.compression.feedback import ErrorFeedbackBuffer
from netsim_ddp.compression.kernels import NonFiniteGradient, all_finite
from netsim_ddp.compression.statistics import Statistics, measure
from netsim_ddp.compression.topk import TopKCompressor
from netsim_ddp.errors import UsageError
from netsim_ddp.methods.topk import TOPK

CONTRACT = "derive it from TopKCompressor and override compress, or from netsim_ddp.Method: docs/methods.md"
"""What a user's own compression must be."""
SENT, NOT_FINITE, UNUSABLE = range(3)
"""What a rank announces."""


def own_arithmetic(compressor: TopKCompressor, buffer: ErrorFeedbackBuffer | None) -> bool:
    """Whether one of them computes otherwise than netsim's, so that ``topk``'s fused kernels cannot stand in."""
    return _overrides(compressor, TopKCompressor, "compress", "decompress") or (
        buffer is not None and _overrides(buffer, ErrorFeedbackBuffer, "compensate", "update")
    )


def _overrides(thing: object, base: type, *names: str) -> bool:
    return any(name in vars(thing) or getattr(type(thing), name) is not getattr(base, name) for name in names)


class OwnCompressor(Method):
    """Calls ``compensate``, ``compress``, ``decompress`` and ``update``, for every parameter and step: slower than
    ``topk``, and the same where nothing is overridden.

    Every rank tells the others how many entries it has of each parameter, then sends them: values as float32, positions
    as int32. All ranks decompress all messages in rank order. The residual is what was compensated minus what
    ``decompress`` makes of the message.

    Args:
        compressor: its ``compress`` returns values [k], their distinct positions [k] in the flattened gradient, and its
            shape.
        buffer: None switches error feedback off.
    """

    name = TOPK.name

    def __init__(
        self,
        flat: FlatGradients,
        group: Group,
        compressor: TopKCompressor,
        buffer: ErrorFeedbackBuffer | None,
    ) -> None:
        super().__init__(flat, group)
        self.compressor, self.buffer = compressor, buffer
        self._wire = group.wire_device(flat.data.device)
        count, ranks = len(flat.names), group.world_size
        self._told = [torch.zeros(1 + count, dtype=torch.int64, device=self._wire) for _ in range(ranks)]
        as_bytes = [told.view(torch.uint8) for told in self._told]
        self._announce = peer_exchange(
            "announce", group, [as_bytes[group.rank]] * ranks, as_bytes, as_bytes[0].numel()
        )
        self._outgoing = [torch.empty(0, dtype=torch.uint8, device=self._wire)] * ranks
        self._messages = list(self._outgoing)
        self._gather = peer_exchange("gather", group, self._outgoing, self._messages, 8)
        self._steps: list[tuple[Tensor, Tensor]] = []
        self._entries: tuple[list[Tensor], list[Tensor]] = ([], [])
        """What this rank sent last: of each parameter values, and positions in the flat gradient."""
        self._problem = ""

    def segments(self) -> list[Segment]:
        return [
            Local("compress", self._compress),
            self._announce,
            Local("compress", self._make_room),
            self._gather,
            Local("decompress", self._average),
        ]

    def _compress(self) -> None:
        """The message and what it stands for; the residual is left alone until the step is known to be fine."""
        self._problem, self._steps, self._entries = "", [], ([], [])
        told, parts = self._told[self.group.rank], []
        told.zero_()
        for place, (name, gradient) in enumerate(zip(self.flat.names, self.flat.views, strict=True)):
            compensated = gradient if self.buffer is None else self.buffer.compensate(name, gradient)
            if not all_finite(compensated):
                told[0] = NOT_FINITE
                self._problem = f"the gradient of {name!r} is not finite"
                return
            found = self.compressor.compress(compensated)
            self._problem = _problem(found, gradient)
            if self._problem:
                told[0] = UNUSABLE
                return
            values, indices = found[0].detach().float(), found[1].to(torch.int32)
            approximation = self.compressor.decompress(values, indices.long(), gradient.shape)
            if self.buffer is not None:
                self._steps.append((compensated, approximation))
            told[1 + place] = values.numel()
            self._entries[0].append(values)
            self._entries[1].append(indices.long() + int(self.flat.offsets[place]))
            parts += [values.to(self._wire), indices.to(self._wire)]
        message = torch.cat([part.contiguous().view(torch.uint8) for part in parts])
        self._outgoing[:] = [message] * self.group.world_size

    def _make_room(self) -> None:
        """All ranks can go on, and know how much each will send."""
        told = [each.tolist() for each in self._told]
        for rank, (status, *_) in enumerate(told):
            if status != SENT:
                self._refuse(rank, status)
        sizes = [8 * sum(counts) for _, *counts in told]
        for rank, size in enumerate(sizes):
            room = torch.empty(size, dtype=torch.uint8, device=self._wire)
            self._messages[rank] = self._outgoing[rank] if rank == self.group.rank else room
        self._gather.sizes = [sizes[self.group.rank]] * self.group.world_size

    def _refuse(self, rank: int, status: int) -> None:
        mine = f": {self._problem}" if rank == self.group.rank else ""
        if status == NOT_FINITE:
            raise NonFiniteGradient(f"rank {rank} found a gradient that is not finite{mine}", -1)
        raise UsageError(
            f"what compress of {type(self.compressor).__name__} returned on rank {rank} cannot be sent{mine}",
            hint="return float values [k], their distinct positions [k] in the flattened tensor, and its shape",
        )

    def _average(self) -> None:
        """The mean, in rank order, so that every rank computes the same bits; the residual keeps what was not sent."""
        self.flat.data.zero_()
        ranks = self.group.world_size
        for told, message in zip(self._told, self._messages, strict=True):
            begin = 0
            for view, count in zip(self.flat.views, told[1:].tolist(), strict=True):
                middle, end = begin + 4 * count, begin + 8 * count
                values = message[begin:middle].view(torch.float32).to(view.device)
                indices = message[middle:end].view(torch.int32).long().to(view.device)
                view.add_(self.compressor.decompress(values, indices, view.shape) / ranks)
                begin = end
        if not bool((self.flat.data.abs() <= self.limit).all()):
            raise NonFiniteGradient("the ranks' gradients have a sum that is not finite", -1)
        if self.buffer is not None:
            for name, (compensated, approximation) in zip(self.flat.names, self._steps, strict=True):
                self.buffer.update(name, compensated, approximation)
        self._steps = []

    def statistics(self, *, layers: bool = False) -> Statistics:
        indices, order = torch.cat(self._entries[1]).sort()
        kept = (
            None
            if self.buffer is None
            else torch.cat([self.buffer[name].reshape(-1).to(indices.device) for name in self.flat.names])
        )
        return measure(torch.cat(self._entries[0])[order], indices, kept, self.flat.shapes, layers=layers)

    @property
    def residual_bytes(self) -> int:
        return 0 if self.buffer is None else self.buffer.nbytes

    def state_dict(self) -> dict[str, Any]:
        """This rank's residuals; what the compressor itself keeps is the user's to save."""
        return {} if self.buffer is None else {"error_buffer": self.buffer.state_dict(self.flat.names)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` saved.

        Raises:
            ValueError: it is of other parameters, or with feedback where this is without.
        """
        if ("error_buffer" in state) != (self.buffer is not None):
            raise ValueError("the state was saved with feedback and this is without, or the other way round")
        if "sums" in state and bool(state["sums"].any()):
            raise ValueError(
                "the state holds an owner's sums, which a compressor of your own has no place for"
            )
        if self.buffer is not None:
            self.buffer.load_state_dict(state["error_buffer"], list(state["error_buffer"]))


def _problem(found: Any, gradient: Tensor) -> str:
    """What makes an answer of ``compress`` one that nobody could decompress; empty where it is fine."""
    if not (isinstance(found, tuple) and len(found) == 3 and all(isinstance(x, Tensor) for x in found[:2])):
        return f"it is a {type(found).__name__}"
    values, indices, shape = found
    if values.dim() != 1 or values.shape != indices.shape or not values.is_floating_point():
        return f"{values.dtype} values {list(values.shape)}, {indices.dtype} positions {list(indices.shape)}"
    if tuple(shape) != tuple(gradient.shape):
        return f"its shape is {tuple(shape)}, not {tuple(gradient.shape)}"
    if indices.is_floating_point() or (
        indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < gradient.numel()
    ):
        return f"a position lies outside 0 to {gradient.numel() - 1}"
    return "" if all_finite(values) else "a value is not finite"
