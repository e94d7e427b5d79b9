"""From the gradients of a recording, samples mostly, to gradients that can be sent.

A block of the full gradient that was not kept is the nearest one that was. So parameters, and regions of one, keep
their size relative to each other; neighbours stay neighbours, on which the cost of coding positions depends; a row of
an embedding that was not looked up stays empty; and since all sets keep the same places, what one set shares with the
next is shared in full too. float16 makes equal numbers of different ones, and copies do: values are moved by up to half
of its last digit, by a seed, so that a selection meets no more ties than in the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from netsim_ddp.results.recording import Gradients, Recording
from netsim_ddp.results.recording_file import gradient_sets
from netsim_ddp.workloads.recording.gradients import starts_of

SYNTHETIC_SETS = 3
_CHUNK = 1 << 22  # values at a time, so that a large parameter needs little beside its gradient
_HALF_ULP = 2.0**-12


def sets_of(recording: Recording) -> int:
    """How many sets of gradients can be played."""
    return len(recording.gradients.steps) or SYNTHETIC_SETS


def reconstruct(path: Path, recording: Recording, into: Sequence[Sequence[Tensor]], seed: int) -> None:
    """Fill in the gradients of ``recording``, which lies at ``path``; drawn from a normal distribution where it has
    none.

    Args:
        into: :func:`sets_of` sets of float32 tensors, one for each parameter in the recording's order, contiguous and
            of its size.

    Raises:
        UsageError: as :func:`~netsim_ddp.results.recording_file.gradient_sets`.
    """
    draw = torch.Generator().manual_seed(seed)
    if not recording.gradients.steps:
        for each in into:
            for gradient in each:
                gradient.normal_(generator=draw)
        return
    sets = zip(gradient_sets(path), recording.gradients.scales, into, strict=True)
    for values, scales, gradients in sets:
        kept = torch.split(torch.from_numpy(values), recording.gradients.kept)
        for samples, scale, gradient in zip(kept, scales, gradients, strict=True):
            fill(gradient, samples, scale, recording.gradients, draw)


def fill(gradient: Tensor, samples: Tensor, scale: float, how: Gradients, draw: torch.Generator) -> None:
    """Fill ``gradient`` from its ``samples``, float16 [kept], each to be multiplied by ``scale``."""
    flat, block = gradient.view(-1), how.block
    numel, kept = flat.numel(), samples.numel()
    if kept == 0:
        flat.zero_()
        return
    whole = kept == numel
    starts = torch.from_numpy(starts_of(numel, kept, block))
    rows = samples if whole else samples.view(-1, block)
    for begin in range(0, numel, _CHUNK // block * block):
        out = flat[begin : begin + _CHUNK // block * block]
        if whole:
            values = rows[begin : begin + out.numel()]
        else:
            places = torch.arange(begin, begin + out.numel(), block)
            after = torch.searchsorted(starts, places).clamp(max=len(starts) - 1)
            before = (after - 1).clamp(min=0)
            nearest = torch.where(places - starts[before] <= starts[after] - places, before, after)
            values = rows[nearest].view(-1)[: out.numel()]
        out.copy_(values)
        noise = torch.empty_like(out).uniform_(1 - _HALF_ULP, 1 + _HALF_ULP, generator=draw)
        out.mul_(noise).mul_(scale)
