"""Orthonormal bases in batches, of anything that is finite."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netsim_ddp.communication.methods.powersgd import orthonormalise


@settings(max_examples=60)
@given(
    count=st.integers(0, 3),
    rank=st.integers(1, 5),
    extra=st.integers(0, 20),
    exponent=st.integers(-15, 15),
    seed=st.integers(0, 2**31),
)
def test_rows_become_orthonormal_and_span_what_they_did(
    count: int, rank: int, extra: int, exponent: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    given_rows = torch.randn(count, rank, rank + extra, generator=generator)
    rows = given_rows * 10.0**exponent
    orthonormalise(rows)
    assert torch.allclose(rows @ rows.transpose(1, 2), torch.eye(rank).expand(count, -1, -1), atol=1e-5)
    back = given_rows @ rows.transpose(1, 2) @ rows
    assert torch.allclose(back, given_rows, atol=1e-3)


@settings(max_examples=60)
@given(rank=st.integers(2, 5), length=st.integers(5, 30), seed=st.integers(0, 2**31))
def test_a_dependent_row_becomes_zero_and_the_others_stay_orthonormal(
    rank: int, length: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, rank, length, generator=generator)
    last = torch.randn(rank - 1, generator=generator)
    rows[0, -1] = last @ rows[0, :-1]
    orthonormalise(rows)
    expected = torch.eye(rank)
    expected[-1, -1] = 0
    assert torch.allclose(rows[0] @ rows[0].T, expected, atol=1e-5)


def test_zeros_stay_zeros() -> None:
    rows = torch.zeros(2, 3, 7)
    orthonormalise(rows)
    assert not rows.any()
