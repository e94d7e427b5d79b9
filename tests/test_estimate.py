"""How long a sweep will take, against what published ones took and against what each part of it adds."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from netsim_ddp.results.files import load
from netsim_ddp.scenario import Scenario, TrainScenario, build
from netsim_ddp.scenario.matrix import Point
from netsim_ddp.sweep import estimate
from netsim_ddp.sweep.estimate import Estimate, repeat_seconds, start_seconds
from netsim_ddp.sweep.plan import Run, Unit, plan
from netsim_ddp.sweep.source import read_plan

REPORTS = Path(__file__).parent.parent / "reports"


@pytest.fixture(autouse=True)
def _a_quiet_machine_of_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """That on which the published sweeps ran."""
    monkeypatch.setattr(estimate, "available_cores", lambda: 2)
    monkeypatch.setattr(estimate, "busy_threads", lambda: 0.0)


@pytest.mark.parametrize("name", ["crossover", "accuracy"])
def test_it_is_within_a_factor_of_two_of_what_was_measured(name: str) -> None:
    """Every cell's repeat, and the whole: step times over bandwidths, trainings with 4 and 8 workers."""
    path = REPORTS / f"{name}.json"
    took = {cell.id: [repeat.took_s or 0.0 for repeat in cell.repeats] for cell in load(path).cells}
    _, _, _, runs = read_plan(str(path))
    expected, whole = 0.0, 0.0
    for run in runs:
        for cell in run.cells:
            each = repeat_seconds(Unit(run, cell, (0,)))
            assert 0.5 < each / median(took[cell.id]) < 2, cell.id
            expected += each * len(took[cell.id])
            whole += sum(took[cell.id])
    assert 0.5 < expected / whole < 2


def run_of(kind: type[Scenario] | type[TrainScenario] = Scenario, **values: object) -> Run:
    settings = build(kind, {"methods": ["dense"], "threads": 1, "execution": "concurrent", **values}
                     if kind is Scenario else {"methods": ["dense"], "threads": 1, **values})  # fmt: skip
    (run,) = plan([Point({}, settings)])
    return run


def seconds(run: Run) -> float:
    return repeat_seconds(Unit(run, run.cells[0], (0,)))


def test_everything_that_takes_time_counts() -> None:
    few = run_of(workers=2, steps=10, warmup=0, link="none", model="resnet18", dataset="synthetic-cifar10")
    warm = run_of(workers=2, steps=10, warmup=10, link="none", model="resnet18", dataset="synthetic-cifar10")
    more = run_of(workers=8, steps=10, warmup=0, link="none", model="resnet18", dataset="synthetic-cifar10")
    assert seconds(warm) > 1.8 * seconds(few), "steps that warm up"
    assert seconds(more) > 3 * seconds(few), "ranks that share two cores"
    # A link per number of workers, its probe, and an interpreter; the same link twice is made once.
    shaped = [run_of(workers=workers, link="tc") for workers in (2, 4)]
    assert start_seconds(shaped) > start_seconds(shaped[:1]) + estimate.PROBE_S
    assert start_seconds([*shaped, *shaped]) == start_seconds(shaped)
    # What --compute plays back is recorded first, from real steps.
    emulated = run_of(workers=8, compute="50ms", model="resnet50", link="tc")
    real = run_of(workers=8, model="resnet50", link="tc")
    assert start_seconds([emulated]) > start_seconds([real]) + 100
    assert seconds(emulated) < seconds(real)


def test_a_training_counts_its_validation_and_the_rates_that_are_tried() -> None:
    values = {"workers": 2, "epochs": 2, "steps_per_epoch": 5, "link": "none"}
    plain = run_of(TrainScenario, **values)
    tuned = run_of(TrainScenario, tune_lr="0.03,0.1,0.3", **values)
    assert seconds(tuned) == pytest.approx(4 * seconds(plain))
    assert seconds(run_of(TrainScenario, **{**values, "epochs": 4})) > seconds(plain)


def test_models_of_every_kind_have_an_estimate() -> None:
    for model, dataset in (
        ("resnet18", "synthetic-imagenet"), ("resnet18", "synthetic-cifar10"), ("transformer", "text"),
        ("torchvision:vgg11", "synthetic-imagenet"), ("my_module:build", "synthetic-cifar10"),
    ):  # fmt: skip
        assert seconds(run_of(workers=2, model=model, dataset=dataset, link="none")) > 0
    large = run_of(workers=2, model="resnet18", dataset="synthetic-imagenet", link="none")
    small = run_of(workers=2, model="resnet18", dataset="synthetic-cifar10", link="none")
    assert seconds(large) > 2 * seconds(small), "larger images"


def test_a_busy_machine_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(workers=2, link="none")
    before = seconds(run)
    monkeypatch.setattr(estimate, "busy_threads", lambda: 14.0)
    assert 2 < seconds(run) / before < 8, "between no disturbance and an equal share for every thread"


def test_what_was_measured_scales_the_rest() -> None:
    points = [
        Point({"workers": workers}, run_of(workers=workers, link="none").settings) for workers in (2, 4)
    ]
    units = [Unit(run, run.cells[0], (0,)) for run in plan(points)]
    expected = Estimate()
    guess = expected.of(units[1])
    expected.add(units[0], 3 * repeat_seconds(units[0]))
    assert expected.of(units[1]) == pytest.approx(3 * guess)
    assert expected.of(units[0]) == pytest.approx(3 * repeat_seconds(units[0]))
