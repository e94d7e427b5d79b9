"""Gradients that a recording holds samples of are sent like whole ones, and whole ones come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from netsim_ddp.communication.methods.topk_allgather import TopKAllGather
from netsim_ddp.communication.methods.topk_split import TopKSplitReduce
from netsim_ddp.communication.segments import Method, Wire
from netsim_ddp.results.recording import Bucket, Gradients, Parameter
from netsim_ddp.results.recording_file import write
from netsim_ddp.workloads.emulated import record_gradient_sets
from netsim_ddp.workloads.recording.gradients import indices_of, kept_of, packed, sample
from netsim_ddp.workloads.recording.reconstruction import reconstruct, sets_of
from netsim_ddp.workloads.workload import build_workload
from tests.one_process import Ranks, alone
from tests.planted_recordings import file, recording

SETS = 2


def rebuilt(path: Path, sets: list[list[Tensor]], budget: int) -> list[list[Tensor]]:
    """``sets`` as they come back from a file with at most so many bytes of them."""
    parameters = [Parameter(name=f"p{i}", shape=list(each.shape)) for i, each in enumerate(sets[0])]
    sizes = [each.numel for each in parameters]
    kept = kept_of(sizes, len(sets), budget)
    places = [torch.from_numpy(indices_of(size, keep)) for size, keep in zip(sizes, kept, strict=True)]
    held = [packed([sample(each, at) for each, at in zip(one, places, strict=True)]) for one in sets]
    known = [each for each in held if each is not None]
    of = recording(
        parameters=parameters,
        buckets=[Bucket(parameters=[each.name for each in parameters], numel=sum(sizes))],
        gradients=Gradients(
            kind="full" if kept == sizes else "sampled",
            steps=list(range(len(sets))),
            kept=kept,
            scales=[scales for _, scales in known],
        ),
    )
    write(path, of, [values for values, _ in known])
    into = [[torch.empty_like(each) for each in one] for one in sets]
    reconstruct(path, of, into, seed=0)
    return into


def sent(kind: type[Method], sets: list[list[Tensor]], **options: object) -> float:
    """Payload of a step of two ranks that have different sets, mean over steps."""
    ranks = Ranks(kind, [each.shape for each in sets[0]], 2, ratio=0.01, **options)
    flat = [torch.cat([each.reshape(-1) for each in one]) for one in sets]
    total = 0
    for turn in range(3):
        ranks.step([flat[turn % SETS], flat[(turn + 1) % SETS]])
        total += sum(each.payload_bytes for each in ranks.segments[0] if isinstance(each, Wire))
    return total / 3


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("model", "budget"),
    # What 50 MB hold of three sets; and a third, as of a model whose embedding is much larger.
    [("resnet18-small", SETS * 50_000_000 // 3), ("transformer", SETS * 2 * 2_234_368 // 3)],
)
def test_samples_are_sent_as_whole_gradients_are(tmp_path: Path, model: str, budget: int) -> None:
    sets = record_gradient_sets(build_workload(model=model, batch_size=4), SETS)
    back = rebuilt(tmp_path / "r.netsim", sets, budget)
    with alone():
        for kind in (TopKAllGather, TopKSplitReduce):
            assert sent(kind, back) == pytest.approx(sent(kind, sets), rel=0.02), kind
    nothing = [sum(int((each == 0).sum()) for each in one) for one in (sets[0], back[0])]
    assert nothing[1] == pytest.approx(nothing[0], rel=0.05, abs=2000)  # rows that no token asked for


def test_whole_gradients_come_back_to_half_of_float16s_last_digit_and_without_its_ties(
    tmp_path: Path,
) -> None:
    sets = [[torch.randn(300, 70, generator=torch.Generator().manual_seed(seed)) * 1e-3] for seed in range(2)]
    back = rebuilt(tmp_path / "r.netsim", sets, 10**9)
    for one, other in zip(sets, back, strict=True):
        assert torch.allclose(one[0], other[0], rtol=2**-10, atol=1e-9)
    as_half = torch.unique(sets[0][0].half()).numel()
    assert torch.unique(back[0][0]).numel() > 1.5 * as_half


def test_blocks_take_the_nearest_that_was_kept_in_every_set(tmp_path: Path) -> None:
    ramp = torch.arange(64_000, dtype=torch.float32)
    first, second = rebuilt(tmp_path / "r.netsim", [[ramp], [-ramp]], 2 * 2 * 64 * 100)
    assert torch.allclose(first[0], -second[0], rtol=2**-10)
    assert float((first[0] - ramp).abs().max()) < 64_000 / 100 + 64
    assert first[0].unique().numel() > 5000


def test_what_holds_no_gradients_is_drawn_and_says_so(tmp_path: Path) -> None:
    of = recording(sets=0, gradients=Gradients(kind="none"))
    path = file(tmp_path / "r.netsim", of)
    into = [[torch.empty(each.shape) for each in of.parameters] for _ in range(sets_of(of))]
    reconstruct(path, of, into, seed=1)
    values = torch.cat([each.reshape(-1) for one in into for each in one])
    assert float(values.std()) == pytest.approx(1, rel=0.05)
    again = [[torch.empty(each.shape) for each in of.parameters] for _ in range(sets_of(of))]
    reconstruct(path, of, again, seed=1)
    assert torch.equal(again[2][0], into[2][0])


def test_a_parameter_without_elements_or_samples(tmp_path: Path) -> None:
    (back,) = rebuilt(tmp_path / "r.netsim", [[torch.ones(0), torch.zeros(5, 5)]], 10**6)
    assert back[0].numel() == 0
    assert np.array_equal(back[1].numpy(), np.zeros((5, 5)))
