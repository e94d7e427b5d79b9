"""Entries to bytes and back, how many bytes, and what a damaged message does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netsim_ddp.communication.messages import Mailbox
from netsim_ddp.compression import Codec, CodecError, packing, rounding
from netsim_ddp.compression.codec import INDEX_FORMATS, VALUE_FORMATS
from netsim_ddp.errors import UsageError
from tests.compiled import REASON, needs_compiled

torch.set_num_threads(1)
END = 2**31
formats = pytest.mark.parametrize(
    ("values", "indices"), [(v, i) for v in VALUE_FORMATS for i in INDEX_FORMATS]
)
both = pytest.mark.parametrize("implementation", ["compiled", "twin"])
HALF_STEP = {"fp32": 0.0, "fp16": 2**-11, "bf16": 2**-8}


@pytest.fixture
def use(monkeypatch):
    """Make packing and rounding take one implementation."""

    def choose(implementation: str) -> None:
        if packing.compiled is None and implementation == "compiled":
            pytest.skip(REASON)
        if implementation == "twin":
            monkeypatch.setattr(packing, "compiled", None)
            monkeypatch.setattr(rounding, "compiled", None)

    return choose


@st.composite
def index_sets(draw, end: int = END):
    """Ascending positions: scattered, in runs, every stretch of its own density, up to the last that 32 bits hold."""
    scattered = draw(st.sets(st.integers(0, end - 1), max_size=40))
    runs = draw(st.lists(st.tuples(st.integers(0, end - 1), st.integers(1, 3000)), max_size=3))
    chosen = np.unique(
        np.concatenate(
            [
                np.array(sorted(scattered), np.int64),
                *(np.arange(start, min(start + length, end)) for start, length in runs),
                np.array(draw(st.sampled_from([[], [0], [end - 1], [0, end - 1]])), np.int64),
            ]
        )
    )
    return torch.from_numpy(chosen)


def numbers_for(positions: torch.Tensor, seed: int, spread: float = 3.0) -> torch.Tensor:
    """Of both signs and many magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    k = positions.numel()
    return torch.randn(k, generator=generator) * 10 ** (spread * torch.randn(k, generator=generator))


@formats
@given(positions=index_sets(), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_round_trip(values, indices, positions, seed):
    codec = Codec(values, indices)
    numbers, k = numbers_for(positions, seed), positions.numel()
    received = torch.full((k,), float("nan"))
    message = codec.encode(numbers, positions, received=received)
    assert message.dtype == torch.uint8
    assert message.numel() <= codec.capacity(k, END)
    back, where = codec.decode(message, k, END)
    assert where.dtype == (torch.int64 if indices == "int64" else torch.int32)
    assert torch.equal(where.long(), positions)
    assert torch.equal(back, received), "what the sender takes for received is what the bytes say"
    assert torch.isfinite(back).all()
    if values in HALF_STEP:
        scale = numbers.abs() * HALF_STEP[values] + 2.0**-24
        assert ((back - numbers.clamp(-65504, 65504)).abs() <= scale)[numbers.abs() < 65504].all()
    if values == "fp32":
        assert torch.equal(back.view(torch.int32), numbers.view(torch.int32))


@formats
@pytest.mark.parametrize("k", [0, 1, 2, 257, 2048, 2049, 70_001])
def test_empty_single_and_full(values, indices, k):
    codec = Codec(values, indices)
    received, numbers = torch.empty(k), torch.linspace(-2, 2, k)
    back, where = codec.decode(codec.encode(numbers, torch.arange(k), received=received), k, k)
    assert torch.equal(where.long(), torch.arange(k))
    assert torch.equal(back, received)


@needs_compiled
@given(positions=index_sets())
@settings(max_examples=60)
def test_the_torch_twin_writes_and_reads_the_same_bytes(positions):
    if not positions.numel():
        return
    section = packing.pack(positions, threads=1)
    words = packing.twin.pack(positions)
    assert torch.equal(packing._octets(words), section)
    assert torch.equal(packing.twin.unpack(words, positions.numel(), END).long(), positions)


def test_threads_change_no_byte(monkeypatch):
    monkeypatch.setattr(packing, "_WORTH_A_THREAD", 3000)
    positions = torch.rand(900_000, generator=torch.Generator().manual_seed(0)).lt(0.02).nonzero().view(-1)
    alone = packing.pack(positions, threads=1)
    for threads in (2, 3, 5):
        assert torch.equal(packing.pack(positions, threads), alone)
        assert torch.equal(packing.unpack(alone, positions.numel(), 900_000, threads).long(), positions)


@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.1, 0.3, 0.7])
def test_packed_indices_are_near_their_entropy(ratio):
    n = 3_000_000
    positions = torch.rand(n, generator=torch.Generator().manual_seed(3)).lt(ratio).nonzero().view(-1)
    k = positions.numel()
    p = k / n
    entropy = -math.log2(p) - (1 - p) / p * math.log2(1 - p)
    bits = 8 * packing.pack(positions, threads=1).numel() / k
    assert entropy <= bits <= 1.05 * entropy or bits * p <= 1.03, "or it is a bitmap, of one bit per position"
    for values, width in (("fp32", 4), ("fp16", 2), ("int8", 1)):
        length = Codec(values).encode(torch.ones(k), positions).numel()
        assert length == pytest.approx(Codec(values).expected(k, n), rel=0.05)
        if ratio == 0.01:
            assert length / k <= width + 1.1


@given(positions=index_sets(end=5000))
@settings(max_examples=60)
def test_packed_indices_take_no_more_than_their_capacity(positions):
    k = positions.numel()
    for more in (0, 1, 100):  # capacity is for up to k entries
        assert packing.pack(positions, threads=1).numel() <= packing.capacity(k + more, 5000)


def test_the_bytes_are_what_the_formats_say():
    message = Codec("fp32", "int32").encode(torch.tensor([1.5, -2.0]), torch.tensor([3, END - 1]))
    assert (
        bytes(message.tolist())
        == np.array([3, END - 1], "<i4").tobytes() + np.array([1.5, -2], "<f4").tobytes()
    )
    assert Codec("fp16", "int64").capacity(3, 10) == Codec("fp16", "int64").expected(3, 10) == 30
    # One block: first index 5; gaps 1, 0, 2 with r = 0: 01 1 001, lowest bit first.
    packed = Codec("int8", "packed").encode(torch.tensor([1.0, -2.0, 0.5, 2.0]), torch.tensor([5, 7, 8, 11]))
    scale = np.float32(2) / np.float32(127)
    assert bytes(packed.tolist()) == (
        np.array([5, (0 << 27) | 1, 0b100110], "<u4").tobytes()
        + np.array([scale], "<f4").tobytes()
        + np.array([64, -127, 32, 127], "i1").tobytes()  # 63.5 and 31.75: to nearest, of two the even
    )


def test_rounding_saturates_instead_of_making_an_inf():
    def received(values: str, numbers: torch.Tensor) -> torch.Tensor:
        out = torch.empty(numbers.numel())
        Codec(values).encode(numbers, torch.arange(numbers.numel()), received=out)
        return out

    extreme = torch.tensor([1e30, -1e30, 65519.0, 3.4028e38, 1e-12])
    assert received("fp16", extreme).tolist() == [65504.0, -65504.0, 65504.0, 65504.0, 0.0]
    assert torch.isfinite(received("bf16", extreme)).all()
    assert received("fp16", torch.tensor([1e30], dtype=torch.bfloat16)).item() == 65504.0
    largest = torch.finfo(torch.float32).max
    for values in VALUE_FORMATS:
        assert torch.isfinite(received(values, torch.tensor([1e300, -1e300], dtype=torch.float64))).all()
        assert torch.isfinite(received(values, torch.tensor([largest, -largest]))).all()


@both
@pytest.mark.parametrize("values", ["int8", "int8-stochastic"])
def test_int8_is_within_a_step_of_its_blocks_largest(use, implementation, values):
    use(implementation)
    codec, k = Codec(values), 1000
    numbers = numbers_for(torch.arange(k), 1, spread=1.0)
    numbers[256:512] = 0.0
    numbers[512:768] *= 1e-44  # scales that are denormal, or nothing at all
    received = torch.empty(k)
    codec.encode(numbers, torch.arange(k), received=received)
    for start in range(0, k, rounding.GROUP):
        block, back = numbers[start : start + rounding.GROUP], received[start : start + rounding.GROUP]
        step = block.abs().max() / 127
        allowed = step * (0.5001 if values == "int8" else 1.0001) + 127 * 2.0**-149
        assert ((block - back).abs() <= allowed).all()
    assert not received[256:512].any()


@needs_compiled
@pytest.mark.parametrize("values", ["int8", "int8-stochastic"])
def test_int8_is_the_same_without_numba(use, values):
    numbers = numbers_for(torch.arange(999), 2, spread=1.0)
    ours, theirs = Codec(values, seed=3), Codec(values, seed=3)
    fast = [ours.encode(numbers, torch.arange(999)) for _ in range(2)]
    use("twin")
    for message in fast:
        assert torch.equal(theirs.encode(numbers, torch.arange(999)), message)
    assert torch.equal(*(codec.decode(fast[0], 999, 999)[0] for codec in (ours, theirs)))


def test_stochastic_rounding_has_the_value_as_its_mean_and_leaves_torchs_generator_alone():
    k, rounds = 512, 400
    numbers = torch.linspace(-1, 1, k)
    state = torch.get_rng_state()
    codec, received = Codec("int8-stochastic", "int32", seed=1), torch.empty(k)
    total, first = torch.zeros(k, dtype=torch.float64), None
    for _ in range(rounds):
        codec.encode(numbers, torch.arange(k), received=received)
        first = received.clone() if first is None else first
        total += received
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, received), "every message draws its own numbers"
    # A rounding is off by less than a step, so its deviation is at most half of one; 5 sigma, and their mean.
    step = 1 / 127
    error = (total / rounds - numbers).abs()
    assert error.max() <= 5 * step / 2 / math.sqrt(rounds)
    assert abs((total / rounds - numbers).mean()) <= 5 * step / 2 / math.sqrt(rounds * k)
    other = torch.empty(k)
    Codec("int8-stochastic", "int32", seed=2).encode(numbers, torch.arange(k), received=other)
    assert not torch.equal(other, first), "ranks draw their own"


@formats
@pytest.mark.parametrize("start", [3, 4])
def test_out_is_written_in_place_wherever_it_starts(values, indices, start):
    codec = Codec(values, indices)
    numbers, positions = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 5, 6])
    room = torch.full((start + codec.capacity(3, 7) + 5,), 7, dtype=torch.uint8)
    message = codec.encode(numbers, positions, out=room[start:])
    assert message.data_ptr() == room[start:].data_ptr()
    assert (room[:start] == 7).all()
    assert (room[start + message.numel() :] == 7).all()
    back, where = codec.decode(message, 3, 7)
    assert where.tolist() == [1, 5, 6]
    before = back.clone()
    room.zero_()
    assert torch.equal(back, before), "what was decoded does not share memory with the message"
    assert where.tolist() == [1, 5, 6]


@pytest.mark.parametrize("indices", ["int32", "int64"])
@pytest.mark.parametrize("positions", [[1, 1, 2], [3, 2, 5], [-1, 2, 3], [0, 1, 10], [5, -2, 7]])
def test_wrong_plain_indices_are_found(indices, positions):
    codec = Codec("fp32", indices)
    index = torch.tensor(positions, dtype=INDEX_FORMATS[indices]).view(torch.uint8)
    with pytest.raises(CodecError):
        codec.decode(torch.cat([index, torch.ones(3).view(torch.uint8)]), 3, 10)


@both
@pytest.mark.parametrize(
    "words",
    [
        [9, (30 << 27) | 1, 0x3FFFFFFF, 0xFFFFFFFF, 0b11],  # far beyond the end
        [9, (31 << 27) | 1, 0, 0, 0b11],  # no such parameter
        [10, 1, 0b11],  # the first index beyond the end
        [5, 1, 0b1],  # an entry too few
        [5, 1, 0b111],  # an entry too many
        [5, 1, 1 << 5 | 1],  # the last index beyond the end
        [5, 2, 0b11],  # a word too few
        [5, 1, 0b11, 0],  # a word too many
        [0xFFFFFFFF, 1, 0b11],
    ],
)
def test_wrong_packed_indices_are_found(use, implementation, words):
    use(implementation)
    codec = Codec("fp32", "packed")
    good = codec.encode(torch.ones(3), torch.tensor([5, 6, 7]))
    assert codec.decode(good, 3, 10)[1].tolist() == [5, 6, 7]
    section = torch.from_numpy(np.array(words, "<u4").view(np.uint8))
    with pytest.raises(CodecError, match="packed"):
        codec.decode(torch.cat([section, torch.ones(3).view(torch.uint8)]), 3, 10)


@formats
def test_wrong_lengths_are_found(values, indices):
    codec = Codec(values, indices)
    message = codec.encode(torch.ones(4), torch.arange(4))
    for wrong in (message[:-1], message[:0], message[:7], torch.cat([message, message[:1]])):
        with pytest.raises(CodecError):
            codec.decode(wrong, 4, 10)
    with pytest.raises(CodecError, match="positions"):
        codec.decode(message, 4, 3)
    with pytest.raises(CodecError):
        codec.decode(message, 0, 10)
    with pytest.raises(ValueError, match="uint8"):
        codec.decode(message.to(torch.int32), 4, 10)


@both
@formats
@given(data=st.data())
@settings(max_examples=25)
def test_damage_raises_or_stays_inside_the_tensor(values, indices, implementation, data):
    with pytest.MonkeyPatch.context() as patch:
        if implementation == "twin":
            patch.setattr(packing, "compiled", None)
            patch.setattr(rounding, "compiled", None)
        codec, k = Codec(values, indices), data.draw(st.sampled_from([8, 2100]))
        message = codec.encode(torch.linspace(-1, 1, k), torch.arange(0, 10 * k, 10))
        kind = data.draw(st.sampled_from(["bytes", "noise", "cut"]))
        if kind == "cut":
            message = message[: data.draw(st.integers(0, message.numel() - 1))]
        elif kind == "noise":
            message = torch.from_numpy(
                np.random.default_rng(data.draw(st.integers(0, 9999))).integers(
                    0, 256, message.numel(), np.uint8
                )
            )
        else:
            for _ in range(data.draw(st.integers(1, 4))):
                message[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))
        try:
            numbers, where = codec.decode(message, k, 10 * k)
        except CodecError:
            return
    assert kind != "cut"
    assert torch.isfinite(numbers).all()
    assert numbers.shape == where.shape == (k,)
    assert (where[1:] > where[:-1]).all()
    assert where[0] >= 0
    assert where[-1] < 10 * k


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_a_value_that_is_not_finite_is_damage(bad, values):
    codec = Codec(values, "int32")
    message = codec.encode(torch.ones(1), torch.tensor([0]))
    message[4:8] = torch.tensor([bad]).view(torch.uint8)  # the value, or the scale of its block
    if values == "int8" and bad == float("inf"):
        assert torch.isfinite(codec.decode(message, 1, 1)[0]).all(), "saturated"
        return
    with pytest.raises(CodecError, match="finite"):
        codec.decode(message, 1, 1)


@pytest.mark.parametrize("indices", ["packed", "int32"])
def test_encode_refuses_what_it_cannot_hold(indices):
    codec = Codec("fp32", indices)
    for position in (END, -1):
        with pytest.raises(ValueError, match="indices"):
            codec.encode(torch.ones(1), torch.tensor([position]))
    with pytest.raises(ValueError, match="match"):
        codec.encode(torch.ones(2), torch.tensor([1]))
    with pytest.raises(ValueError, match="out"):
        codec.encode(torch.ones(1), torch.tensor([1]), out=torch.empty(7, dtype=torch.uint8))
    with pytest.raises(ValueError, match="received"):
        codec.encode(torch.ones(1), torch.tensor([1]), received=torch.empty(2))
    with pytest.raises(ValueError, match="-1"):
        codec.capacity(-1, 10)


@both
@pytest.mark.parametrize("positions", [[1, 1, 2], [3, 2, 5], [0, 2**40, 7], [*range(2048), 2000, 3000]])
def test_packed_indices_out_of_order_are_refused(use, implementation, positions):
    use(implementation)
    with pytest.raises(ValueError, match="ascend"):
        Codec().encode(torch.ones(len(positions)), torch.tensor(positions))


def test_an_unknown_format_names_the_known_ones():
    with pytest.raises(UsageError, match="int3") as raised:
        Codec(values="int3")
    assert "bf16" in raised.value.hint
    with pytest.raises(UsageError, match="int16") as raised:
        Codec(indices="int16")
    assert "packed" in raised.value.hint


@formats
@given(positions=index_sets(end=4096), damage=st.integers(0, 10_000))
@settings(max_examples=25)
def test_a_mailbox_has_room_for_any_entries_and_finds_damage(values, indices, positions, damage):
    k = positions.numel()
    mailbox = Mailbox(Codec(values, indices), k, 4096, torch.device("cpu"))
    buffer, received = mailbox.buffer(), torch.empty(k)
    size = mailbox.write(numbers_for(positions, 0), positions.to(torch.int32), buffer, received)
    assert size <= mailbox.nbytes
    back, where = mailbox.read(buffer, 1)
    assert (where.dtype, back.dtype) == (torch.int32, torch.float32)
    assert torch.equal(where.long(), positions)
    assert torch.equal(back, received)
    buffer[damage % 16] ^= 1 + damage % 255
    with pytest.raises(CodecError):
        mailbox.read(buffer, 1)
