"""Options: every way in gives the same answer, typed or refused by name, with what to write in the text itself."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from netsim_ddp import (
    CompressedAdam,
    DistributedBackend,
    HookState,
    TopKCompressor,
    TopKState,
    get_compressor,
)
from netsim_ddp.communication import building, hooks
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.methods import topk as collective
from netsim_ddp.communication.methods.powersgd import PowerSGD
from netsim_ddp.communication.methods.topk_split import TopKSplitReduce
from netsim_ddp.communication.segments import Group
from netsim_ddp.communication.sparse import SelectedEntries
from netsim_ddp.compression.budget import SelectionOptions
from netsim_ddp.compression.codec import INDEX_FORMATS, VALUE_FORMATS
from netsim_ddp.compression.selection import SELECTORS
from netsim_ddp.errors import UsageError
from netsim_ddp.methods import METHODS
from netsim_ddp.methods.spec import parse_method, typed_params
from netsim_ddp.scenario import build_scenario

GOOD: dict[tuple[str, str, Any], Any] = {
    ("topk", "ratio", "1%"): 0.01,
    ("topk", "ratio", 1): 1.0,
    ("topk", "ratio", np.float64(0.25)): 0.25,
    ("topk", "ratio", torch.tensor(0.25)): 0.25,
    ("topk", "feedback", "off"): False,
    ("topk", "feedback", "no"): False,
    ("topk", "feedback", 0): False,
    ("topk", "feedback", np.bool_(False)): False,
    ("topk", "keep", "yes"): True,
    ("topk", "clip", None): None,
    ("topk", "clip", "none"): None,
    ("topk", "clip", "2"): 2.0,
    ("topk", "momentum", np.float32(0.5)): 0.5,
    ("topk", "masking", False): "off",
    ("topk", "dense_below", np.int64(7)): 7,
    ("topk", "dense_below", 2000.0): 2000,
    ("topk", "dense_below", "1e3"): 1000,
    ("powersgd", "rank", "4"): 4,
}
BAD: dict[tuple[str, str, Any], str] = {
    ("topk", "ratio", 0): "above 0 and at most 1",
    ("topk", "ratio", True): "not a fraction",
    ("topk", "ratio", float("nan")): "above 0 and at most 1",
    ("topk", "ratio", "5"): "write 5%",
    ("topk", "clip", -1): "clip=-1 is not a number above 0",
    ("topk", "clip", float("nan")): "clip=nan is not a number above 0",
    ("topk", "clip", float("inf")): "clip=inf is not",
    ("topk", "clip", True): "clip=True is not",
    ("topk", "momentum", 1): "momentum=1 is not a number from 0 to below 1",
    ("topk", "momentum", "much"): "write for example momentum=0.9",
    ("topk", "momentum", -0.5): "momentum=-0.5",
    ("topk", "masking", "maybe"): "one of auto, on, off",
    ("topk", "values", "fp8"): "values=fp8 is not one of fp32, fp16, bf16, int8, int8-stochastic",
    ("topk", "values", "FP16"): "did you mean values=fp16",
    ("topk", "values", float("nan")): "values=nan is not one of fp32, fp16, bf16, int8, int8-stochastic",
    ("topk", "values", 8): "one of fp32, fp16",
    ("topk", "indices", "int16"): "did you mean indices=int",
    ("topk", "collective", "ring"): "one of auto, split, allgather",
    ("topk", "selector", "largest"): "one of exact, sampled, fitted, random, block",
    ("topk", "scope", "layer"): "one of parameter, bucket, model",
    ("topk", "nonfinite", "ignore"): "one of raise, skip",
    ("topk", "feedback", "maybe"): "feedback=maybe is not on or off",
    ("topk", "feedback", 2): "feedback=2 is not on or off",
    ("topk", "feedback", 1.0): "feedback=1.0 is not on or off",
    ("topk", "keep", "perhaps"): "keep=perhaps is not on or off",
    ("topk", "warmup_steps", -5): "warmup_steps=-5 is not a whole number from 0 on",
    ("topk", "dense_below", -1): "dense_below=-1 is not a whole number from 0 on",
    ("topk", "dense_below", 1.5): "dense_below=1.5 is not a whole number",
    ("topk", "dense_below", True): "dense_below=True is not a whole number",
    ("topk", "ratoi", 0.1): "did you mean 'ratio'?",
    ("fp16", "ratio", 0.1): "ratio is an option of topk, topk-allgather, topk-dense",
    ("powersgd", "rank", 0): "rank=0 is not a whole number from 1 to 1024",
    ("powersgd", "min_compression", 0): "min_compression=0 is not a number above 0",
    ("powersgd", "momentum", 0.9): "has no option 'momentum'",
}
TOGETHER: dict[str, dict[str, Any]] = {
    "dense_below is about": {"scope": "bucket", "dense_below": 5},
    "momentum is accumulated": {"momentum": 0.9, "feedback": "off"},
    "keep is about the sums": {"keep": True, "collective": "allgather"},
}


def model() -> nn.Module:
    return nn.Linear(30, 20)


def ways(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Every way in, as a call that answers the typed option or the whole of them."""
    named = list(model().named_parameters())
    flat = FlatGradients(named)
    return {
        "backend": lambda: DistributedBackend(method=method, params=params).params,
        "hook": lambda: HookState(named, method, **params).params,
        "adam": lambda: CompressedAdam(named, method=method, params=params).sparse.params,
        "build": lambda: building.build_method(method, flat, Group(0, 2), **params),
        "file": lambda: build_scenario({"methods": [{"name": method, "params": params}]}).methods[0].params,
    }


@pytest.mark.parametrize(("method", "option", "value"), GOOD, ids=str)
def test_a_good_value_has_its_type_by_every_way(method: str, option: str, value: Any) -> None:
    expected = GOOD[method, option, value]
    for way, call in ways(method, {option: value}).items():
        if way in ("build",) or (way == "adam" and expected == 0.5):
            continue
        found = call()[option]
        assert (way, found, type(found)) == (way, expected, type(expected))
    if isinstance(value, str | int | float):
        assert parse_method(f"{method},{option}={value}").params[option] == expected


@pytest.mark.parametrize(("method", "option", "value"), BAD, ids=str)
def test_a_bad_value_is_refused_by_name_at_once_by_every_way(method: str, option: str, value: Any) -> None:
    said = set()
    for way, call in ways(method, {option: value}).items():
        with pytest.raises(UsageError) as caught:
            call()
        assert BAD[method, option, value] in str(caught.value), way
        assert option in str(caught.value)
        assert method in str(caught.value)
        said.add(str(caught.value).removeprefix("methods: "))
    with pytest.raises(UsageError) as caught:
        parse_method(f"{method},{option}={value}")
    assert said == {str(caught.value)}


@pytest.mark.parametrize("said", TOGETHER)
def test_options_that_exclude_each_other_are_refused_by_every_way(said: str) -> None:
    for way, call in ways("topk", TOGETHER[said]).items():
        with pytest.raises(UsageError, match=said):
            call()
        assert way


def test_nan_numbers_on_the_command_line() -> None:
    for text in ("topk,clip=nan", "topk,momentum=inf", "topk,ratio=nan", "powersgd,rank=nan"):
        with pytest.raises(UsageError, match=r"is not|must be"):
            parse_method(text)


def test_the_overlap_of_a_backend_is_refused_and_where_it_belongs_is_said() -> None:
    with pytest.raises(UsageError, match=r"HookState\(..., overlap=True\)"):
        DistributedBackend(method="topk", params={"overlap": True})
    assert DistributedBackend(method="topk", params={"overlap": False})
    with pytest.raises(UsageError, match="cannot overlap the backward pass"):
        HookState(model().named_parameters(), overlap=True, scope="model")


def test_a_method_with_its_options_in_its_name() -> None:
    with pytest.raises(UsageError, match="name 'topk', and give its options beside it"):
        DistributedBackend(method="topk,ratio=0.01")
    with pytest.raises(UsageError, match="is not a name"):
        HookState(model(), TopKCompressor())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="are not a dict"):
        DistributedBackend(method="topk", params="ratio=0.01")  # type: ignore[arg-type]


def test_users_own_methods_take_any_options_as_they_are() -> None:
    given = {"depth": "0.5", "ratio": "1%", "fast": "on", "thing": object()}
    assert typed_params("my_module:factory", given) == given
    assert parse_method("my_module:factory,depth=0.5,fast=on").params == {"depth": 0.5, "fast": True}


@pytest.mark.parametrize("bad", [0, True, "two", float("nan"), "101%", None])
def test_a_compressor_checks_its_ratio_when_it_is_made_and_when_it_is_set(bad: Any) -> None:
    for make in (TopKCompressor, lambda ratio: get_compressor("topk", ratio)):
        with pytest.raises(UsageError, match="write"):
            make(bad)
    compressor = TopKCompressor("2%")
    with pytest.raises(UsageError, match="ratio"):
        compressor.ratio = bad
    assert compressor.ratio == 0.02
    compressor.ratio = "50%"  # type: ignore[assignment] # a setter that takes more than its getter gives
    assert compressor.ratio == 0.5


def test_parameters_without_names_are_refused_and_a_model_is_taken() -> None:
    net = model()
    assert TopKState(net, "1%").params == {"ratio": 0.01}
    assert TopKState(dict(net.named_parameters())).params == {"ratio": 0.01}
    wrong: list[Any] = [list(net.parameters()), net.weight, [("weight", 1.0)], 3, "model"]
    for each in (*wrong, net.parameters()):
        with pytest.raises(UsageError, match=r"write model.named_parameters\(\)"):
            TopKState(each)
    for each in (*wrong, net.parameters()):
        with pytest.raises(UsageError, match=r"write model.named_parameters\(\)"):
            CompressedAdam(each)


def test_the_registry_and_the_implementations_agree() -> None:
    """Names, defaults and choices are said in methods.py; what runs has the same."""
    topk = METHODS["topk"].options
    assert {"values": set(VALUE_FORMATS), "indices": set(INDEX_FORMATS)} == {
        key: set(topk[key].choices) for key in ("values", "indices")
    }
    assert set(topk["selector"].choices) == set(SELECTORS)
    assert topk["collective"].choices == collective.COLLECTIVES
    taken: dict[str, Any] = dict(vars(SelectionOptions()))
    for kind in (SelectedEntries, TopKSplitReduce):
        taken |= defaults(kind.__init__)
    taken |= defaults(collective.topk)
    assert {key: option.default for key, option in topk.items() if key != "overlap"} == taken
    powersgd = {
        key: option.default for key, option in METHODS["powersgd"].options.items() if key != "overlap"
    }
    assert powersgd == defaults(PowerSGD.__init__)  # type: ignore[misc]
    assert hooks.TopKState(model()).params["ratio"] == topk["ratio"].default


def defaults(function: Any) -> dict[str, Any]:
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "error_buffer"
    }


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_option_says_what_it_takes_and_its_example_is_one(name: str) -> None:
    for key, option in METHODS[name].options.items():
        assert option.meaning
        assert option.typed(key, option.default) == option.default
        assert option.typed(key, option.example) is not None


def written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
