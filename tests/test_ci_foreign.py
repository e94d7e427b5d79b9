"""The CI gate where it is used: a pip-installed netsim, a clone of somebody's package, the workflow's own steps."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.foreign import METHOD, ROOT, Machine, clean, git, propose, repository, wheel

pytestmark = pytest.mark.slow

NEW = """
from gradients.methods import Mine


class Newer(Mine):
    pass
"""
METHODS = "src/gradients/methods.py"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A runner on which the workflow's own step has installed netsim."""
    folder = tmp_path_factory.mktemp("machine")
    machine = Machine(folder)
    given = {"install": str(wheel(folder))}
    done = machine.step("install", repository(folder / "some"), inputs=given)
    assert done.returncode == 0, done.stderr
    assert "--index-url https://download.pytorch.org/whl/cpu torch torchvision" in machine.asked[0]
    machine.share_packages()
    return machine


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    return repository(tmp_path / "upstream", scenario="bench/network.yaml")


def gate(
    machine: Machine, checkout: Path, *, repeats: int, flags: str = ""
) -> tuple[int, str, ElementTree.Element]:
    """The steps after the installing; exit code and output of the one that measures, and its JUnit file."""
    inputs = {
        "base": "main",
        "scenario": "bench/network.yaml",
        "repeats": str(repeats),
        "flags": flags,
    }
    assert machine.step("links", checkout, inputs=inputs).returncode == 0
    assert machine.step("bytes", checkout, inputs=inputs).stdout == "no baseline given\n"
    done = machine.step("regress", checkout, inputs=inputs)
    assert machine.step("summary", checkout, inputs=inputs).returncode == 0
    root = ElementTree.parse(checkout / "netsim-out" / "junit.xml").getroot()
    assert (int(root.get("failures", "")) > 0) == (done.returncode != 0), done.stderr
    assert len(root.findall(".//failure")) == int(root.get("failures", ""))
    return done.returncode, done.stdout + done.stderr, root


def test_netsim_is_installed_and_no_checkout(machine: Machine, tmp_path: Path) -> None:
    words = [str(machine.python), "-c", "import netsim_ddp; print(netsim_ddp.__file__)"]
    said = subprocess.run(
        words, cwd=tmp_path, env=clean(), capture_output=True, text=True, check=True, timeout=60
    )
    assert Path(said.stdout.strip()).is_relative_to(machine.folder)
    assert not Path(said.stdout.strip()).is_relative_to(ROOT)


def test_nothing_changed_is_green(machine: Machine, upstream: Path, tmp_path: Path) -> None:
    code, said, root = gate(machine, propose(upstream, {}, tmp_path / "clone"), repeats=1)
    assert code == 0, said
    assert root.get("tests") == "2"
    assert "base (origin/main)" in said, "a clone has no main of its own"
    summary = (tmp_path / "clone" / "netsim-out" / "step-summary.md").read_text()
    assert "netsim compare: ok" in summary
    # What was measured says of what code it is.
    for name, commit in (("base", "origin/main"), ("head", "HEAD")):
        result = json.loads((tmp_path / "clone" / "netsim-out" / f"{name}.json").read_text())
        (code_of,) = [each for each in result["code"] if each["name"] == "gradients"]
        assert code_of["commit"] == git(tmp_path / "clone", "rev-parse", commit).strip()
        assert code_of["dirty"] is False
        (own,) = [each for each in result["code"] if each["name"] == "netsim"]
        assert own["commit"] is None, "a wheel knows its version, and no commit"
        assert own["version"] == result["tool"]["version"]


def test_planted_bytes_are_red(machine: Machine, upstream: Path, tmp_path: Path) -> None:
    clone = propose(upstream, {METHODS: METHOD.format(sleep=0, more=1000)}, tmp_path / "clone")
    code, said, root = gate(machine, clone, repeats=1)
    assert code == 5, said
    assert "payload bytes changed" in said
    (case,) = [each for each in root.iter("testcase") if each.find("failure") is not None]
    assert case.get("name", "").startswith("gradients.methods:Mine")
    assert any("payload bytes changed" in each.get("message", "") for each in case.iter("failure"))


def test_a_method_that_only_head_has_is_green(machine: Machine, upstream: Path, tmp_path: Path) -> None:
    clone = propose(upstream, {"src/gradients/newer.py": NEW}, tmp_path / "clone")
    flags = "--method dense,overlap=off --method gradients.newer:Newer --method gradients.methods:Mine"
    code, said, root = gate(machine, clone, repeats=1, flags=flags)
    assert code == 0, said
    assert "only in head: gradients.newer:Newer" in said
    (skipped,) = [each for each in root.iter("testcase") if each.find("skipped") is not None]
    assert skipped.get("name", "").startswith("gradients.newer:Newer")
    assert root.get("tests") == "3"


def test_the_first_method_of_all_is_green_too(machine: Machine, upstream: Path, tmp_path: Path) -> None:
    clone = propose(upstream, {"fresh.py": NEW.replace("Newer", "First")}, tmp_path / "clone")
    # It imports what only src holds: both folders of the repository count.
    flags = "--method fresh:First --method gradients.methods:Gone"
    code, said, _ = gate(machine, clone, repeats=1, flags=flags)
    assert code == 2, "a name that neither state has is an error"
    assert "'gradients.methods:Gone' is neither in base (origin/main) nor in head" in said
    code, said, root = gate(machine, clone, repeats=1, flags="--method fresh:First --package .")
    assert code == 2
    assert "No module named 'gradients'" in said, "head's module fails, which is no absence"
    clone = propose(upstream, {"src/fresh.py": NEW.replace("Newer", "First")}, tmp_path / "other")
    code, said, root = gate(machine, clone, repeats=1, flags="--method fresh:First")
    assert code == 0, said
    assert root.get("skipped") == "1"


def test_a_method_that_only_base_has_is_green_unless_asked(
    machine: Machine, upstream: Path, tmp_path: Path
) -> None:
    clone = propose(upstream, {METHODS: "# gone\n"}, tmp_path / "clone")
    code, said, _ = gate(machine, clone, repeats=1)
    assert code == 0, said
    assert "only in base (origin/main): gradients.methods:Mine" in said
    code, said, root = gate(machine, clone, repeats=1, flags="--fail-on regression,missing")
    assert code == 5, said
    (case,) = [each for each in root.iter("testcase") if each.find("failure") is not None]
    assert case.get("name", "").startswith("gradients.methods:Mine")


def test_a_shallow_clone_says_what_to_do(machine: Machine, upstream: Path, tmp_path: Path) -> None:
    git(upstream, "commit", "--quiet", "--allow-empty", "-m", "second")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth", "1", upstream.as_uri(), str(shallow))
    inputs = {"base": "HEAD^", "scenario": "bench/network.yaml"}
    (shallow / "netsim-out").mkdir()
    done = machine.step("regress", shallow, inputs=inputs)
    assert done.returncode == 2
    assert "the clone is shallow: fetch-depth: 0" in done.stderr
    root = ElementTree.parse(shallow / "netsim-out" / "junit.xml").getroot()
    assert root.get("failures") == "1"


def test_the_defaults_exist_elsewhere(machine: Machine, upstream: Path, tmp_path: Path) -> None:
    clone = propose(upstream, {}, tmp_path / "clone")
    done = machine.step("install", clone, inputs={})
    assert done.returncode == 0, done.stderr
    assert machine.asked[-1] == "-m pip install git+https://github.com/someone/netsim@v0.2"
    (clone / "netsim-out").mkdir()
    done = machine.step("regress", clone, inputs={}, base_sha=git(upstream, "rev-parse", "main").strip())
    assert done.returncode == 2, "the default scenario exists, and names none of their methods"
    assert f"no method or model of {clone} is named" in done.stderr
    (clone / ".github" / "workflows" / "network.yml").unlink()
    done = machine.step("install", clone, inputs={})
    assert done.returncode == 2
    assert "give the input install" in done.stdout
    uploads = [
        step["with"]["name"] for step in machine.job["steps"] if "upload-artifact" in step.get("uses", "")
    ]
    assert uploads == ["${{ inputs.artifact-name || 'netsim' }}"]


def test_netsims_own_pull_requests_are_measured(machine: Machine, tmp_path: Path) -> None:
    """The installed netsim is no checkout: the one of the working folder is."""
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", ROOT.as_uri(), str(clone))
    before = git(clone, "rev-parse", "HEAD").strip()
    git(clone, "commit", "--quiet", "--allow-empty", "-m", "nothing")
    assert machine.step("links", clone).returncode == 0
    env = {
        "REPEATS": "1",
        "FLAGS": "--link none --workers 2 --steps 2 --warmup 0 --method dense,overlap=off --method fp16",
    }
    done = machine.step("regress", clone, base_sha=before, **env)
    assert done.returncode == 0, done.stderr
    assert f"base base ({before})" in done.stdout
    assert "2 cells compared" in done.stdout
    result = json.loads((clone / "netsim-out" / "head.json").read_text())
    (own,) = [each for each in result["code"] if each["name"] == "netsim"]
    assert own["commit"] == git(clone, "rev-parse", "HEAD").strip()
