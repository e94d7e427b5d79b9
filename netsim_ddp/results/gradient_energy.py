"""How much of a recorded gradient's energy its largest entries hold: what sparsification has to work with."""

from __future__ import annotations

import numpy as np

from netsim_ddp.results.recording import Recording

_SHIFT = 14
"""Of a float32's bits: magnitudes that agree in their 9 first bits of 23 are counted as one."""


def top_share(recording: Recording, values: np.ndarray, number: int, share: float = 0.01) -> float | None:
    """The part of the squared norm that the largest ``share`` of the entries hold, between 0 and 1; None where all
    entries are 0. A kept value of a sampled parameter stands for as many as it was kept of.

    Args:
        values: set ``number`` of the file, float16 [sum of kept].
    """
    gradients = recording.gradients
    bins = 1 << (31 - _SHIFT)
    counts, energies = np.zeros(bins), np.zeros(bins)
    at = 0
    for parameter, kept, scale in zip(
        recording.parameters, gradients.kept, gradients.scales[number], strict=True
    ):
        # Divided by the largest scale, no square overflows or vanishes that counts.
        own = values[at : at + kept].astype(np.float32) * np.float32(scale / max(gradients.scales[number]))
        at += kept
        if kept:
            places = np.abs(own).view(np.int32) >> _SHIFT
            weight = parameter.numel / kept
            counts += weight * np.bincount(places, minlength=bins)
            energies += weight * np.bincount(places, weights=own.astype(np.float64) ** 2, minlength=bins)
    total = float(energies.sum())
    if total == 0:
        return None
    wanted = share * float(counts.sum())
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, wanted))  # the bin in which the smallest of them lie
    inside = counts[::-1][place]
    rest = wanted - (above[place] - inside)
    held = float(energies[::-1][:place].sum() + energies[::-1][place] * rest / inside)
    return min(held / total, 1.0)
