"""Four well-known compressors as methods of one's own, each as short as it can honestly be.

::

    netsim run --method dense --method compressors:SignFeedback --method compressors:QSGD,levels=4
    netsim check compressors:RotatedSign

``SignFeedback`` and ``RotatedSign`` send one bit per element, ``QSGD`` a byte, ``RandomK`` k floats.  The first keeps a
residual, the last by an option; the others are unbiased and keep nothing, which they declare. docs/methods.md has the
contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from netsim_ddp import FlatGradients, Group, Local, Method, NonFiniteGradient, Segment, peer_exchange, summed


class Messages:
    """One message of a fixed size from every rank to every other, and where they lie."""

    def __init__(self, name: str, group: Group, nbytes: int) -> None:
        self.rows = [torch.zeros(nbytes, dtype=torch.uint8) for _ in range(group.world_size)]
        self.mine = self.rows[group.rank]
        self.wire = peer_exchange(name, group, [self.mine] * group.world_size, self.rows, nbytes)


class SignFeedback(Method):
    """The signs of gradient + residual and their mean magnitude (Karimireddy et al. 2019, Algorithm 1).

    A scale that is NaN or inf tells every rank that this step cannot be used, and none changes its residual.
    """

    name = "sign-feedback"

    def __init__(self, flat: FlatGradients, group: Group) -> None:
        super().__init__(flat, group)
        self.residual = torch.zeros_like(flat.data)
        self.compensated = torch.zeros_like(flat.data)
        self.messages = Messages("signs", group, 4 + -(-flat.numel // 8))

    def segments(self) -> list[Segment]:
        return [Local("compress", self._compress), self.messages.wire, Local("decompress", self._decompress)]

    def _compress(self) -> None:
        torch.add(self.flat.data, self.residual, out=self.compensated)
        _pack(self.compensated, self.compensated.abs().mean(), self.messages.mine)

    def _decompress(self) -> None:
        scales = [_scale_of(message) for message in self.messages.rows]
        _refuse_unless_finite(scales)
        own = self.group.rank
        self.flat.data.zero_()
        for rank, (scale, message) in enumerate(zip(scales, self.messages.rows, strict=True)):
            sent = _signs_of(message, self.flat.numel).mul_(scale)
            self.flat.data.add_(sent, alpha=1 / self.group.world_size)
            if rank == own:
                torch.sub(self.compensated, sent, out=self.residual)

    @property
    def residual_bytes(self) -> int:
        return self.residual.numel() * 4

    def state_dict(self) -> dict[str, Any]:
        return {"residual": self.residual.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.residual.copy_(state["residual"])


class Stepped(Method):
    """A method whose random numbers follow from its seed, the step and the rank; its state is the step."""

    def __init__(self, flat: FlatGradients, group: Group, *, seed: int = 0) -> None:
        super().__init__(flat, group)
        self.seed, self.step = seed, 0

    def generator(self, rank: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.step) * 1_009 + rank)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]


class QSGD(Stepped):
    """Each element rounded at random to one of a few levels of the norm (Alistarh et al. 2017, section 3.1).

    Rounded up as often as its distance says, the expected value is the element itself.
    """

    name = "qsgd"
    unbiased: ClassVar[bool] = True

    def __init__(self, flat: FlatGradients, group: Group, *, levels: int = 16, seed: int = 0) -> None:
        super().__init__(flat, group, seed=seed)
        if not 1 <= levels <= 127:
            raise ValueError(f"levels={levels} does not fit a signed byte: write 1 to 127")
        self.levels = levels
        self.messages = Messages("levels", group, 4 + flat.numel)

    def segments(self) -> list[Segment]:
        return [Local("compress", self._compress), self.messages.wire, Local("decompress", self._decompress)]

    def _compress(self) -> None:
        norm = self.flat.data.norm()
        exact = self.flat.data * (self.levels / norm if norm > 0 else 0)
        lower = exact.floor()
        draw = torch.rand(lower.shape, generator=self.generator(self.group.rank), dtype=torch.float32)
        levels = (lower + (draw < exact - lower)).clamp(-self.levels, self.levels)
        self.messages.mine[:4] = _bytes_of(norm)
        self.messages.mine[4:] = levels.to(torch.int8).view(torch.uint8)

    def _decompress(self) -> None:
        norms = [_scale_of(message) for message in self.messages.rows]
        _refuse_unless_finite(norms)
        self.flat.data.zero_()
        for norm, message in zip(norms, self.messages.rows, strict=True):
            levels = message[4:].view(torch.int8).to(torch.float32)
            self.flat.data.add_(levels, alpha=norm / self.levels / self.group.world_size)
        self.step += 1


class RotatedSign(Stepped):
    """One bit per element of the randomly rotated gradient, unbiased (Vargaftik et al. 2021, DRIVE, section 4).

    The rotation is random signs and a Hadamard transform; the scale |x|^2 / |Rx|_1 makes the mean over rotations right.
    """

    name = "rotated-sign"
    unbiased: ClassVar[bool] = True

    def __init__(self, flat: FlatGradients, group: Group, *, seed: int = 0) -> None:
        super().__init__(flat, group, seed=seed)
        self.size = 1 << max(0, flat.numel - 1).bit_length()
        self.messages = Messages("signs", group, 4 + -(-self.size // 8))

    def segments(self) -> list[Segment]:
        return [Local("compress", self._compress), self.messages.wire, Local("decompress", self._decompress)]

    def _flips(self, rank: int) -> Tensor:
        bits = torch.randint(0, 2, (self.size,), generator=self.generator(rank), dtype=torch.int64)
        return (2 * bits - 1).to(torch.float32)

    def _compress(self) -> None:
        padded = torch.zeros(self.size, dtype=torch.float32)
        padded[: self.flat.numel] = self.flat.data
        rotated = _hadamard(padded * self._flips(self.group.rank))
        total = rotated.abs().sum()
        _pack(rotated, padded.dot(padded) / total if total != 0 else total, self.messages.mine)

    def _decompress(self) -> None:
        scales = [_scale_of(message) for message in self.messages.rows]
        _refuse_unless_finite(scales)
        self.flat.data.zero_()
        for rank, (scale, message) in enumerate(zip(scales, self.messages.rows, strict=True)):
            back = _hadamard(_signs_of(message, self.size)).mul_(self._flips(rank))
            self.flat.data.add_(back[: self.flat.numel], alpha=scale / self.group.world_size)
        self.step += 1


class RandomK(Stepped):
    """k random elements, the same on all ranks, so that their values can be summed on the way (Stich et al. 2018).

    Args:
        ratio: k / N. feedback: keep the others in a residual; off, the values are scaled by N / k, and unbiased.
    """

    name = "random-k"

    def __init__(
        self,
        flat: FlatGradients,
        group: Group,
        *,
        ratio: float = 0.1,
        feedback: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(flat, group, seed=seed)
        self.values = torch.zeros(max(1, round(ratio * flat.numel)), dtype=torch.float32)
        self.compensated = torch.zeros_like(flat.data)
        self.residual = torch.zeros_like(flat.data) if feedback else None
        self.unbiased = not feedback  # type: ignore[misc]  # of this instance: it depends on the option

    def segments(self) -> list[Segment]:
        return [
            Local("compress", self._compress),
            *summed(self.values, self.group),
            Local("decompress", self._decompress),
        ]

    def _compress(self) -> None:
        self.compensated.copy_(self.flat.data)
        if self.residual is not None:
            self.compensated += self.residual
        order = torch.randperm(self.flat.numel, generator=self.generator(0))
        self.positions = order[: self.values.numel()]
        torch.index_select(self.compensated, 0, self.positions, out=self.values)
        if not self.flat.data.isfinite().all():
            self.values.fill_(torch.nan)  # it may lie at a position that is not sent

    def _decompress(self) -> None:
        _refuse_unless_finite(self.values.tolist())
        scale = 1.0 if self.residual is not None else self.flat.numel / self.values.numel()
        if self.residual is not None:
            self.residual.copy_(self.compensated)[self.positions] = 0
        self.flat.data.zero_()[self.positions] = self.values * (scale / self.group.world_size)
        self.step += 1

    @property
    def residual_bytes(self) -> int:
        return 0 if self.residual is None else self.residual.numel() * 4

    def state_dict(self) -> dict[str, Any]:
        kept = {} if self.residual is None else {"residual": self.residual.clone()}
        return {**super().state_dict(), **kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if self.residual is not None:
            self.residual.copy_(state["residual"])


def _refuse_unless_finite(numbers: list[float]) -> None:
    """Every rank has the same numbers, so that all of them raise or none."""
    if not np.isfinite(numbers).all():
        raise NonFiniteGradient("a rank found a gradient that is not finite", -1)


def _pack(values: Tensor, scale: Tensor, out: Tensor) -> None:
    """``scale`` and the sign bits of ``values`` into ``out``, uint8 [4 + ceil(N / 8)]."""
    out[:4] = _bytes_of(scale)
    out[4:] = torch.from_numpy(np.packbits((values >= 0).numpy()))


def _bytes_of(scale: Tensor) -> Tensor:
    return scale.reshape(1).to(torch.float32).view(torch.uint8)


def _scale_of(message: Tensor) -> float:
    return float(message[:4].view(torch.float32))


def _signs_of(message: Tensor, numel: int) -> Tensor:
    """[numel] of 1 and -1."""
    bits = np.unpackbits(message[4:].numpy(), count=numel)
    return torch.from_numpy(bits).to(torch.float32).mul_(2).sub_(1)


def _hadamard(values: Tensor) -> Tensor:
    """The orthonormal Hadamard transform of [2^m]; its own inverse."""
    size, half = values.numel(), 1
    while half < size:
        pairs = values.view(-1, 2, half)
        values = torch.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), dim=1).reshape(-1)
        half *= 2
    return values / size**0.5
