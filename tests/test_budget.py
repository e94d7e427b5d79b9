"""Budgets: how many entries each parameter may send, and that the total is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netsim_ddp.compression.budget import LEAST_SHARE, Budget, SelectionOptions
from netsim_ddp.compression.selection import Selection
from netsim_ddp.errors import UsageError

SHAPES = [torch.Size(shape) for shape in ([64, 3, 7, 7], [64], [128, 64, 3, 3], [], [0], [1000, 512], [1000])]
SIZES = [shape.numel() for shape in SHAPES]
N = sum(SIZES)


def counts(**options):
    return Budget(SHAPES, SelectionOptions(**options)).counts().tolist()


def test_the_three_scopes():
    assert counts(ratio=0.01) == [max(1, -(-n // 100)) if n else 0 for n in SIZES]
    for scope in ("bucket", "model"):
        assert counts(ratio=0.01, scope=scope) == [-(-N // 100)]


def test_small_parameters_and_norms_are_sent_whole():
    rows = zip(SHAPES, counts(ratio=0.01), counts(ratio=0.01, dense_below=10_000), strict=True)
    for shape, usual, count in rows:
        assert count == (shape.numel() if shape.numel() < 10_000 else usual)
    rows = zip(SHAPES, counts(ratio=0.01), counts(ratio=0.01, dense_norms=True), strict=True)
    for shape, usual, count in rows:
        assert count == (shape.numel() if len(shape) < 2 else usual)


def test_the_warm_up_sends_what_dgc_sends():
    """Lin et al. 2018, Sec. 3.3: 25%, 6.25%, 1.5625%, 0.4%, then 0.1%."""
    options = SelectionOptions(ratio=0.001, warmup_steps=8)
    assert [round(options.ratio_at(step), 3) for step in range(10)] == [
        *[0.251, 0.251, 0.063, 0.063, 0.016, 0.016, 0.004, 0.004],
        *[0.001, 0.001],
    ]
    budget = Budget(SHAPES, options)
    totals = []
    for _ in range(9):
        totals.append(int(budget.now.sum()))
        assert int(budget.counts().sum()) == budget.now.sum()
        budget.record_sent(torch.empty(0), torch.empty(0))
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] == budget.final == sum(max(1, -(-n // 1000)) for n in SIZES if n)


def test_options_that_exclude_each_other_are_refused():
    for option in ({"dense_below": 5}, {"dense_norms": True}, {"adaptive": True}):
        for scope in ("bucket", "model"):
            with pytest.raises(UsageError, match=next(iter(option))):
                SelectionOptions(scope=scope, **option)


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 400), min_size=1, max_size=6),
    ratio=st.sampled_from([0.001, 0.01, 0.3, 1.0]),
    scales=st.lists(st.sampled_from([0.0, 1e-20, 0.1, 1.0, 50.0, 1e20]), min_size=6, max_size=6),
    dense_below=st.sampled_from([0, 50]),
    seed=st.integers(0, 2**20),
)
def test_adaptation_keeps_the_total_and_starves_nobody(sizes, ratio, scales, dense_below, seed):
    options = SelectionOptions(ratio=ratio, adaptive=True, dense_below=dense_below)
    fixed = Budget([torch.Size([n]) for n in sizes], SelectionOptions(ratio=ratio, dense_below=dense_below))
    chosen = Selection([torch.Size([n]) for n in sizes], options, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    residual = torch.zeros(sum(sizes))
    scale = torch.cat([torch.full((n,), s) for n, s in zip(sizes, scales, strict=False)])
    for _ in range(4):
        now = chosen.budget.counts()
        assert int(now.sum()) == int(fixed.counts().sum())
        for n, count, usual in zip(sizes, now.tolist(), fixed.counts().tolist(), strict=True):
            assert (
                (count == n)
                if n < dense_below
                else (min(n, 1 + usual // LEAST_SHARE) <= count <= n or count == usual)
            )
        values, _ = chosen.run(torch.randn(sum(sizes), generator=generator) * scale, residual)
        assert values.numel() <= chosen.capacity


def energy_kept(**options) -> list[float]:
    """||sent||^2 / ||what was selected from||^2 over 40 steps, on layers whose gradients differ a hundredfold."""
    shapes = [torch.Size([n]) for n in (5000, 20000, 3000, 10000)]
    scale = torch.cat([torch.full(shape, s) for shape, s in zip(shapes, (0.01, 0.1, 1.0, 0.03), strict=True)])
    chosen = Selection(shapes, SelectionOptions(ratio=0.01, **options), torch.device("cpu"))
    generator = torch.Generator().manual_seed(9)
    residual = torch.zeros(scale.numel())
    kept = []
    for _ in range(40):
        values, _ = chosen.run(torch.randn(scale.numel(), generator=generator) * scale, residual)
        sent = float(values.double().square().sum())
        kept.append(sent / (sent + float(residual.double().square().sum())))
    return kept


def test_adaptation_keeps_nearly_what_the_whole_models_largest_would():
    fixed, adapted, best = (
        float(np.mean(energy_kept(**options)[10:]))
        for options in ({}, {"adaptive": True}, {"scope": "model"})
    )
    assert fixed < 0.7 * adapted
    assert adapted > 0.9 * best
