"""The fused kernel and its torch twin: exact, equal to each other, and nothing lost."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from netsim_ddp.compression import kernels, packing, segment_table, shards, thresholds
from netsim_ddp.compression.kernels import NonFiniteGradient, accumulate_select, all_finite, select
from netsim_ddp.switches import compiled_kernels
from tests.compiled import REASON, needs_compiled

torch.set_num_threads(1)

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
        monkeypatch.setattr(kernels, "_fused", lambda *_: None)
    elif kernels.fused is None:
        pytest.skip(REASON)
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


@given(
    data=st.data(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    n=st.integers(1, 60),
)
@settings(max_examples=150)
def test_every_dtype_is_exact_with_ties_denormals_and_both_zeros(data, dtype, n):
    k = data.draw(st.integers(1, n))
    tiny, largest = torch.finfo(dtype).smallest_normal / 8, torch.finfo(dtype).max
    elements = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, tiny, -tiny, 3 * tiny, largest, -largest])
    flat = torch.tensor(data.draw(st.lists(elements, min_size=n, max_size=n)), dtype=torch.float64).to(dtype)
    offsets, ks = torch.tensor([0, n]), torch.tensor([k])
    values, indices = outputs(ks, dtype)
    select(flat, offsets, ks, values, indices)
    assert torch.equal(indices, reference(flat, offsets, ks))
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(values.view(integer), flat[indices].view(integer)), "signs of zero included"
    residual = torch.zeros_like(flat)
    accumulate_select(flat, residual, offsets, ks, values, indices)
    residual[indices] = values
    assert torch.equal(residual, flat + torch.zeros_like(flat))


def test_the_twin_never_waits_for_the_device():
    """Fake tensors have no data, so whatever the host would read from a device raises here."""
    with FakeTensorMode():
        total, values, indices = torch.empty(100), torch.empty(7), torch.empty(7, dtype=torch.int32)
        finite = kernels.twin.accumulate_select(total, [0, 40, 100], [3, 4], values, indices)
        with pytest.raises(DataDependentOutputException):
            bool(finite)


@needs_compiled
@given(problems())
@settings(max_examples=150)
def test_both_implementations_are_exact_and_conserve_the_sum(problem):
    grad, old, offsets, ks, index = problem
    total = old + grad
    results = []
    for takes in (kernels._fused, lambda *_: None):
        residual, (values, indices) = old.clone(), outputs(ks, index=index)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "_fused", takes)
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
@settings(max_examples=50)
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


@needs_compiled
def test_the_sampled_threshold_is_what_ordinary_data_takes():
    candidates, flat, k = kernels.fused.candidates, NORMAL.numpy(), N // 100
    low, high, _ = candidates.bracket(flat, flat, 0, False, 0, N, k)
    limit = candidates.list_limit(k)
    where, found = (np.zeros(limit + candidates.SLACK, np.int32) for _ in range(2))
    count, sure, overflowed = candidates.collect(
        flat, flat, 0, False, 0, N, k, low, high, where, found, limit
    )
    assert sure <= k <= count
    assert not overflowed


# Threads share out what is large enough; the sizes put cuts inside and on the bounds of segments.
MANY = 1_100_003
SPLITS = {
    "one": [MANY],
    "cut on a bound": [MANY // 2, MANY - MANY // 2],
    "small ones": [1000] * 1100 + [3],
    "large between small": [70_000, 5, 900_000, 0, 130_000 - 2],
}


@needs_compiled
@pytest.mark.parametrize("threads", [2, 3, 4])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("data", ["normal", "equal", "sorted", "mostly zero", "equal, unseen"])
def test_threads_change_nothing(data, split, threads, monkeypatch):
    if data == "equal, unseen":  # what a sample did not show: every thread's list fills up
        data, listed = "equal", kernels.fused.candidates.bracket
        monkeypatch.setattr(kernels.fused.candidates, "bracket", lambda *a: (*listed(*a)[:2], 0))
    normal = torch.randn(MANY, generator=torch.Generator().manual_seed(1))
    grad = {
        "normal": normal,
        "equal": torch.full((MANY,), 0.5),
        "sorted": normal.abs().sort().values,
        "mostly zero": torch.where(normal > 3, normal, torch.zeros(MANY)),
    }[data]
    offsets, ks = segment_table(SPLITS[split], 0.01)
    results = []
    for count in (1, threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        residual, (values, indices) = normal.flip(0) * (data == "normal"), outputs(ks, index=torch.int32)
        accumulate_select(grad, residual, offsets, ks, values, indices)
        results.append((residual, values, indices))
    assert torch.equal(
        results[0][2].long(), reference(grad + normal.flip(0) * (data == "normal"), offsets, ks)
    )
    for alone, together in zip(*results, strict=True):
        assert torch.equal(alone, together)
    bad = normal.clone()
    bad[MANY // 2 + 7] = float("inf")
    with pytest.raises(NonFiniteGradient) as raised:
        select(bad, offsets, ks, values, indices)
    with pytest.raises(NonFiniteGradient) as accumulated:
        accumulate_select(bad, residual, offsets, ks, values, indices)
    assert raised.value.segment == accumulated.value.segment
    assert same_bits(residual, results[1][0]), "an inf leaves the residual alone"


@needs_compiled
@pytest.mark.parametrize("bracket", ["low too high", "high too low", "both", "low zero", "list overflows"])
@pytest.mark.parametrize("add", [True, False])
def test_a_wrong_guess_costs_time_and_changes_nothing(bracket, add):
    """The sampled bracket is a guess; here it is wrong in every way it can be."""
    kernel = kernels.fused.candidates
    flat, k = NORMAL.clone(), 600
    keys = (flat.numpy().view(np.int32) & 0x7FFFFFFF).copy()
    ranked = np.sort(keys)[::-1]
    low, high = {
        "low too high": (ranked[100], 0x7FFFFFFF),
        "high too low": (ranked[900], ranked[800]),
        "both": (ranked[100], ranked[100]),
        "low zero": (0, ranked[300]),
        "list overflows": (0, 5),
    }[bracket]
    lists = [np.zeros(kernel.list_limit(k) + kernel.SLACK, np.int32) for _ in range(4)]
    grad = np.zeros(N, np.float32)
    before, array = flat.clone(), flat.numpy()
    count, sure, overflowed = kernel.collect(
        array, array, grad.ctypes.data, add, 0, N, k, int(low), int(high), *lists[:2], kernel.list_limit(k)
    )
    counts, sures = np.array([count]), np.array([sure])
    kth, last, done = kernel.decide(
        array, add, k, int(high), overflowed, np.zeros(1, np.int64), counts, sures, *lists
    )
    assert done == (bracket not in ("low too high", "both"))
    expected = reference(before, *segment_table([N], k / N))
    if not done:
        assert same_bits(flat, before)
        return
    values, indices = np.zeros(k, np.float32), np.zeros(k, np.int32)
    kernel.emit(lists[1][:count], lists[0][:count], kth, last, values, indices)
    assert indices.tolist() == expected.tolist()
    assert same_bits(torch.from_numpy(values), before[expected])
    if add:
        before[expected] = 0
    assert same_bits(flat, before)


@needs_compiled
@pytest.mark.parametrize("cpu", ["x86-64-v3"])
def test_a_processor_without_avx512_gives_the_same(cpu):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("names x86 processors")
    code = """
import numpy as np, torch
from netsim_ddp.compression.native import vector as _vector
from netsim_ddp.compression import accumulate_select, segment_table
assert not _vector.HAS_COMPRESS
n = 300_001
for grad in (torch.randn(n), torch.full((n,), 0.5), torch.zeros(n), torch.randn(n).round()):
    offsets, ks = segment_table([100_001, 200_000], 0.01)
    residual, values = torch.zeros(n), torch.empty(int(ks.sum()))
    indices = torch.empty(int(ks.sum()), dtype=torch.int64)
    accumulate_select(grad, residual, offsets, ks, values, indices)
    sorts = [np.sort(np.argsort(-np.abs(part.numpy()), kind="stable")[: int(k)]) for part, k in
             zip(grad.split([100_001, 200_000]), ks)]
    assert indices.tolist() == [*sorts[0], *(sorts[1] + 100_001)]
    residual[indices] = values
    assert torch.equal(residual, grad)
"""
    done = run_python(code, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES="")
    assert done.returncode == 0, done.stderr


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


# The last is so large that its sum goes past the caches.
@both
@pytest.mark.parametrize("sizes", [[37, 0, 1, 5000, 54_963], [3, 4_200_001]])
@pytest.mark.parametrize("odd", [0, 1])
def test_a_sum_beside_the_residual_is_the_one_in_its_place(sizes, odd):
    """The gradients lie anywhere, on whatever address a float may have."""
    n, (offsets, ks) = sum(sizes), segment_table(sizes, 0.01)
    bucket = NORMAL.repeat(-(-(n + 1) // N))[odd : n + odd]
    parts = [part.view(1, -1) for part in bucket.split(sizes)][::-1]
    parts = [part.clone() if part.numel() < 5000 else part for part in parts][::-1]
    old = NORMAL.flip(0).repeat(-(-n // N))[:n]
    inside, (values, indices) = old.clone(), outputs(ks)
    accumulate_select(bucket.contiguous(), inside, offsets, ks, values, indices)
    for gradient in (parts, bucket):
        residual, beside, (again, where) = old.clone(), torch.full((n + 1,), 7.0)[odd : n + odd], outputs(ks)
        accumulate_select(gradient, residual, offsets, ks, again, where, total=beside)
        assert same_bits(residual, old)
        assert same_bits(beside, inside)
        assert same_bits(again, values)
        assert torch.equal(where, indices)
    parts[-1][0, 2] = torch.nan
    with pytest.raises(NonFiniteGradient) as raised:
        accumulate_select(parts, residual, offsets, ks, again, where, total=beside)
    assert raised.value.segment == len(sizes) - 1
    assert same_bits(residual, old)
    for wrong in (parts[1:], [*parts[:-1], parts[-1][:, 1:]], [*parts[:-1], parts[-1].half().long()]):
        with pytest.raises(ValueError, match="grad"):
            accumulate_select(wrong, residual, offsets, ks, again, where, total=beside)
    with pytest.raises(ValueError, match="total"):
        accumulate_select(parts, residual, offsets, ks, again, where)


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


@needs_compiled
def test_no_writable_cache_directory_is_no_failure():
    # numba's locators all decline, as they do for an account without a home using root's installation
    code = """
import numba.core.caching as caching
for locator in caching.CacheImpl._locator_classes:
    locator.from_function = classmethod(lambda *_: None)
from netsim_ddp.compression import warm
from netsim_ddp.compression.native.keys import max_key
import numpy as np
assert max_key(np.array([-5, 3], np.int32) & 7) == 3
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@needs_compiled
def test_a_cache_that_cannot_be_written_is_no_failure():
    code = """
import numba.core.caching as caching
def save(*_):
    raise OSError(28, "No space left on device")
caching.IndexDataCacheFile.save = save
caching.IndexDataCacheFile.load = lambda *_: None
import torch
from netsim_ddp.compression import TopKCompressor
assert TopKCompressor(0.5).compress(torch.tensor([1.0, -3.0, 2.0, 0.0]))[1].tolist() == [1, 2]
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("could not be stored") == 1


@needs_compiled
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


@needs_compiled
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_threads_that_ask_for_different_numbers_share_one_pool_which_a_fork_makes_anew():
    """DDP's backward thread and the main one may have other thread counts: no pool per call. A child forked while the
    parent's pool is busy has its own, and neither leaves anything at its end."""
    code = """
import os, threading, torch
from netsim_ddp.compression import TopKCompressor, warm
mine = threading.local()
torch.get_num_threads = lambda: getattr(mine, "count", 2)
warm()
data = torch.randn(3_000_000, generator=torch.Generator().manual_seed(0))
first = TopKCompressor(0.01).compress(data)[1]
def work(count):
    mine.count = count
    for _ in range(8):
        assert torch.equal(TopKCompressor(0.01).compress(data)[1], first)
def helpers():
    return sum(thread.name.startswith("netsim-topk") for thread in threading.enumerate())
both = [threading.Thread(target=work, args=(count,)) for count in (2, 4)]
for thread in both: thread.start()
most = helpers()
while any(thread.is_alive() for thread in both): most = max(most, helpers())
for _ in range(2): both[0].join(); both[1].join()
assert 3 <= most <= 4, most  # one for the caller of 2 threads, three for that of 4
child = os.fork()
if not child:
    work(3)
    os._exit(0 if helpers() == 2 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
work(4)
assert helpers() <= 4
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@needs_compiled
def test_warm_compiles_every_signature_that_is_called():
    """Else the first step of a run would compile, in every rank."""
    code = """
import numpy as np
import torch
from netsim_ddp.compression import Codec, accumulate_select, segment_table, select, warm
from netsim_ddp.compression import runs, shards, thresholds
from netsim_ddp.compression.native.signatures import SIGNATURES
torch.get_num_threads = lambda: 2
warm()
for index in (torch.int32, torch.int64):
    offsets, ks = segment_table([2_000_000, 7, 5000], 0.01)
    flat, k = torch.randn(2_005_007), int(ks.sum())
    values, indices = torch.empty(k), torch.empty(k, dtype=index)
    for grad in (flat, torch.ones_like(flat)):
        select(grad, offsets, ks, values, indices)
        accumulate_select(grad, flat.clone(), offsets, ks, values, indices)
for form in ("fp32", "int8", "int8-stochastic"):
    codec = Codec(form)
    codec.decode(codec.encode(values, indices), k, flat.numel())
owned = shards.Shards(2, [flat.numel()], [2], [0])
out, local = torch.empty(k), torch.empty(k, dtype=torch.int32)
count = owned.partition(values, indices.int(), out, local, torch.empty_like(local))[1]
shards.add_at(flat, local, out), shards.put_at(flat, local, out)
shards.clear_at(flat, local)
several = runs.Runs(torch.device("cpu"))
for form, index in (("fp32", "packed"), ("fp16", "int32"), ("int8", "int64")):
    codec = Codec(form, index)
    message = codec.encode(values, indices, torch.empty(codec.capacity(k, flat.numel()), dtype=torch.uint8))
    assert codec.decode_all(message, [(0, message.numel(), k, flat.numel())], several, 2.0)
memory, room = torch.empty(16 * k, dtype=torch.uint8), np.array([[0, 16 * k]])
assert codec.encode_all(values, indices.int(), [0, k], memory, room)
several.add_to(flat), several.take_back(flat), several.lay([flat], add=True)
owned.spread(local[:count], several.bounds[:1])
thresholds.above(flat, 0.5, out, local), thresholds.excess(flat, 0.5)
wanted = {}
for kernel, types in SIGNATURES: wanted.setdefault(kernel, set()).add(types)
for kernel, types in wanted.items(): assert set(kernel.signatures) == types, kernel
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_the_compiled_kernels_are_used_wherever_numba_is() -> None:
    """Else every test of theirs is skipped, and every run is slow, without a word."""
    wanted = find_spec("numba") is not None and compiled_kernels()
    found = (kernels.fused, shards.fused, thresholds.fused, packing.compiled)
    assert [each is not None for each in found] == [wanted] * len(found)
