"""The public names: pinned, loaded on demand, described."""

from __future__ import annotations

import inspect
from importlib import metadata

import pytest

import netsim_ddp

NAMES = {
    "CompressedAdam",
    "CorrectedSGD",
    "DistributedBackend",
    "ErrorFeedbackBuffer",
    "HookState",
    "Method",
    "MetricsTracker",
    "TopKCompressor",
    "TopKState",
    "for_other_ranks",
    "get_compressor",
    "get_dataloaders",
    "get_model",
    "method_hook",
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


def test_the_version_is_the_installed_ones() -> None:
    assert metadata.version("netsim-ddp") == netsim_ddp.__version__
