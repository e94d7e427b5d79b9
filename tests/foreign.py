"""A package that is not netsim's, in a repository of its own, and a netsim that pip has installed: no checkout, not
editable. What the CI workflow meets where it is used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from netsim_ddp.switches import KERNELS

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "netsim.yml"
DEADLINE_S = 400

METHOD = """
import time

import torch

from netsim_ddp import all_reduce
from netsim_ddp.communication.methods.dense import DenseAllReduce
from netsim_ddp.communication.segments import Local


class Mine(DenseAllReduce):
    def segments(self):
        self.more = torch.zeros({more})
        sent = [*super().segments(), *([all_reduce(self.more, self.group)] if {more} else [])]
        return [Local("compress", lambda: time.sleep({sleep})), *sent]
"""
SCENARIO = """
link: none
workers: 2
steps: 2
warmup: 1
methods:
  - dense,overlap=off
  - gradients.methods:Mine
"""
CALLER = """
on: pull_request
jobs:
  netsim:
    uses: someone/netsim/.github/workflows/netsim.yml@v0.2
    with:
"""


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, "-c", "init.defaultBranch=main", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def repository(top: Path, *, method: str = METHOD.format(sleep=0, more=0), **inputs: str) -> Path:
    """A package in the folder ``src`` of a new repository, with a workflow that calls netsim's; one commit on main."""
    package = top / "src" / "gradients"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "methods.py").write_text(method)
    (top / "bench").mkdir()
    (top / "bench" / "network.yaml").write_text(SCENARIO)
    workflows = top / ".github" / "workflows"
    workflows.mkdir(parents=True)
    given = "".join(f"      {name}: {value!r}\n" for name, value in inputs.items())
    (workflows / "network.yml").write_text(CALLER + given if inputs else CALLER.removesuffix("    with:\n"))
    git(top, "init", "--quiet")
    git(top, "add", "-A")
    git(top, "commit", "--quiet", "-m", "first")
    return top


def propose(upstream: Path, changes: dict[str, str], clone: Path) -> Path:
    """A clone that has a branch with ``changes`` checked out, and of main no more than origin's."""
    git(upstream, "checkout", "--quiet", "-b", "change", "main")
    for name, text in changes.items():
        (upstream / name).parent.mkdir(parents=True, exist_ok=True)
        (upstream / name).write_text(text)
    git(upstream, "add", "-A")
    git(upstream, "commit", "--quiet", "--allow-empty", "-m", "change")
    git(clone.parent, "clone", "--quiet", "--branch", "change", upstream.as_uri(), str(clone))
    git(upstream, "checkout", "--quiet", "main")
    git(upstream, "branch", "--quiet", "-D", "change")
    return clone


def wheel(folder: Path) -> Path:
    """netsim as pip builds it from this checkout."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*command, "--wheel-dir", str(folder), str(ROOT)],
        check=True,
        timeout=DEADLINE_S,
        cwd=folder,
        env=clean(),
    )
    (built,) = folder.glob("netsim_ddp-*.whl")
    return built


def clean(**more: str) -> dict[str, str]:
    """An environment in which nothing leads to this checkout. A new installation would compile the kernels, which
    nothing here is about."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, KERNELS: "torch", **more}


class Machine:
    """A runner: an environment of its own for Python, whose heavy packages are those of this one, and the steps of the
    workflow. ``python -m pip install`` does what it says, but for torch and what netsim depends on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "venv" / "bin" / "python"
        create = [sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")]
        subprocess.run(create, check=True, timeout=DEADLINE_S, env=clean())
        self.bin = folder / "bin"
        self.bin.mkdir()
        pip = f'"{sys.executable}" -m pip --python "{self.python}" install --quiet --no-deps --no-index'
        self.program(
            "python",
            f'echo "$@" >> "{folder}/asked"\ncase "$*" in\n*download.pytorch.org*|*git+*) ;;\n'
            f'"-m pip install "*) shift 3; exec {pip} "$@" ;;\n*) exec "{self.python}" "$@" ;;\nesac',
        )
        self.loaded: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
        self.job = self.loaded["jobs"]["regress"]

    def program(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    @property
    def asked(self) -> list[str]:
        """What ``python`` was called with."""
        return (self.folder / "asked").read_text().splitlines()

    def share_packages(self) -> None:
        """After pip has installed netsim, so that it finds none here that is installed already."""
        (site,) = (self.folder / "venv" / "lib").glob("python*/site-packages")
        shared = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        (site / "shared.pth").write_text("".join(f"{path}\n" for path in shared))

    def step(
        self,
        name: str,
        checkout: Path,
        *,
        inputs: dict[str, str] | None = None,
        base_sha: str = "",
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a step as a runner does, in ``checkout``; ``inputs`` are None where the workflow was not called."""
        (found,) = [step for step in self.job["steps"] if step.get("id") == name]
        declared = self.loaded[True]["workflow_call"]["inputs"]  # YAML 1.1 reads the key "on" as true
        given = {} if inputs is None else {key: each["default"] for key, each in declared.items()} | inputs
        assert set(given) <= set(declared)
        values = {
            key: re.sub(r"\$\{\{(.*?)\}\}", lambda text: evaluated(text[1], given, base_sha), value)
            for key, value in self.job["env"].items()
        }
        site = f"{self.bin}:{self.python.parent}:{os.environ['PATH']}"
        summary = str(checkout / "netsim-out" / "step-summary.md")
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", found["run"]],
            cwd=checkout, env=clean(PATH=site, GITHUB_STEP_SUMMARY=summary, **{**values, **env}),
            capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip


def evaluated(expression: str, inputs: dict[str, str], base_sha: str) -> str:
    """An expression of GitHub's, of those operators and contexts that the workflow uses."""

    def name(found: re.Match[str]) -> str:
        context, _, key = found[0].partition(".")
        known = inputs if context == "inputs" else {"event.pull_request.base.sha": base_sha}
        return repr(known.get(key, ""))

    python = re.sub(r"\b(?:inputs|github)\.[\w.-]+", name, expression)
    python = python.replace("||", " or ").replace("&&", " and ").replace("!", " not ")
    return str(eval(python.strip(), {"__builtins__": {}}))
