"""Momentum that is accumulated before the selection: what masking takes away, and what it leaves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netsim_ddp.compression.budget import SelectionOptions
from netsim_ddp.compression.momentum import MASKED_AFTER, MomentumCorrection
from netsim_ddp.compression.selection import Selection

CPU = torch.device("cpu")
SHAPES = {"large": torch.Size([40, 50]), "small": torch.Size([16]), "empty": torch.Size([0])}
SIZE = 2016


def played(masking: str, ratio: float, steps: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What arrived in ``steps`` steps of one rank, its velocity at the end, and the sum of what momentum would give."""
    selection = Selection(list(SHAPES.values()), SelectionOptions(ratio=ratio), CPU)
    correction = MomentumCorrection(SHAPES, CPU, 0.9, None, 1, masking)
    residual, arrived = torch.zeros(SIZE), torch.zeros(SIZE)
    plain, velocity = torch.zeros(SIZE), torch.zeros(SIZE)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        gradient = torch.randn(SIZE, generator=generator)
        velocity = 0.9 * velocity + gradient
        plain += velocity
        correction.correct(gradient)
        values, indices = selection.run(gradient, residual)
        correction.keep(gradient, selection.waited(indices, correction.masked_wait))
        arrived[indices.long()] += values
    return arrived + residual, correction.velocity.clone(), plain


@pytest.mark.parametrize(("masking", "ratio"), [("auto", 1.0), ("auto", 0.1), ("off", 1.0), ("off", 0.001)])
def test_without_masking_nothing_of_the_momentum_is_lost(masking: str, ratio: float) -> None:
    total, _, plain = played(masking, ratio)
    torch.testing.assert_close(total, plain)


def test_masking_as_published_leaves_plain_sgd_where_all_is_sent() -> None:
    _, velocity, _ = played("on", 1.0)
    assert not velocity.any()


def test_only_parameters_that_send_rarely_are_masked() -> None:
    """1% of 2000 entries wait 100 steps; one entry of 16 waits 16."""
    selection = Selection(list(SHAPES.values()), SelectionOptions(ratio=0.01), CPU)
    _, indices = selection.run(torch.randn(SIZE), torch.zeros(SIZE))
    assert MomentumCorrection(SHAPES, CPU, 0.9, None, 1).masked_wait == pytest.approx(MASKED_AFTER * 10)
    assert (indices >= 2000).any()
    assert selection.waited(indices, 20).tolist() == [index for index in indices.tolist() if index < 2000]
    _, velocity, _ = played("auto", 0.01, steps=1)
    assert (velocity[:2000] == 0).sum() == 20
    assert velocity[2000:].all()


@given(sizes=st.lists(st.integers(0, 300), max_size=8), ratio=st.floats(0.001, 1), least=st.floats(0, 400))
def test_what_waited_are_the_sent_entries_of_the_segments_that_wait(
    sizes: list[int], ratio: float, least: float
) -> None:
    selection = Selection([torch.Size([size]) for size in sizes], SelectionOptions(ratio=ratio), CPU)
    _, indices = selection.run(torch.ones(sum(sizes)), torch.zeros(sum(sizes)))
    expected, start = [], 0
    for size in sizes:
        there = [index for index in indices.tolist() if start <= index < start + size]
        expected += there if there and size >= least * len(there) else []
        start += size
    assert selection.waited(indices, least).tolist() == expected
