"""Owners of split-reduce: every position has one, and their quotas are each parameter's k_i, in every stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netsim_ddp.compression import shards as module
from netsim_ddp.compression.budget import Budget, SelectionOptions
from netsim_ddp.compression.quotas import PASSED_ON, Quotas
from netsim_ddp.compression.shards import Shards, saved_sums
from netsim_ddp.compression.topk import entry_count

RESNET_LIKE = [9408, 64, 64, 4096, 64, 64, 36864, 2048, 2048, 1000, 1_048_576, 512, 2_359_296, 2_048_000, 1]


def counts_of(sizes: list[int], ratio: float, whole_below: int = 0) -> np.ndarray:
    return np.array([n if n < whole_below else entry_count(n, ratio) for n in sizes], np.int64)


@given(
    sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=9),
    owners=st.integers(2, 9),
    ratio=st.sampled_from([0.001, 0.01, 0.3, 1.0]),
    whole_below=st.sampled_from([0, 100]),
)
@settings(max_examples=150)
@example(sizes=RESNET_LIKE, owners=8, ratio=0.01, whole_below=0)
@example(sizes=[7], owners=64, ratio=0.01, whole_below=0)
@example(sizes=[0, 0], owners=3, ratio=0.01, whole_below=0)
def test_quotas_add_up_to_every_k(sizes: list[int], owners: int, ratio: float, whole_below: int) -> None:
    final = counts_of(sizes, ratio, whole_below)
    quotas = Quotas(owners, np.array(sizes, np.int64), final)
    assert quotas.shares.sizes.sum(axis=0).tolist() == sizes
    for counts in (final, counts_of(sizes, min(1.0, 5 * ratio), whole_below)):
        entries = quotas.at(counts)
        assert (entries <= quotas.shares.sizes).all()
        assert (entries >= np.minimum(quotas.shares.sizes, 1)).all(), "every share of a segment moves on"
        more = entries.sum(axis=0) - counts
        assert (more >= 0).all()
        passed_on = more > 0
        assert (entries.sum(axis=0)[passed_on] == np.minimum(sizes, counts * owners)[passed_on]).all()
    more = quotas.at(final).sum(axis=0) - final
    assert more.sum() <= PASSED_ON * final.sum()
    whole = np.array(sizes) == final
    assert (quotas.at(final)[:, whole] == quotas.shares.sizes[:, whole]).all()


@pytest.mark.parametrize("owners", [2, 3, 8])
@pytest.mark.parametrize("whole_below", [0, 3000])
def test_owners_have_about_the_same_to_hold_and_to_send(owners: int, whole_below: int) -> None:
    final = counts_of(RESNET_LIKE, 0.01, whole_below)
    quotas = Quotas(owners, np.array(RESNET_LIKE), final)
    positions, entries = quotas.shares.sizes.sum(axis=1), quotas.at(final).sum(axis=1)
    assert positions.max() < 1.02 * positions.mean()
    assert entries.max() < 1.02 * entries.mean()


def test_a_few_owners_share_what_is_too_small_for_all() -> None:
    quotas = Quotas(8, np.array([1_000_000, 4096, 100]), np.array([10_000, 41, 1]))
    assert (quotas.shares.sizes > 0).sum(axis=0).tolist() == [8, 5, 1]


@pytest.mark.parametrize("compiled", [True, False])
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=6),
    owners=st.integers(2, 5),
    ratio=st.sampled_from([0.01, 0.2]),
    data=st.data(),
)
@settings(max_examples=60)
def test_every_entry_comes_back_from_its_owner(
    compiled: bool, sizes: list[int], owners: int, ratio: float, data: st.DataObject
) -> None:
    if compiled and module.fused is None:
        pytest.skip("the compiled kernels are off")
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(module, "fused", None)
        shares = Quotas(owners, np.array(sizes, np.int64), counts_of(sizes, ratio)).shares
        n = sum(sizes)
        chosen = sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=50))) if n else []
        indices = torch.tensor(chosen, dtype=torch.int32)
        values = torch.randn(len(chosen), generator=torch.Generator().manual_seed(len(chosen)))
        room = (
            torch.full((len(chosen) + 3,), torch.nan),
            torch.full((len(chosen) + 3,), -1, dtype=torch.int32),
        )
        slots = torch.full((len(chosen) + 3,), -1, dtype=torch.int32)
        bounds = shares.partition(values, indices, *room, slots)
        assert torch.equal(room[0][slots[: len(chosen)].long()], values)
        assert bounds[0] == 0
        assert bounds[-1] == len(chosen)
        positions = room[1][: len(chosen)].clone()
        shares.spread(positions, np.array(bounds, np.int64))
        assert torch.equal(positions[slots[: len(chosen)].long()], indices)
        for owner in range(owners):
            part = slice(bounds[owner], bounds[owner + 1])
            local = room[1][part]
            assert bool((local[1:] > local[:-1]).all())
            assert not local.numel() or int(local[-1]) < shares.size(owner)
            assert torch.equal(shares.positions(owner, local), positions[part].long())


def test_shares_cover_everything_once() -> None:
    shares = Quotas(3, np.array(RESNET_LIKE[:9]), counts_of(RESNET_LIKE[:9], 0.01)).shares
    found = torch.cat([shares.positions(owner, torch.arange(shares.size(owner))) for owner in range(3)])
    assert torch.equal(found.sort().values, torch.arange(shares.numel))


def test_saved_shares_are_read_back_and_those_of_0_1_0_too() -> None:
    shares = Quotas(3, np.array([5000, 17]), np.array([50, 1])).shares
    again = Shards(3, *shares.state().T.tolist())
    assert (again.bounds == shares.bounds).all()
    assert (again.turns == shares.turns).all()
    sums = torch.arange(1.0, shares.size(1) + 1)
    state = {"rank": 1, "world_size": 3, "sums": sums}
    everywhere = saved_sums({**state, "shares": shares.state()}, 5017)
    assert torch.equal(everywhere[shares.positions(1, torch.arange(sums.numel()))], sums)
    assert everywhere.count_nonzero() == sums.numel()
    # 0.1.0 dealt blocks of 64 (5017 / 48, rounded down to a power of two) to the ranks in turn.
    mine = [p for p in range(5017) if p // 64 % 3 == 1]
    old = torch.arange(1.0, len(mine) + 1)
    assert saved_sums({**state, "sums": old}, 5017)[mine].tolist() == old.tolist()
    with pytest.raises(ValueError, match="not a share of 5017 positions"):
        saved_sums({**state, "sums": sums[:9]}, 5017)


def test_an_owner_follows_what_adapting_ranks_send() -> None:
    shapes = [torch.Size([4000]), torch.Size([4000]), torch.Size([20])]
    budget = Budget(shapes, SelectionOptions(ratio=0.01, adaptive=True, dense_below=100))
    quotas, sizes = np.array([20, 20, 20]), np.array([2000, 2000, 20])

    def counts(received: list[int], *passed_on: bool) -> list[int]:
        found = budget.owners_counts(np.array(received), quotas, sizes, np.array(passed_on))
        return found.tolist()

    assert counts([90, 30, 60], False, False, False) == [30, 10, 20]
    assert counts([180, 0, 0], False, False, False) == [37, 3, 20]
    assert counts([180, 0, 0], False, True, False) == [20, 20, 20]
    assert sum(counts([0, 0, 0], False, False, False)) == 60
