"""The CI workflow's own steps, run here: everything but what GitHub and the package index do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from netsim_ddp.results.files import save
from tests.commands import ROOT
from tests.forking import ADDRESS, address
from tests.results_factory import sweep

WORKFLOW = ROOT / ".github" / "workflows" / "netsim.yml"
SCENARIO = """
link: none
workers: 2
steps: 2
warmup: 0
methods: ["dense,overlap=off", "topk,overlap=off"]
"""


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture
def steps(workflow: dict[Any, Any]) -> dict[str, dict[str, Any]]:
    return {step["id"]: step for step in workflow["jobs"]["regress"]["steps"] if "id" in step}


def run(step: dict[str, Any], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A step as a runner runs it: bash that stops at the first failure."""
    environment = {**os.environ, ADDRESS: address(), "OUT": str(folder / "out"),
                   "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
                   "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **variables}  # fmt: skip
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def program(folder: Path, name: str, script: str) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    path = folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def real(folder: Path) -> None:
    """netsim itself on the path of a step."""
    program(folder, "netsim", f'exec "{sys.executable}" -m tests.forking command "$@"')


@pytest.mark.slow
def test_the_exact_gate_measures_and_ends_in_the_summary(
    steps: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    real(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "scenario.yaml").write_text(SCENARIO)
    save(sweep(workers=(2,)), tmp_path / "other.json")
    given = {"BASELINE": str(tmp_path / "other.json"), "BASELINE_SCENARIO": str(tmp_path / "scenario.yaml")}
    done = run(steps["bytes"], tmp_path, **given)
    assert done.returncode == 6, "measured, and nothing in common with another link's baseline"
    (out / "exact.json").rename(out / "head.json")
    done = run(steps["summary"], tmp_path)
    assert done.returncode == 0, done.stderr
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "| topk |" in summary
    assert "<details>" in summary
    gate = ElementTree.parse(out / "junit-bytes.xml").getroot()
    assert gate.get("failures") == "1", "the step failed, and so does its file"
    assert {path.name for path in out.iterdir()} >= {"head.md", "head.html", "benchmark.json"}


def test_regress_takes_the_flags_of_its_step(steps: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    real(tmp_path)
    (tmp_path / "out").mkdir()
    settings = {
        "SCENARIO": "quick",
        "REPEATS": "7",
        "FAIL_ABOVE": "median:10%",
        "FLAGS": "--seed 1",
    }
    done = run(steps["regress"], tmp_path, BASE="no-such-ref", **settings)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "no-such-ref" in line or "git" in line, "the base is what it minds, not the flags"
    assert ElementTree.parse(tmp_path / "out" / "junit.xml").getroot().get("failures") == "1"


def test_a_regression_fails_its_step_and_the_summary_is_still_written(
    steps: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    program(tmp_path, "netsim", "exit 5")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "regress.md").write_text("topk is slower\n")
    given = dict.fromkeys(("BASE", "SCENARIO", "REPEATS", "FAIL_ABOVE", "BASELINE", "BASELINE_SCENARIO"), "x")
    assert run(steps["regress"], tmp_path, FLAGS="", **given).returncode == 5
    assert run(steps["bytes"], tmp_path, **given).returncode == 5
    assert run(steps["bytes"], tmp_path, **{**given, "BASELINE": ""}).returncode == 0, "no baseline, no gate"
    assert run(steps["summary"], tmp_path).returncode == 0
    assert (tmp_path / "summary.md").read_text() == "topk is slower\n\n"
    assert all("cancelled()" in steps[name]["if"] for name in ("bytes", "regress", "summary")), (
        "after a failure too"
    )


def test_a_summary_stays_below_githubs_limit(steps: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "regress.md").write_text("x" * 3_000_000)
    assert run(steps["summary"], tmp_path).returncode == 0
    assert (tmp_path / "summary.md").stat().st_size < 1024 * 1024


def test_flags_are_words_and_never_run(steps: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    program(tmp_path, "netsim", f'printf "%s\\n" "$@" > "{tmp_path}/said"')
    evil = f"; touch {tmp_path}/owned $(touch {tmp_path}/owned) `touch {tmp_path}/owned` * --workers 2"
    done = run(steps["regress"], tmp_path, BASE=evil, SCENARIO="s", REPEATS="1", FAIL_ABOVE="m", FLAGS=evil)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "owned").exists()
    said = (tmp_path / "said").read_text().splitlines()
    assert said[2] == evil, "the base is one word"
    assert said[-3:] == ["*", "--workers", "2"]


@pytest.mark.parametrize("allowed", [True, False])
def test_the_namespace_block_is_lifted_or_the_bucket_is_named(
    steps: dict[str, dict[str, Any]], tmp_path: Path, allowed: bool
) -> None:
    knob = tmp_path / "knob"
    knob.write_text("1")
    program(tmp_path, "sysctl", f'case "$1" in -n) cat "{knob}";; -w) echo "${{2#*=}}" > "{knob}";; esac')
    program(tmp_path, "sudo", 'shift; exec "$@"' if allowed else "exit 1")
    program(tmp_path, "unshare", f'test "$(cat "{knob}")" = 0')
    done = run(steps["links"], tmp_path)
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "out" / "links.md").read_text()
    assert ("measured at the interface" in said) == allowed
    assert ("::notice" in done.stdout) == (not allowed)
    assert allowed or "token bucket" in said


def test_no_input_is_pasted_into_a_script(steps: dict[str, dict[str, Any]]) -> None:
    assert all("${{" not in step["run"] for step in steps.values())


def test_defaults_are_the_same_when_called_and_when_not(workflow: dict[Any, Any]) -> None:
    inputs = workflow[True]["workflow_call"]["inputs"]  # YAML 1.1 reads the key "on" as true
    fallbacks = dict(
        re.findall(r"\$\{\{ inputs\.([\w-]+) \|\|.*? '([^']*)' \}\}", WORKFLOW.read_text(encoding="utf-8"))
    )
    assert fallbacks.pop("base") == "HEAD^", "unless the event has a better one"
    assert fallbacks == {name: each["default"] for name, each in inputs.items() if name != "base"}
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in inputs)


def test_torch_and_torchvision_come_from_one_index(steps: dict[str, dict[str, Any]]) -> None:
    (line,) = [line for line in steps["install"]["run"].splitlines() if "torchvision" in line]
    assert re.search(r"--index-url https://download\.pytorch\.org/whl/cpu torch torchvision$", line)
