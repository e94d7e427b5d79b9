"""A result says of what code it is: netsim's commit, and the user's package's."""

from __future__ import annotations

from pathlib import Path

import pytest

import netsim_ddp
from netsim_ddp.scenario import Scenario, build
from netsim_ddp.steps.code_versions import code_of
from tests.commands import ROOT
from tests.foreign import git, repository


def test_commits_of_netsim_and_of_the_users_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = repository(tmp_path / "theirs")
    monkeypatch.chdir(top / "src")
    settings = build(
        Scenario, {"methods": ["dense", "gradients.methods:Mine"], "model": "torchvision:resnet18"}
    )
    (own, theirs) = code_of([settings, settings])
    commit = git(top, "rev-parse", "HEAD").strip()
    assert (theirs.name, theirs.commit, theirs.dirty) == ("gradients", commit, False)
    assert (own.name, own.version) == ("netsim", netsim_ddp.__version__)
    if (ROOT / ".git").exists():
        assert own.commit == git(ROOT, "rev-parse", "HEAD").strip()
    (top / "src" / ".netsim").mkdir()
    (top / "src" / ".netsim" / "last.json").touch()
    assert code_of([settings])[1].dirty is False, "a result beside the code is no change of it"
    (top / "src" / "helper.py").touch()
    assert code_of([settings])[1].dirty is True, "a new module is"
    (top / "src" / "helper.py").unlink()
    (top / "bench" / "network.yaml").write_text("workers: 3\n")
    assert code_of([settings])[1].dirty is True
    (top / ".gitignore").write_text("src\n")
    git(top, "rm", "-r", "--quiet", "--cached", "src")
    assert code_of([settings])[1].commit is None, (
        "what is ignored is not the repository's, as in a virtual environment"
    )


def test_a_package_that_no_repository_holds_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alone.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    for name in ("alone", "nowhere"):
        (_, theirs) = code_of([build(Scenario, {"methods": [f"{name}:Method"]})])
        assert (theirs.name, theirs.version, theirs.commit, theirs.dirty) == (name, None, None, None)
