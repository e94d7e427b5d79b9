"""The fused kernel and its torch twin: exact, equal to each other, and nothing lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from netsim_ddp.compression import kernels, segment_table
from netsim_ddp.compression.kernels import NonFiniteGradient, accumulate_select, all_finite, select

torch.set_num_threads(1)
needs_numba = pytest.mark.skipif(kernels.fused is None, reason="numba is not installed")

# few distinct values make ties; the rest are denormals, both zeros and the ends of the range
FLOATS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -1e-45, 1e-40, 3.4e38]) | st.floats(
    width=32, allow_nan=False, allow_infinity=False
)


def vectors(n: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, n, elements=FLOATS)


def reference(flat: Tensor, offsets: Tensor, ks: Tensor) -> Tensor:
    """Indices by a stable sort on float64 magnitudes: slow, obvious."""
    chosen = []
    for start, stop, k in zip(offsets[:-1].tolist(), offsets[1:].tolist(), ks.tolist(), strict=True):
        magnitude = np.abs(flat[start:stop].double().numpy())
        chosen.append(np.sort(np.argsort(-magnitude, kind="stable")[:k]) + start)
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *chosen]))


def outputs(ks: Tensor, dtype: torch.dtype = torch.float32, index: torch.dtype = torch.int64):
    k = int(ks.sum())
    return torch.empty(k, dtype=dtype), torch.empty(k, dtype=index)


def same_bits(one: Tensor, other: Tensor) -> bool:
    return bool(torch.equal(one.view(torch.int32), other.view(torch.int32)))


@pytest.fixture(params=["fused", "twin"])
def implementation(request, monkeypatch):
    if request.param == "twin":
        monkeypatch.setattr(kernels, "_fused_takes", lambda *_: False)
    elif kernels.fused is None:
        pytest.skip("numba is not installed")
    return request.param


both = pytest.mark.usefixtures("implementation")


@st.composite
def problems(draw):
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6))
    n = sum(sizes)
    offsets = torch.tensor(np.concatenate([[0], np.cumsum(sizes)]), dtype=torch.int64)
    ks = torch.tensor([draw(st.integers(1, size)) if size else 0 for size in sizes], dtype=torch.int64)
    index = draw(st.sampled_from([torch.int32, torch.int64]))
    return torch.from_numpy(draw(vectors(n))), torch.from_numpy(draw(vectors(n))), offsets, ks, index


@needs_numba
@given(problems())
@settings(max_examples=150, deadline=None)
def test_both_implementations_are_exact_and_conserve_the_sum(problem):
    grad, old, offsets, ks, index = problem
    total = old + grad
    results = []
    for fused_takes in (kernels._fused_takes, lambda *_: False):
        residual, (values, indices) = old.clone(), outputs(ks, index=index)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "_fused_takes", fused_takes)
            if not torch.isfinite(total).all():
                with pytest.raises(NonFiniteGradient) as raised:
                    accumulate_select(grad, residual, offsets, ks, values, indices)
                first = int((~torch.isfinite(total)).nonzero()[0])
                bad = raised.value.segment
                assert offsets[bad] <= first < offsets[bad + 1]
                assert same_bits(residual, old)
                continue
            accumulate_select(grad, residual, offsets, ks, values, indices)
        assert torch.equal(indices.long(), reference(total, offsets, ks))
        assert not residual[indices.long()].view(torch.int32).any(), "sent positions are +0.0"
        rebuilt = residual.clone()
        rebuilt[indices.long()] = values
        assert same_bits(rebuilt, total)
        results.append((residual, values, indices))
    if results:
        (residual, values, indices), (residual2, values2, indices2) = results
        assert same_bits(residual, residual2)
        assert same_bits(values, values2)
        assert torch.equal(indices, indices2)


@given(problems())
@settings(max_examples=50, deadline=None)
def test_select_changes_nothing(problem):
    flat, _, offsets, ks, index = problem
    before, (values, indices) = flat.clone(), outputs(ks, index=index)
    select(flat, offsets, ks, values, indices)
    assert same_bits(flat, before)
    assert torch.equal(indices.long(), reference(flat, offsets, ks))
    assert same_bits(values, flat[indices.long()])


N = 60_001  # large enough for the sampled threshold, and no multiple of a block or lane
GENERATOR = torch.Generator().manual_seed(5)
NORMAL = torch.randn(N, generator=GENERATOR)
SPARSE = torch.where(torch.rand(N, generator=GENERATOR) < 0.002, NORMAL, torch.zeros(N))
SHAPES = {
    "normal": NORMAL,
    "heavy tail": NORMAL**7,
    "all equal": torch.full((N,), -0.25),
    "all zero": torch.zeros(N),
    "mostly zero": SPARSE,
    "few values": (NORMAL * 3).round(),
    "ascending": NORMAL.sort().values,
    "descending magnitude": NORMAL.abs().sort(descending=True).values,
    "denormal": NORMAL * 1e-40,
    "one block large": torch.cat([NORMAL[:500] * 1e6, NORMAL[500:]]),
    "periodic": torch.arange(N).remainder(64).float(),
}


@both
@pytest.mark.parametrize("ratio", [1e-5, 0.001, 0.01, 0.2, 0.3, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_large_segments_are_exact_whatever_the_distribution(shape, ratio):
    flat = SHAPES[shape]
    offsets, ks = segment_table([37, 0, N - 5037, 5000], ratio)
    residual = torch.zeros(N)
    values, indices = outputs(ks, index=torch.int32)
    accumulate_select(flat, residual, offsets, ks, values, indices)
    assert torch.equal(indices.long(), reference(flat, offsets, ks))
    residual[indices.long()] = values
    assert torch.equal(residual, flat)


@needs_numba
def test_the_sampled_threshold_is_what_ordinary_data_takes():
    offsets, ks = segment_table([N], 0.01)
    values, indices = outputs(ks)
    _, fallbacks = kernels.fused.select_segments(
        NORMAL.numpy(), NORMAL.numpy(), False, *(t.numpy() for t in (offsets, ks, values, indices))
    )
    assert fallbacks == 0


@both
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [0, 5, 4000, N - 1])
def test_a_non_finite_gradient_leaves_the_residual_alone(bad, where):
    offsets, ks = segment_table([5, 1000, N - 1005], 0.01)
    grad, residual = NORMAL.clone(), NORMAL.flip(0).clone()
    grad[where] = bad
    before = residual.clone()
    with pytest.raises(NonFiniteGradient) as raised:
        accumulate_select(grad, residual, offsets, ks, *outputs(ks))
    assert offsets[raised.value.segment] <= where < offsets[raised.value.segment + 1]
    assert isinstance(raised.value, ArithmeticError)
    assert same_bits(residual, before)
    with pytest.raises(NonFiniteGradient):
        select(grad, offsets, ks, *outputs(ks))
    assert not all_finite(grad)
    assert all_finite(before)


@both
def test_a_sum_that_overflows_is_found_before_the_residual_changes():
    largest = torch.finfo(torch.float32).max
    offsets, ks = segment_table([3, 3], 0.5)
    residual = torch.tensor([largest, 0.0, 0.0, largest, 0.0, 0.0])
    before = residual.clone()
    grad = torch.tensor([2.0**102, 0.0, 0.0, 2.0**103, 0.0, 0.0])  # the first is absorbed, the second is not
    with pytest.raises(NonFiniteGradient) as raised:
        accumulate_select(grad, residual, offsets, ks, *outputs(ks))
    assert raised.value.segment == 1
    assert same_bits(residual, before)
    grad[3] = 2.0**102
    accumulate_select(grad, residual, offsets, ks, *outputs(ks))
    assert torch.isfinite(residual).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    total = NORMAL[:3000].to(dtype)
    offsets, ks = segment_table([1000, 2000], 0.05)
    residual, (values, indices) = torch.zeros(3000, dtype=dtype), outputs(ks, dtype)
    accumulate_select(total, residual, offsets, ks, values, indices)
    assert torch.equal(indices, reference(total, offsets, ks))
    residual[indices] = values
    assert torch.equal(residual, total)


def test_a_half_precision_gradient_into_a_float32_residual():
    offsets, ks = segment_table([1000], 0.05)
    residual, (values, indices) = NORMAL[:1000].clone(), outputs(ks)
    accumulate_select(NORMAL[1000:2000].half(), residual, offsets, ks, values, indices)
    residual[indices] = values
    assert torch.equal(residual, NORMAL[:1000] + NORMAL[1000:2000].half())
    with pytest.raises(ValueError, match="cannot hold"):
        accumulate_select(NORMAL[:1000], residual.half(), offsets, ks, values.half(), indices)


def arguments(**changes):
    offsets, ks = segment_table([4, 6], 0.5)
    values, indices = outputs(ks)
    given = {"flat": torch.zeros(10), "offsets": offsets, "ks": ks, "values": values, "indices": indices}
    return given | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"flat": torch.zeros(2, 5)},
        {"flat": torch.zeros(20)[::2]},
        {"flat": torch.zeros(10, dtype=torch.int64)},
        {"flat": torch.zeros(9)},
        {"offsets": torch.tensor([0, 4, 11])},
        {"offsets": torch.tensor([0, 12, 10])},
        {"offsets": torch.tensor([1, 4, 10])},
        {"offsets": torch.tensor([0, 10])},
        {"offsets": torch.tensor([0.0, 4.0, 10.0])},
        {"ks": torch.tensor([5, 0])},
        {"ks": torch.tensor([0, 5])},
        {"ks": torch.tensor([-1, 6])},
        {"values": torch.empty(4)},
        {"values": torch.empty(5, dtype=torch.float64)},
        {"indices": torch.empty(5, dtype=torch.int16)},
        {"indices": torch.empty(10, dtype=torch.int64)[::2]},
    ],
)
def test_arguments_that_do_not_fit_never_reach_the_kernel(changes):
    with pytest.raises(ValueError, match=r"."):
        select(**arguments(**changes))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    base = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env=base | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_without_numba_torch_does_the_work_and_says_so_once():
    code = """
import sys; sys.modules["numba"] = None
import torch
from netsim_ddp.compression import TopKCompressor, warm
for _ in range(2):
    values, indices, _ = TopKCompressor(0.5).compress(torch.tensor([1.0, -3.0, 2.0, 0.0])); warm()
assert indices.tolist() == [1, 2]
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("numba is not installed") == 1


@needs_numba
def test_no_writable_cache_directory_is_no_failure():
    # numba's locators all decline, as they do for an account without a home using root's installation
    code = """
import numba.core.caching as caching
for locator in caching.CacheImpl._locator_classes:
    locator.from_function = classmethod(lambda *_: None)
from netsim_ddp.compression import warm
from netsim_ddp.compression._numba_kernels import max_key
import numpy as np
assert max_key(np.array([-5, 3], np.int32) & 7) == 3
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@needs_numba
def test_a_cache_that_cannot_be_written_is_no_failure():
    code = """
import numba.core.caching as caching
def save(*_):
    raise OSError(28, "No space left on device")
caching.IndexDataCacheFile.save = save
caching.IndexDataCacheFile.load = lambda *_: None
import torch
from netsim_ddp.compression import TopKCompressor, warm
warm()
assert TopKCompressor(0.5).compress(torch.tensor([1.0, -3.0, 2.0, 0.0]))[1].tolist() == [1, 2]
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("could not be stored") == 1


@needs_numba
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_warm_starts_no_thread():
    code = """
import os, torch
from netsim_ddp.compression import warm
torch.set_num_threads(1)
before = len(os.listdir("/proc/self/task")); warm(); assert len(os.listdir("/proc/self/task")) == before
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
