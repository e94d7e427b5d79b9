"""What a rank is told comes back from JSON as it was: settings of every kind, and the jobs of a repeat."""

from __future__ import annotations

import json
from typing import Any

import pytest

from netsim_ddp.link.mechanisms import HostLink
from netsim_ddp.ranks.jobs import from_json, jobs_for, settings_from_json, settings_to_json, to_json
from netsim_ddp.scenario import Scenario, Settings, TrainScenario, build

SETTINGS: list[tuple[type[Settings], dict[str, Any]]] = [
    (Scenario, {}),
    (Scenario, {"compute": "50ms", "methods": ["dense", "topk,ratio=0.05,values=fp16", "powersgd,rank=2"]}),
    (Scenario, {"bandwidth": "100mbps:20mbps", "slow_rank": ["1=5mbps"], "delay": "5ms", "jitter": "1ms"}),
    (
        Scenario,
        {"peak": "1gbps", "credit": "1MB", "bandwidth": "100mbps", "baseline": "none", "overlap": "on"},
    ),
    (TrainScenario, {"epochs": 3, "methods": ["topk,lr=0.05"], "optimizer": "adamw", "schedule": "step"}),
]


@pytest.mark.parametrize(("kind", "values"), SETTINGS)
def test_settings_come_back_as_they_were(kind: type[Settings], values: dict[str, Any]) -> None:
    settings = build(kind, values).resolved()
    document = json.loads(json.dumps(settings_to_json(settings)))
    assert settings_from_json(document) == settings


@pytest.mark.parametrize(("kind", "values"), SETTINGS)
def test_jobs_come_back_as_they_were(kind: type[Settings], values: dict[str, Any]) -> None:
    settings = build(kind, values).resolved()
    with HostLink(settings.link_spec(), "bucket") as link:
        jobs = jobs_for(
            link, settings, "a.module:Task", {"trial": "x"}, method=settings.methods[-1], repeat=3
        )
    document = json.loads(json.dumps(to_json(jobs)))
    assert from_json(document, settings) == jobs
    assert [job.rank for job in jobs] == list(range(settings.workers))


def test_the_log_tells_cells_apart() -> None:
    settings = build(Scenario, {"workers": 2, "methods": ["dense"], "baseline": "none"}).resolved()
    with HostLink(settings.link_spec(), "none") as link:
        labels = [
            jobs_for(link, settings, "a.module:StepsTask", {}, method=method)[0].label
            for method in settings.methods
        ]
        ready = jobs_for(link, settings, "a.module:ReadyTask", {})[0].label
    assert labels == ["StepsTask, dense,overlap=off, repeat 1", "StepsTask, dense,overlap=on, repeat 1"]
    assert ready == "ReadyTask, repeat 1"


def test_a_task_says_which_settings_it_needs() -> None:
    settings = build(Scenario, {"workers": 2}).resolved()
    with HostLink(settings.link_spec(), "none") as link:
        (job, _) = jobs_for(link, settings, "a.module:Task", {})
    assert job.settings_as(Scenario) is settings
    with pytest.raises(TypeError, match="needs a TrainScenario, not a Scenario"):
        job.settings_as(TrainScenario)
