"""The compressor and the buffer that a user hands to a backend are the ones that are used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netsim_ddp import DistributedBackend, ErrorFeedbackBuffer, TopKCompressor, get_compressor
from netsim_ddp.communication.own_compressor import OwnCompressor
from netsim_ddp.compression.kernels import NonFiniteGradient
from netsim_ddp.errors import UsageError
from tests.distributed.ranks import on_ranks

SHAPES = {"a.weight": (37, 11), "a.bias": (11,), "empty": (0,), "scale": ()}


class First(TopKCompressor):
    """Sends the first entries instead of the largest, scaled, and takes the scale off again."""

    def compress(self, tensor: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
        flat = tensor.reshape(-1)
        count = min(3, flat.numel())
        self.stats.count(1, count, 0, 0)
        return (flat[:count] * 4).half(), torch.arange(count), tensor.shape

    def decompress(self, values: Tensor, indices: Tensor, shape: Any) -> Tensor:
        return super().decompress(values / 4, indices, shape)


class Same(TopKCompressor):
    """As its base, by a ``compress`` of its own."""

    def compress(self, tensor: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
        return super().compress(tensor)


class Broken(TopKCompressor):
    """On one rank its answer cannot be sent."""

    rank = -1

    def compress(self, tensor: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
        values, indices, shape = super().compress(tensor)
        return values, indices + (10_000 if self.rank == 1 else 0), shape


class Decaying(ErrorFeedbackBuffer):
    """Keeps half of what is left."""

    def update(self, name: str, compensated: Tensor, approx: Tensor) -> None:
        super().update(name, (compensated - approx) / 2, torch.zeros_like(approx))


def build() -> nn.ParameterDict:
    return nn.ParameterDict({name.replace(".", "_"): torch.zeros(shape) for name, shape in SHAPES.items()})


def fill(model: nn.Module, rank: int, step: int) -> None:
    generator = torch.Generator().manual_seed(100 * step + rank)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def averages(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).clone()


def train(rank: int, compressor: Any, buffer: Any, steps: int = 4, **options: Any) -> dict[str, Any]:
    model, backend = build(), DistributedBackend(compressor, buffer, **options)
    found, owed = [], []
    for step in range(steps):
        fill(model, rank, step)
        owed.append(averages(model))
        backend.allreduce_gradients(model.named_parameters())
        found.append(averages(model))
    return {
        "found": torch.stack(found).numpy(),
        "owed": torch.stack(owed).numpy(),
        "method": type(backend.method).__name__,
        "statistics": backend.statistics(layers=True),
        "pending": None
        if buffer is None
        else torch.cat([buffer[n].reshape(-1) for n in dict(model.items())]).numpy(),
    }


def overridden(rank: int, workers: int) -> dict[str, Any]:
    del workers
    first = First(0.1)
    result = {
        "first": train(rank, first, ErrorFeedbackBuffer()),
        "plain": train(rank, First(0.1), None),
        "same": train(rank, Same(0.1), ErrorFeedbackBuffer()),
        "decaying": train(rank, TopKCompressor(0.1), Decaying()),
        "fused": train(rank, TopKCompressor(0.1), ErrorFeedbackBuffer(), params={"collective": "allgather"}),
    }
    patched = TopKCompressor(0.1)
    patched.compress = Same(0.5).compress  # type: ignore[method-assign]
    return {**result, "patched": train(rank, patched, None, 1), "calls": first.stats.calls}


@pytest.mark.parametrize("workers", [2, 3])
def test_a_compress_or_an_update_of_ones_own_is_called(workers: int) -> None:
    ranks = on_ranks(overridden, workers)
    for key in ("first", "plain", "same", "decaying", "patched"):
        assert {found[key]["method"] for found in ranks} == {"OwnCompressor"}
        assert all(np.array_equal(found[key]["found"], ranks[0][key]["found"]) for found in ranks)
    assert ranks[0]["fused"]["method"] == "TopKAllGather"
    for found in ranks:
        assert np.array_equal(found["same"]["found"], found["fused"]["found"])
        assert np.array_equal(found["same"]["pending"], found["fused"]["pending"])
        same, fused = found["same"]["statistics"], found["fused"]["statistics"]
        assert (same.entries, same.numel) == (fused.entries, fused.numel)
        assert same.energy == pytest.approx(fused.energy)
        assert list(same.layers) == list(fused.layers)
        assert found["calls"] == 4 * len(SHAPES)
        assert not np.array_equal(found["decaying"]["found"][1:], found["fused"]["found"][1:])
    owed = np.mean([found["first"]["owed"].sum(0) for found in ranks], 0)
    pending = np.mean([found["first"]["pending"] for found in ranks], 0)
    np.testing.assert_allclose(ranks[0]["first"]["found"].sum(0) + pending, owed, atol=1e-5)
    sent = ranks[0]["plain"]["found"][0]
    assert int((sent != 0).sum()) == 3 + 3 + 0 + 1
    half = np.mean([found["plain"]["owed"][0] for found in ranks], 0)
    np.testing.assert_allclose(sent[:3], half[:3], rtol=1e-3, atol=1e-3)
    assert int((ranks[0]["patched"]["found"] != 0).sum()) > 407 // 2


def followed(rank: int, workers: int, collective: str) -> dict[str, Any]:
    del workers
    compressor, buffer = TopKCompressor(0.1), ErrorFeedbackBuffer()
    model = build()
    names = list(dict(model.named_parameters()))
    buffer.load_state_dict({name: torch.full(p.shape, 3.0) for name, p in model.named_parameters()})
    backend = DistributedBackend(compressor, buffer, params={"collective": collective})
    result: dict[str, Any] = {}

    def step(number: int | None) -> int:
        fill(model, rank, number or 0)
        if number is None:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        backend.allreduce_gradients(model.named_parameters())
        return int((averages(model) != 0).sum())

    step(None)
    result["preloaded"] = averages(model).max().item()
    result["same memory"] = backend.method.residual.data_ptr() == buffer[names[0]].data_ptr()  # type: ignore[union-attr]
    result["stats"] = (compressor.stats.calls, compressor.stats.entries, compressor.stats.bytes_in)
    before = buffer.state_dict()
    result["pending"] = sum(float(each.sum()) for each in before.values())
    compressor.ratio = 1.0
    step(None)
    result["all"] = int((averages(model) != 0).sum())
    compressor.ratio = 0.1
    result["few"] = step(3)
    compressor.reset()
    step(4)
    result["counted"] = compressor.stats.calls
    buffer.to("cpu")
    step(5)
    result["moved"] = backend.method.residual.data_ptr() == buffer[names[0]].data_ptr()  # type: ignore[union-attr]
    buffer.reset()
    step(None)
    result["reset"] = float(averages(model).abs().max())
    return result


@pytest.mark.parametrize("collective", ["allgather", "split"])
def test_ratio_counters_contents_and_reset_are_followed(collective: str) -> None:
    for found in on_ranks(followed, 2, collective):
        assert found["preloaded"] == 3.0
        assert found["same memory"]
        assert found["stats"] == (4, 41 + 2 + 0 + 1, 4 * (407 + 11 + 1))
        assert found["pending"] > 0
        assert found["all"] > 300
        assert 0 < found["few"] <= 2 * 44
        assert found["counted"] == 4
        assert found["moved"]
        assert found["reset"] == 0.0


def refusals(rank: int, workers: int) -> dict[str, Any]:
    del workers
    said: dict[str, Any] = {}
    compressor = Broken(0.1)
    compressor.rank = rank
    try:
        train(rank, compressor, ErrorFeedbackBuffer())
    except UsageError as error:
        said["broken"] = str(error)
    buffer = ErrorFeedbackBuffer()
    backend, model = DistributedBackend(Same(0.1), buffer), build()
    fill(model, rank, 0)
    backend.allreduce_gradients(model.named_parameters())
    before = buffer.state_dict()
    fill(model, rank, 1)
    if rank == 0:
        model["a_bias"].grad[2] = torch.nan
    try:
        backend.allreduce_gradients(model.named_parameters())
    except NonFiniteGradient as error:
        said["nan"] = str(error)
    said["kept"] = all(torch.equal(before[name], buffer[name]) for name in before)
    fill(model, rank, 2)
    backend.allreduce_gradients(model.named_parameters())
    said["next"] = averages(model).numpy()
    return said


@pytest.mark.parametrize("workers", [2, 3])
def test_what_cannot_be_sent_is_refused_on_every_rank_and_the_next_step_works(workers: int) -> None:
    ranks = on_ranks(refusals, workers)
    for rank, found in enumerate(ranks):
        assert "compress of Broken returned on rank 1 cannot be sent" in found["broken"]
        assert ("a position lies outside" in found["broken"]) is (rank == 1)
        assert "rank 0 found a gradient that is not finite" in found["nan"]
        assert found["kept"]
        assert np.array_equal(found["next"], ranks[0]["next"])
        assert np.isfinite(found["next"]).all()


def test_what_would_be_ignored_is_refused_with_what_to_write() -> None:
    buffer = ErrorFeedbackBuffer()
    with pytest.raises(ValueError, match=r"netsim_ddp.Method: docs/methods.md"):
        DistributedBackend(object())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="leave ratio out of params"):
        DistributedBackend(TopKCompressor(0.1), buffer, params={"ratio": 0.2})
    with pytest.raises(UsageError, match="leave values out of params"):
        DistributedBackend(Same(0.1), buffer, params={"values": "fp16"})
    with pytest.raises(UsageError, match=r"write error_buffer=ErrorFeedbackBuffer\(\)"):
        DistributedBackend(TopKCompressor(0.1), {})  # type: ignore[arg-type]
    for method, params in {"fp16": {}, "topk": {"feedback": False}}.items():
        with pytest.raises(UsageError, match="has no use for an error_buffer"):
            DistributedBackend(None, buffer, method=method, params=params)
    assert DistributedBackend(get_compressor("none"), buffer)


def by_name(rank: int, workers: int) -> Any:
    """A buffer given beside a method's name is its residual; one whose names have a prefix is refused."""
    del workers
    buffer = ErrorFeedbackBuffer()
    found = train(rank, None, buffer, method="topk-allgather", params={"ratio": 0.1})
    model = build()
    wrapped = ErrorFeedbackBuffer()
    wrapped.load_state_dict({f"module.{name}": torch.ones(p.shape) for name, p in model.named_parameters()})
    fill(model, rank, 0)
    try:
        DistributedBackend(TopKCompressor(0.1), wrapped).allreduce_gradients(model.named_parameters())
    except UsageError as error:
        return float(abs(found["pending"]).sum()), str(error)
    return None


def test_a_buffer_beside_a_name_is_used_and_another_names_residual_is_not_lost() -> None:
    for pending, said in on_ranks(by_name, 2):
        assert pending > 0
        assert "error_buffer holds a residual of 'module." in said


def test_the_generic_method_stands_in_only_where_something_is_overridden() -> None:
    backend = DistributedBackend(TopKCompressor(0.1), ErrorFeedbackBuffer(), world_size=1, rank=0)
    assert backend.allreduce_gradients(build().named_parameters())
    assert not isinstance(backend.method, OwnCompressor)


def different(rank: int, workers: int) -> str:
    del workers
    model = build()
    fill(model, rank, 0)
    backend = DistributedBackend(Same(0.1) if rank else TopKCompressor(0.1), ErrorFeedbackBuffer())
    try:
        backend.allreduce_gradients(model)
    except UsageError as error:
        return str(error)
    return "taken"


def test_ranks_of_which_one_overrides_compress_are_told_apart_before_they_exchange() -> None:
    for said in on_ranks(different, 2):
        assert "rank 1 has compression compressor of one's own, rank 0 has netsim's" in said
