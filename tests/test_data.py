"""Shards, shuffles and the generated images: everything a function of the seed."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

import pytest
import torch

from netsim_ddp.errors import UsageError
from netsim_ddp.names import DATASETS
from netsim_ddp.workloads.data import START_METHODS, ShardSampler, get_dataloaders
from netsim_ddp.workloads.images import Digits, Synthetic, raw_digits

DIGITS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
"""Of the pixels, then the labels of scikit-learn 1.9's ``load_digits()``, as bytes."""


def indices(rank: int, world_size: int, *, batch_size: int = 32, seed: int = 0, epoch: int = 0) -> list[int]:
    sampler = ShardSampler(1438, batch_size, rank, world_size, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_shards_are_disjoint_and_cover_all_but_a_remainder(world_size: int) -> None:
    shards = [indices(rank, world_size, batch_size=16) for rank in range(world_size)]
    together = [index for shard in shards for index in shard]
    assert len(set(together)) == len(together)
    assert {len(shard) for shard in shards} == {1438 // (16 * world_size) * 16}
    assert 1438 - len(together) < 16 * world_size


def test_a_batch_of_one_covers_everything() -> None:
    assert sorted(indices(0, 2, batch_size=1) + indices(1, 2, batch_size=1)) == list(range(1438))


def test_a_step_uses_the_same_images_however_many_ranks_share_them() -> None:
    alone = indices(0, 1, batch_size=64)
    shared = [indices(rank, 4, batch_size=16) for rank in range(4)]
    for step in range(len(alone) // 64):
        pooled = [index for shard in shared for index in shard[step * 16 : (step + 1) * 16]]
        assert sorted(pooled) == sorted(alone[step * 64 : (step + 1) * 64])


def test_shuffle_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    assert indices(0, 2) == indices(0, 2)
    different = [indices(0, 2, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in different}) == 4


def test_the_loader_s_sampler_takes_the_epoch() -> None:
    loader, _ = get_dataloaders("digits", 16, rank=1, world_size=4)
    orders = []
    for epoch in (0, 1, 0):
        assert isinstance(loader.sampler, ShardSampler)
        loader.sampler.set_epoch(epoch)
        orders.append(torch.cat([labels for _, labels in loader]))
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])
    assert len(loader) == 1438 // 4 // 16


def test_digits_are_scaled_and_split_by_class() -> None:
    train, validation = Digits(train=True, seed=0), Digits(train=False, seed=0)
    info = DATASETS["digits"]
    assert (len(train), len(validation)) == (info.train, info.validation)
    assert train.images.shape == (info.train, *info.shape)
    assert train.images.dtype == torch.float32
    assert train.images.mean().item() == pytest.approx(0, abs=1e-5)
    assert train.images.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    total = torch.bincount(train.labels) + torch.bincount(validation.labels)
    assert total.sum() == 1797
    assert torch.all((torch.bincount(validation.labels) / total - 0.2).abs() < 0.005)


def test_the_split_loses_and_repeats_no_image() -> None:
    parts = []
    for train in (True, False):
        images = Digits(train=train, seed=3).images.flatten(1)
        step = (images.max() - images.min()) / 16  # 0..16 grey levels, undone
        parts.append(((images - images.min()) / step).round())
    found = sorted(map(tuple, torch.cat(parts).int().tolist()))
    assert found == sorted(map(tuple, raw_digits()[0].flatten(1).int().tolist()))


def test_the_digits_are_those_that_scikit_learn_has() -> None:
    images, labels = raw_digits()
    assert (images.shape, images.dtype, labels.dtype) == ((1797, 1, 8, 8), torch.float32, torch.int64)
    content = images.to(torch.uint8).numpy().tobytes() + labels.to(torch.uint8).numpy().tobytes()
    assert hashlib.sha256(content).hexdigest() == DIGITS_SHA256


def test_the_split_depends_on_the_seed() -> None:
    first, again, other = (Digits(train=False, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.labels, other.labels)


@pytest.mark.parametrize("name", ["synthetic-cifar10", "synthetic-imagenet"])
def test_synthetic_batches_have_the_shape_and_repeat_by_seed(name: str) -> None:
    info = DATASETS[name]
    (images, labels), (same, _), (other, _) = (
        next(iter(get_dataloaders(name, 4, seed=seed)[0])) for seed in (0, 0, 1)
    )
    assert images.shape == (4, *info.shape)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert 0 <= int(labels.min()) <= int(labels.max()) < info.classes
    assert torch.equal(images, same)
    assert not torch.equal(images, other)


def test_synthetic_images_differ_from_each_other_and_between_splits() -> None:
    train = Synthetic("synthetic-cifar10", train=True, seed=0)
    validation = Synthetic("synthetic-cifar10", train=False, seed=0)
    images, labels = train.__getitems__([0, 10, 20, 25])
    assert labels.tolist() == [0, 0, 0, 5]
    held, _ = validation.__getitems__([0, 10])
    seen = [image.flatten() for image in (*images, *held)]
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    single, label = train[25]
    assert torch.equal(single, images[3])
    assert int(label) == 5


def test_synthetic_data_stores_no_images() -> None:
    dataset = Synthetic("synthetic-imagenet", train=True, seed=0)
    _ = dataset[0]
    bank, patterns = dataset._tables or pytest.fail("nothing was drawn")
    assert 4 * (bank.numel() + patterns.numel()) < 8e6
    assert len(pickle.dumps(dataset)) < 1000


def test_nothing_moves_the_global_random_numbers() -> None:
    before = torch.random.get_rng_state()
    for name in ("digits", "text", "synthetic-cifar10", "synthetic-imagenet", "synthetic-text"):
        train, validation = get_dataloaders(name, 2)
        next(iter(train))
        next(iter(validation))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("start_method", START_METHODS)
def test_loader_processes_give_the_same_batches_however_they_start(start_method: str) -> None:
    alone, _ = get_dataloaders("digits", 128, 1, 2)
    apart, _ = get_dataloaders("digits", 128, 1, 2, num_workers=1, start_method=start_method)
    for epoch, first in ((0, 0), (1, 3)):  # the same processes, in another epoch and in the middle of it
        taken: list[list[torch.Tensor]] = []
        for loader in (alone, apart):
            assert isinstance(loader.sampler, ShardSampler)
            loader.sampler.set_epoch(epoch, first)
            taken.append([images for images, _ in loader])
        assert len(taken[0]) == 5 - first
        assert all(torch.equal(a, b) for a, b in zip(*taken, strict=True))


def test_validation_is_whole_on_every_rank_and_in_fixed_order() -> None:
    whole = [torch.cat([y for _, y in get_dataloaders("digits", 8, rank, 2)[1]]) for rank in range(2)]
    assert len(whole[0]) == DATASETS["digits"].validation
    assert torch.equal(whole[0], whole[1])


def test_too_large_a_batch_names_the_largest() -> None:
    with pytest.raises(UsageError, match=r"batch size 400 .* 359 images over 4 ranks") as caught:
        get_dataloaders("digits", 400, world_size=4)
    assert caught.value.hint == "use a batch size of at most 359"
    train, _ = get_dataloaders("digits", 359, world_size=4)
    assert len(train) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch size must be at least 1, got 0"),
        ({"world_size": 0}, "number of ranks must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"rank": 2, "world_size": 2}, r"rank 2 is outside 0\.\.1"),
        ({"batch_size": 1, "world_size": 2000}, "too few images for 2000 ranks"),
        ({"num_workers": -1}, "loader processes must be at least 0"),
        ({"start_method": "thread"}, "start method 'thread' is not known"),
    ],
)
def test_numbers_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        get_dataloaders(**arguments)


def test_unknown_dataset_suggests_one() -> None:
    with pytest.raises(UsageError, match="dataset 'digit' is not known") as caught:
        get_dataloaders("digit")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean 'digits'? choose from digits, mnist, fashion-mnist")
