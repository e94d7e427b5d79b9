"""Selectors: how many entries each sends, that nothing is lost, and that nobody's random numbers are touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netsim_ddp.compression import thresholds
from netsim_ddp.compression.budget import SelectionOptions
from netsim_ddp.compression.kernels import NonFiniteGradient
from netsim_ddp.compression.selection import SELECTORS, Selection
from netsim_ddp.compression.topk import entry_count
from netsim_ddp.errors import UsageError
from tests.compiled import needs_compiled

torch.set_num_threads(1)

SHAPES = [torch.Size(shape) for shape in ([300, 200], [0], [1], [37, 3], [], [20011], [64])]
N = sum(shape.numel() for shape in SHAPES)
INPUTS = {
    "normal": lambda: torch.randn(N),
    "heavy tails": lambda: torch.randn(N) ** 5,
    "uniform": lambda: torch.rand(N) - 0.5,
    "all equal": lambda: torch.full((N,), -0.25),
    "zeros": lambda: torch.zeros(N),
    "mostly zeros": lambda: torch.randn(N) * (torch.rand(N) < 0.001),
    "sorted": lambda: torch.randn(N).sort().values,
    "denormal": lambda: torch.randn(N) * 1e-41,
    "huge": lambda: torch.randn(N).clamp(-3, 3) * 1e37,
}


def selection(selector: str, ratio: float = 0.02, **options: Any) -> Selection:
    return Selection(SHAPES, SelectionOptions(ratio=ratio, selector=selector, **options), torch.device("cpu"))


def fewest_and_most(selector: str, n: int, k: int) -> tuple[int, int]:
    """The bounds that each selector documents."""
    if selector in ("sampled", "fitted"):
        return min(k, int(np.floor(0.8 * k))), min(n, int(np.ceil(1.3 * k)))
    if selector == "block":
        block = min(64, k)
        return min(k, max(0, k - block + 1)), min(n, k + max(block - 1, 0))
    return k, k


@pytest.mark.parametrize("ratio", [0.001, 0.02, 0.1, 1.0])
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("selector", SELECTORS)
def test_every_segment_sends_as_many_as_its_selector_promises(selector, name, ratio):
    torch.manual_seed(3)
    chosen = selection(selector, ratio)
    for _ in range(5):  # a fit gets better with every step
        gradient = INPUTS[name]()
        values, indices = chosen.run(gradient, None)
        assert values.numel() <= chosen.capacity
        assert (indices[1:] > indices[:-1]).all()
        assert torch.equal(values, gradient[indices.long()])
        counts = np.diff(np.searchsorted(indices.numpy(), chosen.budget.offsets.numpy()))
        for shape, count in zip(SHAPES, counts, strict=True):
            n = shape.numel()
            low, high = fewest_and_most(selector, n, entry_count(n, ratio))
            assert low <= count <= high


@settings(max_examples=60)
@given(
    selector=st.sampled_from(sorted(SELECTORS)),
    sizes=st.lists(st.integers(0, 300) | st.sampled_from([16384, 20000]), min_size=1, max_size=4),
    ratio=st.sampled_from([0.001, 0.01, 0.2, 0.9]),
    scope=st.sampled_from(["parameter", "bucket", "model"]),
    seed=st.integers(0, 2**20),
)
def test_residual_and_sent_entries_are_gradient_and_old_residual_bit_for_bit(
    selector, sizes, ratio, scope, seed
):
    generator = torch.Generator().manual_seed(seed)
    options = SelectionOptions(ratio=ratio, selector=selector, scope=scope)
    chosen = Selection([torch.Size([n]) for n in sizes], options, torch.device("cpu"))
    n = sum(sizes)
    residual = torch.zeros(n)
    for _ in range(3):
        gradient = torch.randn(n, generator=generator)
        expected = residual + gradient
        values, indices = chosen.run(gradient, residual)
        assert not residual[indices.long()].any()
        residual_and_sent = residual.clone()
        residual_and_sent[indices.long()] = values
        assert torch.equal(residual_and_sent, expected)


@pytest.mark.parametrize("selector", SELECTORS)
def test_over_a_thousand_steps_the_transmitted_sum_follows_the_true_sum(selector):
    """sum of gradients - sum of what was sent = the residual, whose norm does not grow with the steps."""
    n, steps = 400, 1000
    options = SelectionOptions(ratio=0.05, selector=selector)
    chosen = Selection([torch.Size([n])], options, torch.device("cpu"))
    generator = torch.Generator().manual_seed(5)
    drift = torch.linspace(-0.5, 0.5, n)
    residual, true, sent = torch.zeros(n), torch.zeros(n).double(), torch.zeros(n).double()
    norms = []
    for _ in range(steps):
        gradient = drift + torch.randn(n, generator=generator)
        true += gradient
        values, indices = chosen.run(gradient, residual)
        sent[indices.long()] += values.double()
        norms.append(float(residual.norm()))
    # float32 rounds one addition per step, of numbers no larger than the largest residual with a gradient
    assert (true - sent - residual).abs().max() < steps * 2**-24 * 2 * max(norms)
    assert max(norms[steps // 2 :]) < 1.3 * max(norms[steps // 10 : steps // 2])
    assert (true - sent).norm() < 0.2 * true.norm()


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_gradient_that_is_not_finite_changes_nothing(selector):
    chosen = selection(selector)
    residual = torch.randn(N)
    chosen.run(torch.randn(N), residual)
    before, state = residual.clone(), chosen.state_dict()
    bad = torch.randn(N)
    bad[N // 2] = float("nan")
    with pytest.raises(NonFiniteGradient):
        chosen.run(bad, residual)
    assert torch.equal(residual, before)
    assert chosen.state_dict() == state
    with pytest.raises(NonFiniteGradient):
        selection(selector).run(bad, None)


@pytest.mark.parametrize("selector", SELECTORS)
def test_nobodys_random_numbers_are_touched(selector):
    torch.manual_seed(1)
    gradient = torch.randn(N)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    selection(selector).run(gradient, torch.zeros(N))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpys)


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_checkpoint_goes_on_with_the_same_entries(selector):
    options = {"warmup_steps": 8, "adaptive": True}
    one, other = selection(selector, **options), selection(selector, **options)
    residual = torch.zeros(N)
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        one.run(torch.randn(N, generator=generator) ** 3, residual)
    other.load_state_dict(one.state_dict())
    copy = residual.clone()
    for _ in range(6):
        gradient = torch.randn(N, generator=generator) ** 3
        first = [part.clone() for part in one.run(gradient, residual)]
        assert all(map(torch.equal, first, other.run(gradient, copy)))
    assert torch.equal(residual, copy)


def test_random_positions_are_the_same_on_every_rank_and_other_ones_each_step():
    ranks = [selection("random") for _ in range(2)]
    steps = [[rank.run(torch.randn(N), None)[1].tolist() for rank in ranks] for _ in range(3)]
    assert all(one == other for one, other in steps)
    assert len({tuple(one) for one, _ in steps}) == 3


def test_every_position_is_drawn_at_random_equally_often():
    chosen = Selection(
        [torch.Size([50])], SelectionOptions(ratio=0.1, selector="random"), torch.device("cpu")
    )
    counts = np.zeros(50)
    for _ in range(2000):
        counts[chosen.run(torch.ones(50), torch.zeros(50))[1].numpy()] += 1
    # binomial(2000, 0.1): six standard deviations either side
    assert counts.sum() == 2000 * 5
    assert abs(counts - 200).max() < 6 * (2000 * 0.1 * 0.9) ** 0.5


def test_blocks_are_whole_and_those_of_largest_norm():
    chosen = Selection(
        [torch.Size([1000])], SelectionOptions(ratio=0.2, selector="block"), torch.device("cpu")
    )
    gradient = torch.randn(1000) * 0.01
    gradient[128:192] += 1  # blocks 2, 5 and the short last one
    gradient[320:384] -= 2
    gradient[960:] += 3
    gradient[70] = 5.0  # a large entry alone is worth less than a block of 64 but more than a quiet block
    _, indices = chosen.run(gradient, None)
    assert indices.tolist() == [*range(64, 192), *range(320, 384), *range(960, 1000)]


@pytest.mark.parametrize("tail", ["normal", "heavy tails", "uniform"])
@pytest.mark.parametrize("selector", ["sampled", "fitted"])
def test_an_estimate_is_mostly_right_and_then_keeps_the_largest(selector, tail, monkeypatch):
    """Over 20 steps at most a few estimates are given up, and what is sent is everything above one threshold."""
    torch.manual_seed(4)
    n = 200_000
    chosen = Selection([torch.Size([n])], SelectionOptions(selector=selector), torch.device("cpu"))
    missed, note = [], chosen.selector._missed
    monkeypatch.setattr(chosen.selector, "_missed", lambda segment: (missed.append(segment), note(segment)))
    draw = {"normal": lambda: torch.randn(n), "heavy tails": lambda: torch.randn(n) ** 3, "uniform": None}[
        tail
    ]
    for _ in range(20):
        gradient = torch.rand(n).sqrt() if draw is None else draw()
        values, indices = chosen.run(gradient, None)
        left = gradient.abs()
        left[indices.long()] = 0
        assert left.max() <= values.abs().min()
    assert len(missed) <= 5


@needs_compiled
@pytest.mark.parametrize("threshold", [0.0, 0.7, 1.5, 50.0])
def test_the_compiled_passes_answer_as_torch_does(threshold, monkeypatch):
    torch.manual_seed(6)
    part = torch.randn(9001)
    room = [torch.empty(9001), torch.empty(9001, dtype=torch.int32)]
    count = thresholds.above(part, threshold, *room)
    total, over = thresholds.excess(part, threshold)
    monkeypatch.setattr(thresholds, "fused", None)
    twins = [torch.empty(9001), torch.empty(9001, dtype=torch.int32)]
    assert thresholds.above(part, threshold, *twins) == count
    assert all(torch.equal(one[:count], other[:count]) for one, other in zip(room, twins, strict=True))
    assert thresholds.excess(part, threshold) == (pytest.approx(total, rel=1e-5), over)


@needs_compiled
@pytest.mark.parametrize("selector", ["sampled", "fitted", "block", "random"])
def test_other_dtypes_and_no_compiler_choose_the_same(selector, monkeypatch):
    torch.manual_seed(8)
    gradient = torch.randn(N)
    first = [part.clone() for part in selection(selector).run(gradient, None)]
    monkeypatch.setattr(thresholds, "fused", None)
    values, indices = selection(selector).run(gradient, None)
    assert torch.equal(first[0], values)
    assert torch.equal(first[1], indices)


def test_an_unknown_selector_is_named():
    with pytest.raises(UsageError, match="'best'") as caught:
        selection("best")
    assert "exact, sampled, fitted, random, block" in str(caught.value.hint)
