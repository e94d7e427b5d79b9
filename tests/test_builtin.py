"""The built-in scenarios: all of them are valid, small enough, and found wherever netsim is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import netsim_ddp
from netsim_ddp.scenario.files import built_in
from netsim_ddp.sweep.runner import Sweep
from netsim_ddp.sweep.source import read_plan

ROOT = Path(netsim_ddp.__file__).parent.parent
NAMES = (
    "accuracy",
    "baseline",
    "cloud-burst",
    "codec",
    "crossover",
    "headline-resnet50",
    "quick",
    "ratio",
    "scaling",
    "stragglers",
    "validation",
    "wan",
)


def test_all_of_them_are_there() -> None:
    assert tuple(built_in()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_question_with_a_plan(name: str) -> None:
    found, matrix, _, runs = read_plan(name)
    assert found == name
    assert matrix.title
    assert matrix.question.endswith("?")
    cells = [cell for run in runs for cell in run.cells]
    assert any(cell.method.name == "dense" for cell in runs[0].cells)
    going = Sweep(name, matrix, runs, selected=frozenset(c.id for c in cells), kept={}, known={})
    assert 10 < going.expected_s < (3 * 3600 if name in ("accuracy", "validation") else 1800)


def test_crossover_has_bandwidths_to_interpolate_between() -> None:
    _, _, _, runs = read_plan("crossover")
    rates = [run.settings.bandwidth_bps for run in runs]
    assert rates == sorted(set(rates))
    assert len(rates) >= 4
    assert all(run.settings.repeats >= 3 for run in runs)


def test_the_accuracy_study_is_what_was_promised() -> None:
    _, _, _, runs = read_plan("accuracy")
    assert [run.settings.workers for run in runs] == [4, 8]
    assert {run.settings.repeats for run in runs} == {10}
    ids = {cell.method.id for cell in runs[0].cells}
    for ratio in ("0.1", "0.01", "0.001"):
        # With feedback the momentum is the method's, without it the optimizer's.
        for rest in (
            "topk,collective=split,momentum=0.9",
            "topk,collective=split,feedback=off",
            "topk-allgather,momentum=0.9",
        ):
            assert f"{rest},ratio={ratio}" in ids
    assert "topk-allgather,feedback=off,ratio=0.01" in ids
    for values in ("fp16", "int8"):
        assert f"topk,collective=split,momentum=0.9,ratio=0.01,values={values}" in ids
    # As many images a step with 8 workers as with 4, so that all take as many steps.
    assert len({run.settings.workers * run.settings.batch_size for run in runs}) == 1


def test_a_wheel_has_them_inside_the_package(tmp_path: Path) -> None:
    """The build puts the folder where the package looks first; an installed package has no folder beside it."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    (source, target), *_ = build["targets"]["wheel"]["force-include"].items()
    shutil.copytree(
        ROOT / "netsim_ddp", tmp_path / "netsim_ddp", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(ROOT / source, tmp_path / target)
    code = "from netsim_ddp.scenario.files import built_in; print(*built_in(), built_in()['quick'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    *names, place = done.stdout.split()
    assert tuple(names) == NAMES
    assert Path(place).is_relative_to(tmp_path / "netsim_ddp")
