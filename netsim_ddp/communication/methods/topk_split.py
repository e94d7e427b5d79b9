"""Split-reduce: each rank owns a share of the positions and sums what all ranks send for it.

A step has two exchanges. Every rank sends each owner the selected entries of the owner's share; the owner adds them,
in rank order, to what it kept from earlier steps, and sends the largest sums of each segment to all, its quota of the
segment's k_i (:mod:`netsim_ddp.compression.quotas`). So what the selection promises a parameter, its own k_i or to be
sent whole, holds on the way back as well. What an owner keeps back stays in its own, second residual (DoubleSqueeze,
Tang et al. 2019, Algorithm 1: the server compresses with error feedback too), so that traffic is about 2 (P-1)/P k b
bytes per rank whatever P, and nothing is lost: the mean of the ranks' residuals + the owners' residuals / P + the
update = the mean of the gradients + the old residuals likewise.

With ``adaptive=on`` ranks give a segment different counts. An owner then shares the sum of its quotas out by how many
entries of each segment all ranks together sent it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netsim_ddp.communication.exchange import peer_exchange
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.messages import Inbox, Mailbox, Outbox
from netsim_ddp.communication.segments import CodecWork, Group, Local, Segment
from netsim_ddp.communication.sparse import SelectedEntries
from netsim_ddp.compression.kernels import NonFiniteGradient, all_finite, select, zeros
from netsim_ddp.compression.quotas import Quotas
from netsim_ddp.compression.runs import Runs
from netsim_ddp.compression.shards import I64, put_at


class TopKSplitReduce(SelectedEntries):
    """Top-K with error feedback at the workers and at the owners.

    Args:
        keep: owners keep all but the largest sums of each segment for later steps; off, they send every sum, which
            gives the all-gather's average for more traffic.
        options: as :class:`SelectedEntries` takes them; rounding error stays in the owners' residuals too.
    """

    name = "topk"
    collective = "split"

    def __init__(
        self,
        flat: FlatGradients,
        group: Group,
        *,
        keep: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(flat, group, **options)
        self.keep = keep
        ranks, device, budget = group.world_size, flat.data.device, self.selection.budget
        self.quotas = Quotas(ranks, budget.sizes, budget.stages()[-1])
        self.shares = self.quotas.shares
        self.sums = zeros(self.shares.size(group.rank), device)
        """What this rank owns, summed over ranks and not yet sent on."""
        self._bounds = torch.from_numpy(self.shares.bounds[group.rank])
        """int64 [L + 1]: the segments of ``sums``."""
        most = self._most_owned(group.rank)
        self._own_values = torch.empty(most, dtype=torch.float32, device=device)
        self._own_local = torch.empty(most, dtype=torch.int32, device=device)
        self._own_counts = self._owned()
        """int64 [L]: the entries of each segment that this rank sends on in this step, by the fixed ratio."""
        self._resets = self.buffer.resets if self.buffer else 0
        room = self.selection.capacity
        self._grouped = (
            torch.empty(room, dtype=torch.float32, device=device),
            *(torch.empty(room, dtype=torch.int32, device=device) for _ in range(2)),
        )
        """This rank's entries by owner: values, local numbers, and at which of them each of ``values`` is."""
        self._make_buffers(group, ranks, device)
        self._added: Runs | None = None
        """What this step added to ``sums``."""
        self._sent: tuple[Tensor, Tensor] | None = None
        """Local positions that this step then sent on, int32, and what was there."""

    def _owned(self) -> I64:
        own: I64 = self.quotas.at(self.selection.budget.now)[self.group.rank]
        return own

    def _most_owned(self, owner: int) -> int:
        """The most entries that ``owner`` sends on in any step."""
        return max(int(self.quotas.at(counts)[owner].sum()) for counts in self.selection.budget.stages())

    def _make_buffers(self, group: Group, ranks: int, device: torch.device) -> None:
        codec, wire = self.codec, group.wire_device(device)
        sizes = [self.shares.size(rank) for rank in range(ranks)]
        room, final = self.selection.capacity, self.selection.budget.stages()[-1]
        self._up = [Mailbox(codec, min(room, size), max(size, 1), wire) for size in sizes]
        sent = [
            self._most_owned(rank) if self.keep else min(sizes[rank], ranks * room) for rank in range(ranks)
        ]
        self._down = [Mailbox(codec, sent[rank], max(sizes[rank], 1), wire) for rank in range(ranks)]
        mine = group.rank
        self._received = Inbox([self._up[mine]] * ranks, device)
        self._requests = Outbox(self._up)
        self._answered = Inbox(self._down, device)
        self._answers = self._answered.messages
        typical = self._up[mine].expected_nbytes(self.quotas.asked(mine, final))
        self._scatter = peer_exchange(
            "scatter", group, self._requests.messages, self._received.messages, typical
        )
        self._gather = peer_exchange(
            "gather",
            group,
            [self._answers[mine]] * ranks,
            self._answers,
            self._down[mine].expected_nbytes(int(self.quotas.at(final)[mine].sum())),
        )
        self._gather.stand_in = self._answer_for_others

    def _exchange(self) -> list[Segment]:
        ranks, final = self.group.world_size, self.selection.budget.stages()[-1]
        asked = tuple(self.quotas.asked(rank, final) for rank in range(ranks))
        answered = tuple(self.quotas.at(final).sum(axis=1).tolist())
        own, mine, size = asked[self.group.rank], answered[self.group.rank], self.sums.numel()
        return [
            Local("compress", self._compress, CodecWork((self.flat.numel, int(final.sum())), encoded=asked)),
            self._scatter,
            Local("decompress", self._sum, CodecWork((size, mine), encoded=(mine,), decoded=(own,) * ranks)),
            self._gather,
            Local("decompress", self._write, CodecWork(decoded=answered)),
        ]

    def _compress(self) -> None:
        self._own_counts = self._owned()
        if not self._select():
            self._scatter.sizes = self._requests.refuse()
            self._keep_own()
            return
        values, local, slots = self._grouped
        k = self.indices.numel()
        bounds = self.shares.partition(self.values, self.indices, values, local, slots)
        self._scatter.sizes = self._requests.write(values[:k], local[:k], bounds, self.received)
        self._keep_own()
        if self.received is not None:
            self._keep_rounded(self.received.index_select(0, slots[:k]))

    def _keep_own(self) -> None:
        """This rank's message to itself is one of those that it reads."""
        mine = self.group.rank
        size = self._scatter.sizes[mine]
        self._received.messages[mine][:size].copy_(self._requests.messages[mine][:size])

    def _sum(self) -> None:
        if self.buffer is not None and self.buffer.resets != self._resets:
            self._resets = self.buffer.resets
            self.sums.zero_()
        if (refused := self._received.refused()) is not None:
            self._answer_nothing()
            self._refuse(f"rank {refused} found a gradient that is not finite")
            return
        mine, runs = self.group.rank, self._received.read()
        runs.add_to(self.sums)
        self._added = runs
        try:
            values, local = self._largest(runs) if self.keep else self._all(runs)
        except NonFiniteGradient:  # the others wait for this owner's answer, which tells them
            self._answer_nothing()
            return
        self._sent = local, values  # which lie in buffers that only the next step writes
        received = None if self.codec.exact else torch.empty_like(values)
        size = self._down[mine].write(values, local, self._answers[mine], received)
        self._gather.sizes = [size] * self.group.world_size
        put_at(self.sums, local, torch.zeros_like(values) if received is None else values - received)
        if self.buffer is None:
            self.sums.zero_()

    def _answer_nothing(self) -> None:
        mine = self.group.rank
        self._gather.sizes = [self._down[mine].refuse(self._answers[mine])] * self.group.world_size

    def _answer_for_others(self) -> None:
        """As if every owner had answered as this one: with as many of its entries as the other's quota and share
        take."""
        assert self._sent is not None
        local, values = self._sent
        quotas = self.quotas.at(self.selection.budget.now).sum(axis=1).tolist()
        for owner, answer in enumerate(self._answers):
            if owner != self.group.rank:
                fit = int(torch.searchsorted(local, self.shares.size(owner)))
                count = min(fit, quotas[owner]) if self.keep else fit
                self._down[owner].write(values[:count], local[:count], answer)

    def commit(self) -> None:
        super().commit()
        self._added = self._sent = None

    def roll_back(self) -> None:
        super().roll_back()
        if self._sent is not None:
            put_at(self.sums, *self._sent)
        if self._added is not None:
            self._added.take_back(self.sums)
        self._added = self._sent = None

    def _largest(self, runs: Runs) -> tuple[Tensor, Tensor]:
        counts, budget = self._own_counts, self.selection.budget
        if budget.adaptive:
            bounds = self._bounds.numpy()
            cuts = [np.searchsorted(local.cpu().numpy(), bounds) for _, local in runs]
            received, sizes = np.diff(np.sum(cuts, axis=0)), np.diff(bounds)
            counts = budget.owners_counts(received, counts, sizes, self.quotas.passed_on)
        total = int(counts.sum())
        values, local = self._own_values[:total], self._own_local[:total]
        if total:
            select(self.sums, self._bounds, torch.from_numpy(counts), values, local)
        return values, local

    def _all(self, runs: Runs) -> tuple[Tensor, Tensor]:
        local = torch.unique(runs.positions)
        values = self.sums[local.long()]
        if not all_finite(values):
            raise NonFiniteGradient("a sum is not finite", -1)
        return values, local

    def _write(self) -> None:
        if self.skipped:
            return
        if (refused := self._answered.refused()) is not None:
            self._refuse(f"the ranks' gradients have a sum that is not finite, at rank {refused}")
            return
        runs = self._answered.read(self.group.world_size)
        self.shares.spread(runs.positions, runs.bounds)
        self._conclude(float(runs.peaks.max()) / self.group.world_size, runs)

    @property
    def residual_bytes(self) -> int:
        return super().residual_bytes + self.sums.numel() * self.sums.element_size()

    def state_dict(self) -> dict[str, Any]:
        """As the base class, and what this rank keeps as an owner: sums, and at which positions."""
        return {**super().state_dict(), "sums": self.sums.clone(), "shares": self.shares.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As the base class, but sums that were saved with the same shares go on as such."""
        ours = self.shares.state()
        same = "shares" in state and torch.equal(state["shares"].cpu(), ours)
        if same and state["sums"].shape != self.sums.shape:
            raise ValueError(f"saved sums are {tuple(state['sums'].shape)}, not {tuple(self.sums.shape)}")
        super().load_state_dict({key: state[key] for key in state if key != "sums"} if same else state)
        if same:
            self.sums.copy_(state["sums"])
        else:
            self.sums.zero_()
