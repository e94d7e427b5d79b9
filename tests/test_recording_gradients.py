"""Which values of a gradient a recording keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netsim_ddp.workloads.recording.gradients import (
    BLOCK,
    BUDGET_BYTES,
    indices_of,
    kept_of,
    packed,
    sample,
    starts_of,
)


@pytest.mark.parametrize(
    ("numel", "kept"),
    [(1000, 64), (1000, 128), (1000, 960), (1000, 1000), (10**6, 64_000), (640, 576), (100, 0), (0, 0)],
)
def test_kept_blocks_are_spread_evenly_and_do_not_overlap(numel: int, kept: int) -> None:
    starts, places = starts_of(numel, kept), indices_of(numel, kept)
    assert len(places) == len(np.unique(places)) == kept
    if len(starts) > 1 and kept < numel:
        assert starts[0] == 0
        assert starts[-1] == numel - BLOCK
        assert np.ptp(np.diff(starts)) <= 1


@pytest.mark.parametrize(("numel", "kept"), [(1000, 65), (1000, 1024), (63, 64)])
def test_what_is_no_whole_blocks_is_refused(numel: int, kept: int) -> None:
    with pytest.raises(ValueError, match="no blocks"):
        starts_of(numel, kept)


def test_sets_fit_in_the_budget_and_small_parameters_are_whole() -> None:
    sizes = [100, 5000, 11_000_000, 20_000_000, 0]
    kept = kept_of(sizes, 3)
    assert 3 * 2 * sum(kept) <= BUDGET_BYTES
    assert sum(kept) > 0.99 * BUDGET_BYTES / 6
    assert kept[0] == 100
    assert kept_of([100, 5000], 3) == [100, 5000]


def test_a_set_is_scaled_by_parameter_and_one_that_is_not_finite_is_left_out() -> None:
    gradient = torch.arange(1000.0).reshape(10, 100) * 1e-30
    kept = sample(gradient, torch.from_numpy(indices_of(1000, 128)))
    array, scales = packed([kept, torch.zeros(3, dtype=torch.bfloat16)]) or (np.empty(0), [])
    assert array.dtype == np.float16
    assert array.max() == 1
    assert scales == [pytest.approx(999e-30), 1.0]
    assert not array[-3:].any()
    assert packed([torch.tensor([1.0, float("nan")])]) is None
    assert packed([torch.tensor([1.0, float("inf")])]) is None
