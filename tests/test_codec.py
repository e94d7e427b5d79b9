"""Entries to bytes and back, and what a damaged message does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netsim_ddp.compression import Codec, CodecError
from netsim_ddp.errors import UsageError

VALUES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
INDICES = {"int32": 2**31 - 1, "int64": 2**63 - 1}
formats = pytest.mark.parametrize(("values", "indices"), [(v, i) for v in VALUES for i in INDICES])


@st.composite
def entries(draw):
    positions = draw(st.sets(st.integers(0, 2**31 - 1), max_size=30))
    numbers = draw(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            min_size=len(positions),
            max_size=len(positions),
        )
    )
    return torch.tensor(numbers, dtype=torch.float32), torch.tensor(sorted(positions), dtype=torch.int64)


@formats
@given(entry=entries())
@settings(max_examples=40, deadline=None)
def test_round_trip(values, indices, entry):
    codec = Codec(values, indices)
    numbers, positions = entry
    k = len(numbers)
    message = codec.encode(numbers, positions)
    assert message.dtype == torch.uint8
    assert message.shape == (codec.nbytes(k),)
    back, where = codec.decode(message, k, 2**31)
    assert back.dtype == torch.float32
    assert torch.equal(where.long(), positions)
    assert torch.equal(back, codec.round_trip(numbers))
    assert torch.isfinite(back).all()
    if values == "fp32":
        assert torch.equal(back.view(torch.int32), numbers.view(torch.int32))


@formats
@pytest.mark.parametrize("k", [0, 1, 257])
def test_empty_single_and_full(values, indices, k):
    codec = Codec(values, indices)
    numbers = torch.linspace(-2, 2, k)
    back, where = codec.decode(codec.encode(numbers, torch.arange(k)), k, k)
    assert torch.equal(where.long(), torch.arange(k))
    assert torch.equal(back, numbers.to(VALUES[values]).float())


def test_the_bytes_are_what_the_format_says():
    message = Codec("fp32", "int32").encode(torch.tensor([1.5, -2.0]), torch.tensor([3, 2**31 - 1]))
    assert (
        bytes(message.tolist())
        == np.array([3, 2**31 - 1], "<i4").tobytes() + np.array([1.5, -2], "<f4").tobytes()
    )
    assert Codec("fp16", "int64").nbytes(3) == 30


def test_rounding_saturates_instead_of_making_an_inf():
    extreme = torch.tensor([1e30, -1e30, 65519.0, 3.4028e38, 1e-12])
    half = Codec("fp16").round_trip(extreme)
    assert half.tolist() == [65504.0, -65504.0, 65504.0, 65504.0, 0.0]
    assert torch.isfinite(Codec("bf16").round_trip(extreme)).all()
    assert torch.isfinite(Codec("fp32").round_trip(torch.tensor([1e300], dtype=torch.float64))).all()
    assert Codec("fp16").round_trip(torch.tensor([1e30], dtype=torch.bfloat16)).item() == 65504.0


def test_out_is_written_in_place_wherever_it_starts():
    codec = Codec("fp16", "int64")
    room = torch.full((codec.nbytes(3) + 5,), 7, dtype=torch.uint8)
    out = room[3 : 3 + codec.nbytes(3)]
    numbers, positions = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 5, 6])
    assert codec.encode(numbers, positions, out=out).data_ptr() == out.data_ptr()
    assert room[:3].tolist() == [7, 7, 7]
    assert room[-2:].tolist() == [7, 7]
    back, where = codec.decode(out, 3, 7)
    assert (back.tolist(), where.tolist()) == ([1.0, 2.0, 3.0], [1, 5, 6])
    room.zero_()
    assert back.tolist() == [1.0, 2.0, 3.0], "what was decoded does not share memory with the message"


def message_of(positions: list[int], codec: Codec) -> torch.Tensor:
    """A message that ``encode`` would refuse to write."""
    index = torch.tensor(positions, dtype=codec._index.dtype).view(torch.uint8)
    return torch.cat([index, torch.ones(len(positions), dtype=codec._value.dtype).view(torch.uint8)])


@formats
@pytest.mark.parametrize("positions", [[1, 1, 2], [3, 2, 5], [-1, 2, 3], [0, 1, 10], [5, -2, 7]])
def test_wrong_indices_are_found(values, indices, positions):
    codec = Codec(values, indices)
    with pytest.raises(CodecError):
        codec.decode(message_of(positions, codec), 3, 10)


@formats
def test_wrong_lengths_are_found(values, indices):
    codec = Codec(values, indices)
    message = codec.encode(torch.ones(4), torch.arange(4))
    for wrong in (message[:-1], message[:0], torch.cat([message, message[:1]])):
        with pytest.raises(CodecError, match="bytes"):
            codec.decode(wrong, 4, 10)
    with pytest.raises(CodecError, match="positions"):
        codec.decode(message, 4, 3)
    with pytest.raises(ValueError, match="uint8"):
        codec.decode(message.to(torch.int32), 4, 10)


@formats
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_damage_raises_or_stays_inside_the_tensor(values, indices, data):
    codec = Codec(values, indices)
    message = codec.encode(torch.linspace(-1, 1, 8), torch.arange(0, 80, 10))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        numbers, where = codec.decode(message, 8, 80)
    except CodecError:
        return
    assert torch.isfinite(numbers).all()
    assert where.tolist() == sorted(set(where.tolist()))
    assert where[0] >= 0
    assert where[-1] < 80


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_damage(bad):
    message = torch.cat(
        [torch.zeros(1, dtype=torch.int32).view(torch.uint8), torch.tensor([bad]).view(torch.uint8)]
    )
    with pytest.raises(CodecError, match="finite"):
        Codec().decode(message, 1, 1)


def test_encode_refuses_what_it_cannot_hold():
    codec = Codec("fp32", "int32")
    with pytest.raises(ValueError, match="indices"):
        codec.encode(torch.ones(1), torch.tensor([2**31]))
    with pytest.raises(ValueError, match="indices"):
        codec.encode(torch.ones(1), torch.tensor([-1]))
    with pytest.raises(ValueError, match="match"):
        codec.encode(torch.ones(2), torch.tensor([1]))
    with pytest.raises(ValueError, match="out"):
        codec.encode(torch.ones(1), torch.tensor([1]), out=torch.empty(9, dtype=torch.uint8))
    with pytest.raises(ValueError, match="-1"):
        codec.nbytes(-1)


def test_an_unknown_format_names_the_known_ones():
    with pytest.raises(UsageError, match="int3") as raised:
        Codec(values="int3")
    assert "bf16" in raised.value.hint
    with pytest.raises(UsageError):
        Codec(indices="int16")
