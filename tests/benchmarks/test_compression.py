"""Microbenchmarks of compression, run by ``make bench``: for comparing two versions with ``--benchmark-compare``.

``netsim bench compress`` measures the same interleaved. ``extra_info`` holds bytes and ratio.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from netsim_ddp.compression import Codec, accumulate_select, segment_table
from netsim_ddp.compression.shards import add_at
from netsim_ddp.tools.codec_bench import make_input
from netsim_ddp.workloads.emulated import record_gradient_sets
from netsim_ddp.workloads.workload import build_workload
from tests.test_reconstruction import rebuilt

N = 25_557_032  # ResNet-50's parameters
RATIOS = [0.1, 0.01, 0.001]
ROUNDS = 7


@pytest.fixture(scope="module", params=["normal", "heavy", "equal", "zeros", "sorted"])
def gradient(request: pytest.FixtureRequest) -> Tensor:
    torch.set_num_threads(1)
    return make_input(request.param, N, torch.empty(0))


def selected(gradient: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    offsets, ks = segment_table([gradient.numel()], ratio)
    values, indices = torch.empty(int(ks.sum())), torch.empty(int(ks.sum()), dtype=torch.int32)
    accumulate_select(gradient, torch.zeros_like(gradient), offsets, ks, values, indices)
    return values, indices


def test_memory_floor(benchmark, gradient):
    residual = gradient * 0.5
    benchmark.extra_info |= {"bytes": 12 * N}
    benchmark.pedantic(residual.add_, (gradient,), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("ratio", RATIOS)
def test_feedback_and_selection(benchmark, gradient, ratio):
    offsets, ks = segment_table([N], ratio)
    k = int(ks.sum())
    values, indices = torch.empty(k), torch.empty(k, dtype=torch.int32)
    start, residual = gradient * 0.5, torch.empty(N)
    benchmark.extra_info |= {"ratio": ratio, "bytes": 8 * k}

    def reset() -> None:
        residual.copy_(start)

    benchmark.pedantic(
        lambda: accumulate_select(gradient, residual, offsets, ks, values, indices),
        setup=reset,
        rounds=ROUNDS,
        warmup_rounds=1,
    )


@pytest.mark.parametrize("gradients", ["whole", "filled-up"])
@pytest.mark.parametrize("model", ["resnet18-small", "transformer"])
def test_selection_from_a_recording(benchmark, tmp_path, model, gradients):
    """Half of resnet18 is kept, and a third of the transformer: selection takes as long as from whole gradients."""
    torch.set_num_threads(1)
    sets = record_gradient_sets(build_workload(model=model, batch_size=4), 2)
    sizes = [each.numel() for each in sets[0]]
    if gradients == "filled-up":
        sets = rebuilt(
            tmp_path / "r.netsim", sets, 2 * 2 * sum(sizes) // (3 if model == "transformer" else 2)
        )
    flat = torch.cat([each.reshape(-1) for each in sets[0]])
    offsets, ks = segment_table(sizes, 0.01)
    k = int(ks.sum())
    values, indices = torch.empty(k), torch.empty(k, dtype=torch.int32)
    start, residual = flat * 0.5, torch.empty_like(flat)

    def reset() -> None:
        residual.copy_(start)

    benchmark.pedantic(
        lambda: accumulate_select(flat, residual, offsets, ks, values, indices),
        setup=reset,
        rounds=ROUNDS,
        warmup_rounds=1,
    )


@pytest.mark.parametrize("ratio", [0.01])
def test_torch_topk(benchmark, gradient, ratio):
    k = int(segment_table([N], ratio)[1])
    residual = gradient * 0.5
    benchmark.extra_info |= {"ratio": ratio, "bytes": 8 * k}

    def job() -> None:
        chosen = torch.topk(residual.add_(gradient).abs(), k, sorted=False).indices
        residual[chosen] = 0

    benchmark.pedantic(job, rounds=3)


@pytest.mark.parametrize("coding", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("ratio", RATIOS)
class TestCoding:
    def test_encode(self, benchmark, gradient, ratio, coding):
        values, indices = selected(gradient, ratio)
        codec = Codec(coding)
        out = torch.empty(codec.capacity(values.numel(), N), dtype=torch.uint8)
        size = benchmark.pedantic(
            lambda: codec.encode(values, indices, out).numel(), rounds=ROUNDS, warmup_rounds=1
        )
        benchmark.extra_info |= {"ratio": ratio, "bytes": size, "bytes_per_entry": size / values.numel()}

    def test_decode_and_add(self, benchmark, gradient, ratio, coding):
        values, indices = selected(gradient, ratio)
        codec, total = Codec(coding), torch.zeros(N)
        message = codec.encode(values, indices)

        def job() -> None:
            received, where = codec.decode(message, values.numel(), N)
            add_at(total, where, received)

        benchmark.extra_info |= {"ratio": ratio, "bytes": message.numel()}
        benchmark.pedantic(job, rounds=ROUNDS, warmup_rounds=1)
