"""What ``netsim train`` can be told: defaults that follow from others, methods with options of the trainer, replays."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from netsim_ddp.errors import UsageError
from netsim_ddp.results.files import save
from netsim_ddp.scenario import TrainScenario, build
from netsim_ddp.training.checkpoint import RUN_FILE
from netsim_ddp.training.runner import as_begun
from tests.results_factory import make, make_cell


def scenario(**values: Any) -> TrainScenario:
    return build(TrainScenario, values)


def test_without_a_word_on_the_link_there_is_none() -> None:
    assert scenario().resolved().link == "none"
    assert scenario(bandwidth="20mbps").resolved().link == "auto"
    assert scenario(link="bucket").resolved().link == "bucket"


def test_a_learning_rate_that_is_not_given_is_the_optimizers() -> None:
    assert scenario(optimizer="adamw").resolved().learning_rate < scenario().resolved().learning_rate
    assert scenario(optimizer="adamw", learning_rate="0.5").resolved().learning_rate == 0.5


def test_momentum_is_corrected_where_a_method_can_and_left_to_the_optimizer_where_it_says_so() -> None:
    methods = ["dense", "topk", "topk,feedback=off", "topk,momentum=0,ratio=0.1", "powersgd"]
    found = scenario(methods=methods, momentum="0.9").cells()
    assert [cell.params.get("momentum") for cell in found] == [None, 0.9, None, 0.0, None]
    assert all(cell.params.get("momentum") is None for cell in scenario(momentum="0").cells())


def test_under_adam_small_parameters_are_sent_whole_unless_a_method_says_otherwise(tmp_path: Path) -> None:
    methods = ["dense", "topk", "topk,dense_below=0", "topk,freeze_after=10", "topk,scope=model", "powersgd"]
    for optimizer, below in (("adamw", 20_000), ("adam", 20_000), ("sgd", None)):
        given = methods if below else [name for name in methods if "freeze_after" not in name]
        found = {
            cell.id: cell.params.get("dense_below")
            for cell in scenario(methods=given, optimizer=optimizer).cells()
        }
        assert list(found.values())[:3] == [None, below, 0], optimizer
        assert not any(list(found.values())[3:]), optimizer
    first = scenario(methods=["topk"], optimizer="adamw").resolved()
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"schema_version": 2, "scenario": first.model_dump(mode="json")}))
    assert "dense_below" not in build(TrainScenario, {"optimizer": "sgd"}, path).cells()[0].params


def test_what_began_as_plain_topk_under_adam_goes_on_so(tmp_path: Path) -> None:
    begun = make([make_cell("topk", [100], id="topk,ratio=0.01", params={"ratio": 0.01})])
    going_on = scenario(methods=["topk"], optimizer="adamw", checkpoint=str(tmp_path), resume=True).resolved()
    save(begun, tmp_path / RUN_FILE)
    assert [method.id for method in as_begun(going_on).methods] == ["topk,ratio=0.01"]
    save(begun.model_copy(update={"cells": []}), tmp_path / RUN_FILE)
    assert as_begun(going_on) == going_on


def test_the_trainers_options_do_not_reach_the_exchange() -> None:
    found = scenario(methods=["topk,lr=0.05,freeze_after=10"], optimizer="adam")
    (cell,) = found.cells()
    assert cell.id == "topk,freeze_after=10,lr=0.05,ratio=0.01"
    assert found.exchange_params(cell) == {"ratio": 0.01}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"methods": ["topk,overlap=on"]}, "after the backward pass"),
        ({"overlap": "on"}, "after the backward pass"),
        ({"methods": ["topk,freeze_after=10"]}, "second moment"),
        ({"methods": ["dense,freeze_after=10"], "optimizer": "adam"}, "momentum, which 'dense"),
        ({"checkpoint_every": "3"}, "no interval"),
        ({"checkpoint_every": "3steps"}, "needs a folder"),
        ({"tune_lr": "0.1,fast"}, "lr=fast is not a number above 0"),
        ({"warmup_epochs": "10"}, "leaves nothing of 10 epochs"),
        ({"resume": True}, "needs the folder"),
        ({"target_accuracy": "0"}, "target_accuracy"),
        ({"methods": ["topk,lr=0"]}, "not a number above 0"),
        ({"download": "perhaps"}, "download"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        scenario(**values)
    assert said in caught.value.message.replace("--target-accuracy", "target_accuracy").replace("--", "")
    assert "\n" not in caught.value.message


def test_a_resolved_scenario_survives_its_own_file_and_flags_win_over_it(tmp_path: Path) -> None:
    first = scenario(
        methods=["dense", "topk"], momentum="0.9", checkpoint="x", checkpoint_every="50steps", tune_lr="0.1,1"
    ).resolved()
    assert first.resolved() == first
    assert first.tune_seed not in first.seeds
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"schema_version": 2, "scenario": first.model_dump(mode="json")}))
    assert build(TrainScenario, {}, path).resolved() == first
    assert build(TrainScenario, {"optimizer": "adamw"}, path).resolved().learning_rate == 1e-3
    assert build(TrainScenario, {"bandwidth": "20mbps"}, path).resolved().link == "auto"
    assert [
        cell.params.get("momentum") for cell in build(TrainScenario, {"momentum": "0"}, path).cells()
    ] == [
        None,
        None,
    ]


@pytest.mark.parametrize("name", ["cosine", "step", "constant"])
def test_schedules_rise_and_fall(name: str) -> None:
    values = scenario(schedule=name, epochs="12", warmup_epochs="2", learning_rate="1").resolved()
    rates = [values.rate_at(epoch / 4) for epoch in range(48)]
    assert rates[:8] == sorted(rates[:8])
    assert 0 < rates[0] < 0.1
    assert rates[8] == 1
    assert rates[8:] == sorted(rates[8:], reverse=True)
    last = {"cosine": 0.5 * (1 + math.cos(math.pi * 9.75 / 10)), "step": 0.1**2, "constant": 1.0}[name]
    assert rates[-1] == pytest.approx(last)
