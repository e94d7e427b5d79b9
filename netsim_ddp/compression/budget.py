"""How many entries each segment may send at each step: a fixed ratio, layers of their own, warm-up, adaptation."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netsim_ddp.compression.kernels import require
from netsim_ddp.compression.selectors import Selector
from netsim_ddp.compression.topk import entry_count, host_table
from netsim_ddp.methods.topk import check_together

WARMUP_STAGES = 4
"""As many as Lin et al. 2018 (Sec. 4.1) give epochs: at ratio 0.001 they send 25%, 6.3%, 1.6% and 0.4%."""

LEAST_SHARE = 10
"""Adaptation leaves a segment at least one in this many of the entries that the fixed ratio gives it."""

_BISECTIONS = 60  # halves the interval to the precision of float64

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class SelectionOptions:
    """What is sent, by the names of ``--method``'s keys.

    Args:
        ratio: kept fraction k/N.
        selector: ``exact``, ``sampled``, ``fitted``, ``random`` or ``block``.
        scope: over what the k largest are taken: each ``parameter`` (k = sum of max(1, ceil(ratio n_i))), the
            ``bucket`` that a method is built for, or the whole ``model`` (k = ceil(ratio N)).
        dense_below: parameters with fewer entries are sent whole.
        dense_norms: parameters of at most one dimension are sent whole: normalisation layers and biases.
        warmup_steps: steps during which more is sent, ratio ** (s/5) in stage s = 1 to 4 of equal length (Lin et al.
            2018, Sec. 3.3).
        adaptive: share k out among parameters by what they sent, see :class:`Tails`.

    Raises:
        UsageError: options that exclude each other.
    """

    ratio: float = 0.01
    selector: str = "exact"
    scope: str = "parameter"
    dense_below: int = 0
    dense_norms: bool = False
    warmup_steps: int = 0
    adaptive: bool = False

    def __post_init__(self) -> None:
        check_together(vars(self))

    def ratio_at(self, step: int) -> float:
        """The ratio of step 0, 1, ..."""
        if step >= self.warmup_steps:
            return self.ratio
        stage = 1 + WARMUP_STAGES * step // self.warmup_steps
        return float(self.ratio ** (stage / (WARMUP_STAGES + 1)))


class Budget:
    """The segments of one method and, step by step, the entries that each may send.

    Args:
        shapes: of the parameters, in the order of the flat gradient.
    """

    def __init__(self, shapes: Sequence[torch.Size], options: SelectionOptions) -> None:
        self._options = options
        self.step = 0
        sizes = [shape.numel() for shape in shapes]
        whole = [
            shape.numel() < options.dense_below or (options.dense_norms and len(shape) <= 1)
            for shape in shapes
        ]
        if options.scope != "parameter":
            sizes, whole = [sum(sizes)], [False]
        self.sizes: I64 = np.array(sizes, np.int64)
        """int64 [L], of the segments."""
        self._whole = np.array(whole, bool)
        self.offsets = host_table(list(itertools.accumulate(sizes, initial=0)))
        """int64 [L + 1], as :mod:`netsim_ddp.compression.kernels` wants them."""
        self._by_ratio: dict[float, I64] = {}
        self._tails = Tails(self.sizes) if options.adaptive else None

    def counts(self) -> Tensor:
        """int64 [L]: the entries of each segment at this step."""
        fixed = self.now
        if self._tails is not None:
            fixed = self._tails.allocate(fixed, *self._limits(fixed, self.sizes))
        return torch.from_numpy(fixed)

    def _fixed(self, step: int) -> I64:
        ratio = self._options.ratio_at(step)
        if ratio not in self._by_ratio:
            self._by_ratio[ratio] = np.where(
                self._whole, self.sizes, [entry_count(int(size), ratio) for size in self.sizes]
            ).astype(np.int64)
        return self._by_ratio[ratio]

    @property
    def now(self) -> I64:
        """int64 [L]: the entries of each segment at this step by the ratio alone; every rank has the same."""
        return self._fixed(self.step)

    def stages(self) -> list[I64]:
        """:attr:`now` of every stage of the schedule, the last one without end."""
        warmup = self._options.warmup_steps
        begins = {-(-stage * warmup // WARMUP_STAGES) for stage in range(WARMUP_STAGES)} if warmup else set()
        return [self._fixed(step) for step in sorted({*begins, warmup})]

    @property
    def adaptive(self) -> bool:
        """Whether ranks share their counts out by what they sent, each differently."""
        return self._tails is not None

    def owners_counts(self, received: I64, quotas: I64, sizes: I64, passed_on: NDArray[np.bool_]) -> I64:
        """What an owner sends on of each segment where ranks adapt: ``sum(quotas)`` entries, in proportion to what it
        received, with the bounds that hold for ranks (:class:`Tails`).

        Args:
            received: int64 [L], entries from all ranks together. quotas: int64 [L], by the fixed ratio. sizes: int64
                [L], of the owner's segments. passed_on: bool [L], where the quota is enough for all.
        """
        least, most = (np.where(passed_on, quotas, limit) for limit in self._limits(quotas, sizes))
        wanted = np.clip(received * (quotas.sum() / max(received.sum(), 1)), least, most)
        return _rounded(wanted, least, most, int(quotas.sum()))

    def _limits(self, fixed: I64, sizes: I64) -> tuple[F64, F64]:
        """What adaptation leaves a segment at least and at most."""
        least = np.where(self._whole, fixed, np.minimum(fixed, 1 + fixed // LEAST_SHARE))
        return least.astype(np.float64), np.where(self._whole, fixed, sizes).astype(np.float64)

    @property
    def final(self) -> int:
        """Entries of a step once the warm-up is over."""
        return int(self.stages()[-1].sum())

    def capacity(self, selector: Selector) -> int:
        """The most entries that ``selector`` can choose in any step."""
        first = self._fixed(0)
        if self._tails is not None and selector.name != "exact":
            return int(min(self.sizes.sum(), 2 * first.sum()))  # no selector doubles any segment's count
        return sum(selector.most(int(n), int(k)) for n, k in zip(self.sizes, first, strict=True))

    def record_sent(self, values: Tensor, indices: Tensor) -> None:
        """Take note of what was sent, in ascending order of position, and go on to the next step."""
        if self._tails is not None:
            self._tails.measure(
                values.abs().double().cpu().numpy(),
                np.diff(np.searchsorted(indices.cpu().numpy(), self.offsets.numpy())),
            )
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step} | ({} if self._tails is None else self._tails.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` saved.

        Raises:
            ValueError: it was saved with other segments or without adaptation.
        """
        if self._tails is not None:
            self._tails.load_state_dict(state)
        self.step = state["step"]


class Tails:
    """Shares a budget out among segments by how their largest magnitudes are distributed.

    A segment that sent k_i entries, the smallest of magnitude t_i and all with a mean excess of b_i over it, is taken
    to have k_i exp((t_i - t) / b_i) entries above t near t_i: the exponential tail that SIDCo fits (Abdelmoniem et al.
    2021, Sec. 3). The t at which these add up to the total gives every segment its count. So all segments tend to the
    same smallest magnitude sent, which is what keeps the most energy for a given total. The statistics come from the
    sent entries alone and cost no pass over the gradient.
    """

    def __init__(self, sizes: I64) -> None:
        self._sizes = sizes
        self._counts: F64 | None = None
        self._lowest = self._excess = np.zeros(len(sizes))

    def measure(self, magnitudes: F64, counts: I64) -> None:
        """``magnitudes`` [sum(counts)] were sent, one segment's after the other's."""
        starts = np.cumsum(counts) - counts
        lowest, total = np.zeros(len(counts)), np.zeros(len(counts))
        sent = counts > 0
        if sent.any():
            lowest[sent] = np.minimum.reduceat(magnitudes, starts[sent])
            total[sent] = np.add.reduceat(magnitudes, starts[sent])
        # An exponential from 0 on, as the weight of one entry, keeps a count of 1 from having no excess at all.
        guess = lowest / np.log(np.maximum(self._sizes, 1) / np.maximum(counts, 1) + 1)
        excess = (total - counts * lowest + guess) / np.maximum(counts, 1)
        self._counts, self._lowest, self._excess = np.maximum(counts, 1.0), lowest, excess

    def allocate(self, fixed: I64, least: F64, most: F64) -> I64:
        """``sum(fixed)`` entries, by the tails within ``least`` and ``most``."""
        if self._counts is None:
            return fixed
        low, high = 0.0, float((self._lowest + 700 * self._excess).max())
        wanted = least
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            wanted = self._above(middle, least, most)
            low, high = (middle, high) if wanted.sum() > fixed.sum() else (low, middle)
        return _rounded(wanted, least, most, int(fixed.sum()))

    def _above(self, threshold: float, least: F64, most: F64) -> F64:
        assert self._counts is not None
        away = self._lowest - threshold
        with np.errstate(
            divide="ignore", invalid="ignore", over="ignore"
        ):  # no excess: all above t_i, or none
            factor = np.exp(np.where(self._excess > 0, away / self._excess, np.sign(away) * np.inf))
            return np.clip(np.nan_to_num(self._counts * factor), least, most)

    def state_dict(self) -> dict[str, Any]:
        """Tensors [L] of the last step, which ``torch.load`` reads back without running code; ``counts`` is None before
        the first."""
        counts = None if self._counts is None else torch.from_numpy(self._counts.copy())
        return {
            "counts": counts,
            "lowest": torch.from_numpy(self._lowest.copy()),
            "excess": torch.from_numpy(self._excess.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        require(
            "counts" in state and tuple(state["lowest"].shape) == self._lowest.shape,
            "the saved budget is not one of these parameters, shared out adaptively",
        )
        self._counts = None if state["counts"] is None else state["counts"].numpy().copy()
        self._lowest, self._excess = state["lowest"].numpy().copy(), state["excess"].numpy().copy()


def _rounded(wanted: F64, least: F64, most: F64, total: int) -> I64:
    """Whole numbers near ``wanted`` and within ``least`` and ``most`` that add up to ``total``; what is missing goes to
    all alike, and what cannot be divided to the largest fractions."""
    counts = np.floor(wanted).astype(np.int64)
    order = np.argsort(-(wanted - counts), kind="stable")
    while (missing := total - int(counts.sum())) != 0:
        room = (most if missing > 0 else least) - counts
        open_ = order[room[order] != 0]
        each, rest = divmod(abs(missing), len(open_))
        change = np.full(len(open_), each) + (np.arange(len(open_)) < rest)
        counts[open_] += np.sign(missing) * np.minimum(change, abs(room[open_]).astype(np.int64))
    return counts
