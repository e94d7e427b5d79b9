"""Messages of all ranks read, summed and laid out together: the same bits as one by one, in plain torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from netsim_ddp.communication.messages import Inbox, Mailbox, Outbox
from netsim_ddp.communication.methods.topk_allgather import TopKAllGather
from netsim_ddp.communication.methods.topk_split import TopKSplitReduce
from netsim_ddp.compression import packing, runs, shards
from netsim_ddp.compression.codec import INDEX_FORMATS, VALUE_FORMATS, Codec, CodecError
from netsim_ddp.compression.runs import Runs
from tests.compiled import needs_compiled
from tests.one_process import Ranks, alone

CPU = torch.device("cpu")
SHAPES = [(37, 129), (0,), (1,), (64, 3, 3, 3), (5,), (70_001,), ()]


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Iterator[None]:
    with alone():
        yield


@pytest.fixture(params=["compiled", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "compiled":
        if runs.fused is None:
            pytest.skip("the compiled kernels are off")
        return
    for module, name in ((runs, "fused"), (shards, "fused"), (packing, "compiled")):
        monkeypatch.setattr(module, name, None)


class PlainSplit(TopKSplitReduce):
    """Each message read, added and written by itself."""

    def _sum(self) -> None:
        me = self.group.rank
        for sender, message in enumerate(self._received.messages):
            values, local = self._up[me].read(message, sender)
            self.sums.index_add_(0, local, values)
        values, local = (
            self._largest(self._received.read()) if self.keep else self._all(self._received.read())
        )
        received = torch.empty_like(values)
        size = self._down[me].write(values, local, self._answers[me], received)
        self._gather.sizes = [size] * self.group.world_size
        self.sums[local.long()] = values - received
        if self.buffer is None:
            self.sums.zero_()

    def _write(self) -> None:
        self.average.zero_()
        for owner, message in enumerate(self._answers):
            values, local = self._down[owner].read(message, owner)
            self.average[self.shares.positions(owner, local)] = values / self.group.world_size
        self._conclude(0.0)


class PlainAllGather(TopKAllGather):
    def _sum(self) -> None:
        self.average.zero_()
        for sender, message in enumerate(self._messages):
            values, positions = self._mailbox.read(message, sender)
            self.average.index_add_(0, positions, values / self.group.world_size)
        self._conclude(0.0)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("lent", [False, True], ids=["own", "lent"])
@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (2, {"ratio": 0.01}),
        (3, {"ratio": 0.1, "values": "fp16"}),
        (4, {"ratio": 1.0, "values": "bf16"}),
        (8, {"ratio": 0.01, "values": "int8"}),
        (8, {"ratio": 0.001, "scope": "model"}),
        (3, {"ratio": 0.05, "indices": "int32", "adaptive": True}),
        (2, {"ratio": 0.3, "indices": "int64", "values": "int8-stochastic", "feedback": False}),
    ],
)
@pytest.mark.parametrize(("kind", "plain"), [(TopKSplitReduce, PlainSplit), (TopKAllGather, PlainAllGather)])
def test_the_average_is_that_of_plain_torch(
    kind: Any, plain: Any, ranks: int, options: dict[str, Any], lent: bool
) -> None:
    ours, theirs = (Ranks(each, SHAPES, ranks, **options) for each in (kind, plain))
    generator = torch.Generator().manual_seed(ranks)
    for _ in range(3):
        gradients = [torch.randn(ours.methods[0].flat.numel, generator=generator) for _ in range(ranks)]
        found = ours.step(gradients, lent=lent)
        wanted = theirs.step(gradients)
        for one, other in itertools.product(found, wanted):
            assert torch.equal(_bits(one), _bits(other))
        for one, other in zip(ours.methods, theirs.methods, strict=True):
            for name in ("sums", "residual"):
                left, right = getattr(one, name, None), getattr(other, name, None)
                assert left is right is None or torch.equal(_bits(left), _bits(right))


def _bits(values: Tensor) -> Tensor:
    return values.view(torch.int32)


@pytest.mark.usefixtures("kernels")
def test_owners_that_keep_nothing_send_all_sums() -> None:
    ours, theirs = (Ranks(each, SHAPES, 3, ratio=0.02, keep=False) for each in (TopKSplitReduce, PlainSplit))
    gradients = [torch.randn(ours.methods[0].flat.numel) for _ in range(3)]
    assert torch.equal(_bits(ours.step(gradients)[0]), _bits(theirs.step(gradients)[2]))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("numel", [1, 40, 5000, 3_000_017])
def test_entries_are_laid_between_zeros_and_nowhere_else(
    numel: int, add: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into stretches that begin at any float."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(packing, "_WORTH_A_THREAD", 1)
    generator = torch.Generator().manual_seed(numel)
    inner = torch.randint(numel + 1, (5,), generator=generator).tolist()
    cuts = [0, *sorted([*inner, inner[0]]), numel]
    bucket = torch.full((numel + 40,), 7.0)
    places = [begin + 1 + 5 * i for i, begin in enumerate(cuts[:-1])]
    targets = [
        bucket[at : at + end - begin]
        for at, (begin, end) in zip(places, itertools.pairwise(cuts), strict=True)
    ]
    wanted_bucket, wanted = bucket.clone(), torch.zeros(numel)
    entries = Runs(CPU)
    entries.resize([min(numel // 6, 500)] * 3)
    ranks = torch.randperm(numel, generator=generator) % 3
    for rank, (values, positions) in enumerate(entries):
        allowed = torch.arange(numel) if add else (ranks == rank).nonzero().view(-1)
        chosen = allowed[torch.randperm(allowed.numel(), generator=generator)[: values.numel()]]
        positions.copy_(chosen.sort().values)
        values.copy_(torch.randn(values.numel(), generator=generator))
        if add:
            wanted.index_add_(0, positions, values)
        else:
            wanted[positions.long()] = values
    entries.lay(targets, add=add)
    for at, (begin, end) in zip(places, itertools.pairwise(cuts), strict=True):
        wanted_bucket[at : at + end - begin] = wanted[begin:end]
    assert torch.equal(bucket, wanted_bucket)


@pytest.mark.usefixtures("kernels")
def test_what_was_added_can_be_taken_back_exactly() -> None:
    total = torch.randn(100_000)
    before, entries = total.clone(), Runs(CPU)
    entries.resize([3000, 0, 5000])
    for values, positions in entries:
        positions.copy_(torch.randperm(total.numel())[: positions.numel()].sort().values)
        values.normal_()
    entries.add_to(total)
    wanted = before.clone()
    for values, positions in entries:
        wanted.index_add_(0, positions, values)
    assert torch.equal(total, wanted)
    entries.take_back(total)
    assert torch.equal(total, before)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("add", [False, True])
def test_what_was_written_is_cleared_by_the_next_entries(add: bool) -> None:
    target, written, entries = torch.zeros(100_000), None, Runs(CPU)
    for counts in ([10, 5], [3, 0], [40_000, 100], [7, 9], [2, 1]):
        entries.resize(counts)
        wanted = torch.zeros_like(target)
        for values, positions in entries:
            free = (wanted == 0).nonzero().view(-1)
            positions.copy_(free[torch.randperm(free.numel())[: positions.numel()]].sort().values)
            values.normal_()
            wanted[positions.long()] = values
        written = entries.replace(target, written, add=add)
        assert torch.equal(target, wanted)


@needs_compiled
def test_every_float16_is_widened_exactly() -> None:
    """Through messages: those that are not finite are refused."""
    codec = Codec("fp16")
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    finite = every[every.isfinite()]
    entries, positions = Runs(CPU), torch.arange(finite.numel(), dtype=torch.int32)
    message = codec.encode(finite.float(), positions)
    part = (0, message.numel(), finite.numel(), finite.numel())
    assert codec.decode_all(message, [part], entries)
    assert torch.equal(_bits(entries.values), _bits(finite.float()))
    assert entries.peaks.tolist() == [65504.0]
    for bad in every[~every.isfinite()][::97]:
        message[-2:] = bad.view(1).view(torch.uint8)
        assert not codec.decode_all(message, [part], entries)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("values", VALUE_FORMATS)
@pytest.mark.parametrize("indices", INDEX_FORMATS)
@given(counts=st.lists(st.integers(0, 5000), min_size=1, max_size=4), damage=st.integers(0, 2**30))
@settings(max_examples=15)
def test_an_inbox_reads_what_its_mailboxes_read_and_names_the_sender_of_damage(
    values: str, indices: str, counts: list[int], damage: int
) -> None:
    boxes = [Mailbox(Codec(values, indices), count, 3 * count + 1, CPU) for count in counts]
    inbox, generator = Inbox(boxes, CPU), torch.Generator().manual_seed(damage)
    sizes = []
    for box, message in zip(boxes, inbox.messages, strict=True):
        chosen = torch.randperm(box.numel, generator=generator)[: box.capacity].sort().values.to(torch.int32)
        sizes.append(box.write(torch.randn(box.capacity, generator=generator), chosen, message))
    assert inbox.refused() is None

    def check() -> None:
        for rank, (value, position) in enumerate(inbox.read(3.0)):
            wanted_values, wanted_positions = boxes[rank].read(inbox.messages[rank], rank)
            assert torch.equal(_bits(value), _bits(wanted_values / 3))
            assert torch.equal(position, wanted_positions)

    check()
    rank = damage % len(counts)
    inbox.messages[rank][damage % sizes[rank]] ^= 1 + damage % 255
    try:
        check()
    except CodecError as error:
        assert f"rank {rank} sent a damaged message" in str(error)  # noqa: PT017 - some damage is another message
    boxes[rank].refuse(inbox.messages[rank])
    assert inbox.refused() == rank


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("values", VALUE_FORMATS)
@pytest.mark.parametrize("indices", INDEX_FORMATS)
@given(counts=st.lists(st.integers(0, 5000), min_size=1, max_size=4), seed=st.integers(0, 2**30))
@settings(max_examples=15)
def test_an_outbox_writes_what_its_mailboxes_write(
    values: str, indices: str, counts: list[int], seed: int
) -> None:
    one_by_one, together = Codec(values, indices, seed=3), Codec(values, indices, seed=3)
    boxes = [[Mailbox(codec, n, 3 * n + 1, CPU) for n in counts] for codec in (one_by_one, together)]
    outbox, generator = Outbox(boxes[1]), torch.Generator().manual_seed(seed)
    parts = [torch.randperm(3 * n + 1, generator=generator)[:n].sort().values.to(torch.int32) for n in counts]
    entries = torch.randn(sum(counts), generator=generator) * 10.0 ** torch.randint(
        -9, 9, (sum(counts),), generator=generator
    )
    bounds, positions = list(itertools.accumulate(counts, initial=0)), torch.cat(parts)
    received, wanted = torch.empty_like(entries), torch.empty_like(entries)
    sizes = outbox.write(entries, positions, bounds, received)
    for rank, box in enumerate(boxes[0]):
        part, message = slice(bounds[rank], bounds[rank + 1]), box.buffer()
        assert box.write(entries[part], positions[part], message, wanted[part]) == sizes[rank]
        assert torch.equal(message[: sizes[rank]], outbox.messages[rank][: sizes[rank]])
    assert torch.equal(_bits(received), _bits(wanted))
    assert together.counter == one_by_one.counter
    if max(counts) > 1:
        wrong = torch.cat([part.flip(0) for part in parts])
        with pytest.raises(ValueError, match="ascend"):
            outbox.write(entries, wrong, bounds)


@needs_compiled
@pytest.mark.parametrize(("values", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_compiled_rounding_to_16_bits_is_torchs(values: str, dtype: torch.dtype) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = every[every.isfinite()].float()
    steps = torch.tensor([-2, -1, 0, 1, 2], dtype=torch.int32)
    halfway = (finite.view(torch.int32)[:, None] + (1 << (12 if values == "fp16" else 15)) + steps).view(-1)
    inputs = torch.cat([finite, halfway.view(torch.float32), torch.tensor([65519.0, 65520.0, 3.4e38, 1e-45])])
    inputs = inputs[inputs.isfinite()].contiguous()
    codec, k = Codec(values), inputs.numel()
    box = Mailbox(codec, k, k, CPU)
    outbox, received = Outbox([box]), torch.empty(k)
    outbox.write(inputs, torch.arange(k, dtype=torch.int32), [0, k], received)
    largest = torch.finfo(dtype).max
    assert torch.equal(_bits(received), _bits(inputs.clamp(-largest, largest).to(dtype).float()))
