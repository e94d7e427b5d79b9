"""What a step sent and what it kept back, read from what is there after it: nothing is counted while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """One rank's last step; of several buckets the sum (``+``).

    Attributes:
        entries: selected, of ``numel``.
        payload_bytes: handed to the wire by this rank, headers of its messages included; 0 for a single layer.
        sent_energy: the sum of squares of what was selected, before rounding.
        energy: that of what it was selected from, gradient + residual; None without feedback, which keeps no trace.
        residual_energy: that of the residual afterwards, what rounding took included; None without feedback.
        layers: the same of every parameter, by name, where asked for.
    """

    entries: int
    numel: int
    sent_energy: float
    energy: float | None
    residual_energy: float | None
    payload_bytes: int = 0
    layers: dict[str, Statistics] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The ratio achieved, k/N."""
        return self.entries / self.numel if self.numel else 0.0

    @property
    def energy_kept(self) -> float | None:
        """||sent||^2 / ||gradient + residual||^2, in [0, 1]; of a zero gradient, 1."""
        if self.energy is None:
            return None
        return self.sent_energy / self.energy if self.energy else 1.0

    @property
    def residual_norm(self) -> float | None:
        return None if self.residual_energy is None else self.residual_energy**0.5

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            entries=self.entries + other.entries,
            numel=self.numel + other.numel,
            sent_energy=self.sent_energy + other.sent_energy,
            energy=_sum(self.energy, other.energy),
            residual_energy=_sum(self.residual_energy, other.residual_energy),
            payload_bytes=self.payload_bytes + other.payload_bytes,
            layers=self.layers | other.layers,
        )


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def measure(
    values: Tensor,
    indices: Tensor,
    residual: Tensor | None,
    shapes: Mapping[str, torch.Size],
    *,
    layers: bool,
) -> Statistics:
    """The statistics of a step, in float64.

    Args:
        values, indices: the entries [k], positions ascending. residual: [N] after the step, or None.
        shapes: of the parameters, in the order of the flat gradient; ``layers`` asks for theirs too.
    """
    sizes = [shape.numel() for shape in shapes.values()]
    total = _stretch(values, indices, residual, sum(sizes))
    if not layers:
        return total
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    cuts = np.searchsorted(indices.cpu().numpy(), bounds)
    found = {}
    for i, name in enumerate(shapes):
        entries = slice(cuts[i], cuts[i + 1])
        part = None if residual is None else residual[bounds[i] : bounds[i + 1]]
        found[name] = _stretch(values[entries], indices[entries] - int(bounds[i]), part, sizes[i])
    return replace(total, layers=found)


def _stretch(values: Tensor, indices: Tensor, residual: Tensor | None, numel: int) -> Statistics:
    sent = _energy(values)
    if residual is None:
        return Statistics(values.numel(), numel, sent, None, None)
    kept = _energy(residual)
    # What rounding took lies in the residual at the positions sent, and was part of what was sent.
    rounding = _energy(residual[indices.long()])
    return Statistics(values.numel(), numel, sent, sent + max(kept - rounding, 0.0), kept)


def _energy(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
