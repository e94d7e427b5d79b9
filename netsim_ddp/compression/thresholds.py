"""Selection by an estimated threshold: everything at or above it is sent, so the count is only about k.

The estimate may be off, the count may not: both selectors send between ``FEWEST`` k and ``MOST`` k entries of a
segment, rounded outwards. A threshold that leaves these bounds is given up and the segment selected exactly (k
entries), as are segments too small, or kept too densely, for an estimate to pay. So a run of equal magnitudes, which
lies on one side of any threshold as a whole, costs a second selection and never more traffic.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netsim_ddp.compression import kernels
from netsim_ddp.compression.native import compiled_module
from netsim_ddp.compression.selectors import Selector
from netsim_ddp.compression.topk import host_table

fused = compiled_module("numba_thresholds")

FEWEST, MOST = 0.8, 1.3
"""The bounds of Lin et al.'s own program."""

_SMALL = 1 << 14  # entries; below, a sample that tells the threshold is most of the segment
_DENSE = 4  # segments that keep one entry in this many, or more, are selected exactly
_HITS = 1024  # sampled entries above the threshold: the count's standard error is then 3%
_LEAST_SAMPLE = 4096


def bounds(k: int) -> tuple[int, int]:
    """The fewest and the most entries that are sent where k are asked for."""
    return math.floor(FEWEST * k), math.ceil(MOST * k)


class ThresholdSelector(Selector):
    """What the two have in common: use the estimate, or give it up."""

    def most(self, n: int, k: int) -> int:
        return min(n, bounds(k)[1])

    def _choose(self, flat: Tensor, offsets: Tensor, ks: Tensor, values: Tensor, indices: Tensor) -> int:
        first = 0
        for segment, ((start, stop), k) in enumerate(
            zip(pairwise(offsets.tolist()), ks.tolist(), strict=True)
        ):
            if not k:
                continue
            part = flat[start:stop]
            out = values[first : first + self.most(stop - start, k)]
            where = indices[first : first + out.numel()]
            pays = stop - start >= _SMALL and k * _DENSE < stop - start
            fewest, most = bounds(k)
            count = above(part, self._threshold(segment, part, k), out, where) if pays else -1
            if pays and not fewest <= count <= most:
                self._missed(segment)
            if not fewest <= count <= most:
                count = k
                kernels.select(part, host_table([0, stop - start]), host_table([k]), out[:k], where[:k])
            where[:count] += start
            first += count
        return first

    @abstractmethod
    def _threshold(self, segment: int, part: Tensor, k: int) -> float:
        """An estimate of the k-th largest magnitude of ``part`` [n]."""

    def _missed(self, segment: int) -> None:
        """The last estimate for ``segment`` was out of bounds."""


class SampledSelector(ThresholdSelector):
    """The threshold is the k/n quantile of a random sample (Lin et al. 2018, Sec. 3: sample, then select).

    One entry is drawn from each of as many equal strata as leave about 1,024 above the threshold.
    """

    name = "sampled"

    def _threshold(self, segment: int, part: Tensor, k: int) -> float:
        n = part.numel()
        size = min(n, max(_LEAST_SAMPLE, _HITS * n // k))
        draw = np.random.default_rng([self.step, segment])
        stride = n // size
        positions = np.arange(size) * stride + draw.integers(0, stride, size)
        sample = part[torch.from_numpy(positions).to(part.device)].abs()
        return float(torch.topk(sample, max(1, round(size * k / n)), sorted=False).values.min())


class FittedSelector(ThresholdSelector):
    """The threshold that an exponential fitted to the magnitudes has at k/n, in several stages (SIDCo: Abdelmoniem et
    al. 2021, Sec. 3).

    Magnitudes of mean b exceed t with probability exp(-t / b), so t = b ln(n / k). A gradient's tail is seldom that of
    the whole, so a stage keeps a quarter and the next one fits what exceeds its threshold: t' = t + b' ln(4). A segment
    starts with one stage and gets one more each time its threshold is out of bounds, as long as k leaves room.
    """

    name = "fitted"
    KEPT = 0.25  # by every stage but the last

    def __init__(self) -> None:
        self._stages: dict[int, int] = {}

    def _threshold(self, segment: int, part: Tensor, k: int) -> float:
        kept, threshold = k / part.numel(), 0.0
        stages = min(self._stages.get(segment, 1), 1 + int(math.log(kept, self.KEPT)))
        for stage in range(stages):
            aim = kept / self.KEPT**stage if stage == stages - 1 else self.KEPT
            total, count = excess(part, threshold)
            if not count:
                break
            threshold -= total / count * math.log(aim)
        return threshold

    def _missed(self, segment: int) -> None:
        self._stages[segment] = self._stages.get(segment, 1) + 1

    def state_dict(self) -> dict[str, Any]:
        return {"stages": dict(self._stages)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stages = dict(state["stages"])


def above(part: Tensor, threshold: float, values: Tensor, indices: Tensor) -> int:
    """Copy the entries of ``part`` [n] with a magnitude of at least ``threshold``, positions ascending.

    Returns:
        their number; where it exceeds the room in ``values`` the count is larger than that room.
    """
    if fused is not None and part.device.type == "cpu" and part.dtype == torch.float32:
        return int(fused.above(part.numpy(), np.float32(threshold), values.numpy(), indices.numpy()))
    positions = (part.abs() >= threshold).nonzero().reshape(-1)
    count, room = positions.numel(), values.numel()
    if count <= room:
        values[:count], indices[:count] = part[positions], positions
    return count


def excess(part: Tensor, threshold: float) -> tuple[float, int]:
    """The sum of (magnitude - ``threshold``) over the entries of ``part`` [n] that reach it, and their number."""
    if fused is not None and part.device.type == "cpu" and part.dtype == torch.float32:
        total, count = fused.excess(part.numpy(), np.float32(threshold))
        return float(total), int(count)
    magnitudes = part.abs()
    over = magnitudes >= threshold
    count = int(over.sum())
    return float((magnitudes.double() * over).sum()) - count * threshold, count
