"""TopKCompressor: counts, order, values, and exactness."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netsim_ddp.compression import NonFiniteGradient, TopKCompressor, entry_count, get_compressor
from netsim_ddp.errors import UsageError

torch.set_num_threads(1)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    ("n", "ratio", "k"),
    [(100, 0.01, 1), (100, 0.07, 7), (101, 0.01, 2), (1, 0.01, 1), (0, 0.01, 0), (10, 1, 10), (7, 3 / 7, 3)],
)
def test_entry_count(n, ratio, k):
    assert entry_count(n, ratio) == k


@given(st.integers(1, 10**9), st.integers(1, 10**6))
def test_entry_count_of_a_decimal_is_the_exact_ceiling(n, millionths):
    assert entry_count(n, millionths / 10**6) == max(1, math.ceil(Fraction(millionths * n, 10**6)))


@given(st.integers(1, 10**6), st.integers(1, 10**4))
def test_entry_count_of_a_fraction_is_the_exact_ceiling(n, whole):
    for part in (1, whole // 2 + 1, whole):
        assert entry_count(n, part / whole) == max(1, math.ceil(Fraction(part * n, whole)))


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, float("nan"), "ten"])
def test_a_ratio_outside_0_1_is_refused(ratio):
    with pytest.raises(UsageError):
        TopKCompressor(ratio)


def test_a_ratio_may_be_text():
    assert TopKCompressor("1%").ratio == 0.01


@given(
    st.lists(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 6e-8]) | st.floats(-100, 100, width=16), max_size=50
    ),
    st.floats(0.001, 1),
    st.sampled_from(DTYPES),
)
@settings(max_examples=150)
def test_selects_the_largest_magnitudes_ties_to_the_lower_index(numbers, ratio, dtype):
    given_ = torch.tensor(numbers, dtype=dtype)
    values, indices, _ = TopKCompressor(ratio).compress(given_)
    order = np.argsort(-np.abs(given_.double().numpy()), kind="stable")
    assert indices.tolist() == sorted(order[: entry_count(len(numbers), ratio)].tolist())
    assert indices.dtype == torch.int64
    assert torch.equal(values, given_[indices])
    assert torch.equal(values.signbit(), given_[indices].signbit())


@pytest.mark.parametrize("shape", [(), (7,), (4, 5), (2, 3, 4, 5), (0,), (3, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shape_and_dtype_survive(shape, dtype):
    original = tensor(*shape, dtype=dtype)
    compressor = TopKCompressor(0.3)
    values, indices, kept_shape = compressor.compress(original)
    dense = compressor.decompress(values, indices, kept_shape)
    assert kept_shape == original.shape == dense.shape
    assert values.dtype == dense.dtype == dtype
    assert dense.device == original.device
    flat = original.reshape(-1)
    assert torch.equal(dense.reshape(-1)[indices], flat[indices])
    assert int((dense != 0).sum()) == len(indices)


def test_ratio_1_is_lossless():
    original = tensor(6, 7)
    compressor = TopKCompressor(1.0)
    assert torch.equal(compressor.decompress(*compressor.compress(original)), original)


def test_zeros_keep_the_first_entries():
    values, indices, _ = TopKCompressor(0.2).compress(torch.zeros(10))
    assert indices.tolist() == [0, 1]
    assert values.tolist() == [0.0, 0.0]


def test_one_entry_of_many_and_its_sign():
    original = tensor(50_000).clamp(-1, 1)
    original[31_234] = -5.0
    values, indices, _ = TopKCompressor(1e-9).compress(original)
    assert (values.tolist(), indices.tolist()) == ([-5.0], [31_234])


def test_a_large_tensor_keeps_exactly_k():
    original = tensor(1_000_003)
    _, indices, _ = TopKCompressor(0.01).compress(original)
    assert len(indices) == 10_001
    assert set(indices.tolist()) == set(original.abs().topk(10_001).indices.tolist())


def test_a_transposed_view_is_compressed_as_it_reads():
    base = tensor(30, 40)
    one = TopKCompressor(0.1).compress(base.t())
    other = TopKCompressor(0.1).compress(base.t().contiguous())
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_raise(dtype, bad):
    original = tensor(20, dtype=dtype)
    original[3] = bad
    compressor = TopKCompressor(0.1)
    with pytest.raises(NonFiniteGradient):
        compressor.compress(original)
    assert compressor.stats.calls == 0


def test_gradient_reaches_exactly_the_selected_entries():
    original = tensor(100).requires_grad_()
    compressor = TopKCompressor(0.1)
    values, indices, shape = compressor.compress(original)
    (compressor.decompress(values, indices, shape) * 3).sum().backward()
    expected = torch.zeros(100)
    expected[indices] = 3
    assert torch.equal(original.grad, expected)


def test_statistics_and_reset():
    compressor = TopKCompressor(0.01)
    assert compressor.stats.reduction == 1.0
    compressor.compress(tensor(1000))
    compressor.compress(tensor(10, 100, dtype=torch.float64))
    stats = compressor.stats
    assert (stats.calls, stats.entries) == (2, 20)
    assert (stats.bytes_in, stats.bytes_out) == (1000 * 4 + 1000 * 8, 10 * 12 + 10 * 16)
    assert stats.reduction == pytest.approx(12_000 / 280)
    compressor.reset()
    assert compressor.stats.calls == compressor.stats.bytes_in == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_selects_what_the_cpu_selects():
    original = (tensor(20_000) * 4).round()
    values, indices, _ = TopKCompressor(0.01).compress(original.cuda())
    expected, where, _ = TopKCompressor(0.01).compress(original)
    assert values.is_cuda
    assert torch.equal(indices.cpu(), where)
    assert torch.equal(values.cpu(), expected)


def test_the_rest_is_a_contraction():
    """||x - C(x)||^2 <= (1 - k/n) ||x||^2 (Stich et al. 2018, Def. 2.1)."""
    original = tensor(2000, dtype=torch.float64)
    compressor = TopKCompressor(0.05)
    rest = original - compressor.decompress(*compressor.compress(original))
    assert rest.square().sum() <= (1 - 0.05) * original.square().sum()


def test_decompress_refuses_what_does_not_fit():
    compressor = TopKCompressor()
    with pytest.raises(ValueError, match="do not match"):
        compressor.decompress(torch.ones(2), torch.tensor([1]), torch.Size([4]))
    with pytest.raises(RuntimeError):
        compressor.decompress(torch.ones(1), torch.tensor([4]), torch.Size([4]))


def test_get_compressor():
    assert get_compressor().ratio == 0.01
    assert get_compressor("topk", ratio="5%").ratio == 0.05
    assert get_compressor("none") is get_compressor("dense") is None
    with pytest.raises(UsageError, match="randomk") as raised:
        get_compressor("randomk")
    assert "topk" in raised.value.hint
