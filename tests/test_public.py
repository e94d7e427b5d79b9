"""The public names: pinned, loaded on demand, described."""

from __future__ import annotations

import importlib
import inspect
from importlib import metadata
from pathlib import Path

import pytest
import torch

import netsim_ddp

NAMES = {
    "Collective",
    "CompressedAdam",
    "CorrectedSGD",
    "DistributedBackend",
    "ErrorFeedbackBuffer",
    "FlatGradients",
    "Group",
    "HookState",
    "Local",
    "Method",
    "MetricsTracker",
    "NonFiniteGradient",
    "Segment",
    "TopKCompressor",
    "TopKState",
    "Wire",
    "all_gather",
    "all_reduce",
    "for_other_ranks",
    "get_compressor",
    "get_dataloaders",
    "get_model",
    "method_hook",
    "peer_exchange",
    "record",
    "summed",
    "topk_hook",
}


def test_the_public_names_are_these() -> None:
    assert set(netsim_ddp.__all__) == {*NAMES, "__version__"}
    assert set(netsim_ddp.__all__) <= set(dir(netsim_ddp))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_public_name_resolves_and_says_what_it_is(name: str) -> None:
    found = getattr(netsim_ddp, name)
    assert (inspect.getdoc(found) or "").strip()
    assert getattr(netsim_ddp, name) is found


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        netsim_ddp.no_such_name  # noqa: B018 - the access is the test


def test_what_hides_a_module_that_is_needed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """numba imports ``coverage``, and takes a user's file of that name for it."""

    def hidden(_: str) -> None:
        raise AttributeError("module 'coverage' has no attribute 'types'")

    monkeypatch.setattr(importlib, "import_module", hidden)
    with pytest.raises(
        ImportError, match=r"communication\.hooks cannot be imported: module 'coverage' has no"
    ):
        netsim_ddp.__getattr__("topk_hook")


def test_the_version_is_the_installed_ones() -> None:
    assert metadata.version("netsim-ddp") == netsim_ddp.__version__


def test_all_gather_refuses_room_of_another_shape() -> None:
    group = netsim_ddp.Group(rank=0, world_size=3)
    with pytest.raises(ValueError, match=r"gathered must be \[3, 5\]"):
        netsim_ddp.all_gather(torch.zeros(5), torch.zeros(2, 5), group)
    wire = netsim_ddp.all_gather(torch.zeros(5), torch.zeros(3, 5), group)
    assert (wire.payload_bytes, list(wire.messages())) == (20, [20, 20])


def test_objects_say_what_they_are() -> None:
    model = torch.nn.Linear(4, 2)
    assert (
        repr(netsim_ddp.FlatGradients(model.named_parameters()))
        == "FlatGradients(2 parameters, 10 elements, cpu)"
    )
    assert repr(netsim_ddp.DistributedBackend(method="powersgd", params={"rank": 2})).startswith(
        "DistributedBackend('powersgd', "
    )
    assert repr(netsim_ddp.TopKState(model, ratio=0.1)).startswith("TopKState('topk', ")


def test_results_load_from_python() -> None:
    from netsim_ddp.results import load

    result = load(Path(__file__).parents[1] / "reports" / "baseline.json")
    assert result.cells[0].summary is not None
    assert result.cells[0].summary.step_s.median > 0


OLD_HOMES = {
    "workloads": ["get_model", "get_dataloaders", "build_workload", "Workload"],
    "communication.dense": ["all_reduce", "summed"],
    "communication.pipeline": ["ddp_buckets"],
    "communication.segments": ["Collective", "Local", "Method"],
    "communication.hooks": ["HookState", "topk_hook"],
    "compression.kernels": ["NonFiniteGradient"],
    "results": ["load"],
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("module", sorted(OLD_HOMES))
def test_what_programs_for_0_1_0_import_is_still_there(module: str) -> None:
    home = importlib.import_module(f"netsim_ddp.{module}")
    assert [name for name in OLD_HOMES[module] if not hasattr(home, name)] == []
