"""Two states of a repository measured in turns: the right code runs in each, and nothing is left of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from netsim_ddp.errors import EnvironmentFault, RankError, RankTimeout, UsageError
from netsim_ddp.results.compare import Rules, compare
from netsim_ddp.results.files import load, to_json
from netsim_ddp.results.record import Result
from netsim_ddp.steps.experiment import Event
from netsim_ddp.tools.regress.measure import absolute, measure, side_of
from netsim_ddp.tools.regress.methods import Available, available
from netsim_ddp.tools.regress.states import State, two_states
from tests.commands import ROOT, complaint
from tests.distributed.test_cleanup import marked
from tests.forking import ADDRESS, address
from tests.results_factory import make_cell, make_result

METHOD = """
import time
from netsim_ddp.communication.methods.dense import DenseAllReduce
from netsim_ddp.communication.segments import Local

class Mine(DenseAllReduce):
    def segments(self):
        return [Local("compress", lambda: time.sleep({sleep})), *super().segments()]
"""


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A package in a folder of a repository: fast in its one commit, slow as it is; with a hook that must not run."""
    top = tmp_path / "repository"
    (top / "src").mkdir(parents=True)
    git(top, "init", "--quiet")
    (top / "src" / "mine.py").write_text(METHOD.format(sleep=0))
    git(top, "add", "-A")
    git(top, "commit", "--quiet", "-m", "fast")
    (top / "src" / "mine.py").write_text(METHOD.format(sleep=0.15))
    hook = top / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    hook.chmod(0o755)
    return top


def worktrees(top: Path) -> int:
    return git(top, "worktree", "list").count("\n")


@pytest.mark.slow
@pytest.mark.alone
def test_a_planted_sleep_is_a_regression(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    (tmp_path / "kept").mkdir()
    words = ["--base", "HEAD", "--package", str(repository / "src"), "--repeats", "5"]
    words += ["--method", "mine:Mine", "--link", "none", "--workers", "2", "--steps", "2", "--warmup", "1"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "netsim_ddp",
            "regress",
            *words,
            "--save",
            "kept",
            "--json",
            "-",
            "--junit",
            "out.xml",
        ],
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "forked"), str(ROOT)]),
            "TMPDIR": str(tmp_path / "temporary"),
            ADDRESS: address(),
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    (case,) = [
        each
        for each in ElementTree.parse(tmp_path / "out.xml").iter("testcase")
        if each.find("failure") is not None
    ]
    assert case.get("name", "").startswith("mine:Mine")
    assert "slower" in case.findall("failure")[0].get("message", "")
    (pair,) = json.loads(done.stdout)["pairs"]
    (row,) = pair["times"]
    assert row["verdict"] == "slower"
    assert row["new_s"] - row["base_s"] > 0.1
    assert (row["base_runs"], row["new_runs"]) == (5, 5)
    assert not any(figure["changed"] for figure in pair["figures"]), "the same bits, only later"
    kept = [load(tmp_path / "kept" / f"{name}.json") for name in ("base", "head")]
    assert [len(each.cells[0].repeats) for each in kept] == [5, 5]
    assert worktrees(repository) == 1
    assert not (tmp_path / "hooked").exists()
    assert not [name for name in os.listdir(tmp_path / "temporary") if name.startswith("netsim")]
    assert not (tmp_path / ".netsim").exists()


def test_ctrl_c_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    mark = f"regress-{os.getpid()}"
    words = ["regress", "--base", "HEAD", "--package", str(repository / "src"), "--method", "mine:Mine"]
    process = subprocess.Popen(
        [sys.executable, "-m", "netsim_ddp", *words, "--link", "none", "--steps", "1000"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "NETSIM_TEST_MARK": mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not any(" run " in line for line in marked(mark).values()):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert worktrees(repository) == 2
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said == ""
    assert worktrees(repository) == 1
    assert os.listdir(temporary) == []
    assert marked(mark) == {}


def test_the_next_one_clears_away_after_one_that_was_killed(repository: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code = """
import pathlib, sys, time
from netsim_ddp.tools.regress.states import two_states
with two_states("HEAD", pathlib.Path(sys.argv[1])):
    print("there", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(repository / "src")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    with two_states("HEAD", repository / "src"):  # another that runs keeps its own
        assert worktrees(repository) == 3
    process.kill()
    process.wait(timeout=60)
    assert worktrees(repository) == 2
    with two_states("HEAD", repository / "src"):
        assert worktrees(repository) == 2
    assert worktrees(repository) == 1
    assert os.listdir(temporary) == []


def stub(folder: Path, body: str) -> Path:
    """A stand-in for netsim_ddp whose command does ``body``: for what is around a run."""
    package = folder / "netsim_ddp"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(body)
    return folder


def printing(folder: Path, result: Result, log: Path) -> State:
    (folder / "result.json").parent.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(to_json(result))
    body = (
        f"import os, sys\n"
        f"open({str(log)!r}, 'a').write({folder.name!r} + ' ' + ' '.join(sys.argv[1:]) + '\\n')\n"
        f"assert os.listdir('.') == []\n"
        f"sys.stdout.write(open({str(folder / 'result.json')!r}).read())\n"
    )
    return State(folder.name, (stub(folder, body),))


def silent(_: Event) -> None:
    pass


def test_runs_alternate_and_their_repeats_are_put_together(tmp_path: Path) -> None:
    log = tmp_path / "log"
    states = tuple(
        printing(tmp_path / name, make_result([make_cell("dense", [ms])]), log)
        for name, ms in (("base", 100), ("head", 150))
    )
    saved: list[Any] = []
    base, head = measure(
        (states[0], states[1]),
        ["--workers", "2"],
        repeats=3,
        timeout_s=30,
        report=silent,
        save=lambda one, other: saved.append((len(one.cells[0].repeats), len(other.cells[0].repeats))),
    )
    assert base is not None
    assert head is not None
    lines = log.read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["base", "head", "head", "base", "base", "head"]
    assert lines[0] == "base run --workers 2 --baseline none --repeats 1 --json -"
    assert saved == [(1, 1), (2, 2), (3, 3)]
    assert [len(each.cells[0].repeats) for each in (base, head)] == [3, 3]
    summary = head.cells[0].summary
    assert summary is not None
    assert summary.step_s.median == pytest.approx(0.15)
    assert head.cells[0].link.retransmits == 3
    assert head.scenario["repeats"] == 3


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("import sys; print('netsim: no such thing', file=sys.stderr); sys.exit(2)", UsageError, "head: no such thing"),
        ("import sys; print('x\\nnetsim: rank 1 died', file=sys.stderr); sys.exit(3)", RankError, "head: rank 1 died"),
        ("import sys; sys.exit(4)", EnvironmentFault, "head: nothing"),
        ("print('no json')", UsageError, "head: the output of netsim run is not JSON"),
        ("import time; time.sleep(60)", RankTimeout, "head: netsim run did not end within 0.5 s"),
    ],
)  # fmt: skip
def test_a_run_that_fails_says_which_state_it_was(
    tmp_path: Path, body: str, kind: type[Exception], message: str
) -> None:
    state = State("head", (stub(tmp_path / "head", body),))
    timeout_s = 0.5 if kind is RankTimeout else 30
    with pytest.raises(kind, match=re.escape(message)):
        measure((state, state), [], repeats=1, timeout_s=timeout_s, report=silent)


def test_files_named_by_flags_are_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").touch()
    (tmp_path / "topk").touch()
    found = absolute(["--config", "s.yaml", "--method", "topk", "--trace=s.yaml", "--link-profile", "lte"])
    path = str(tmp_path / "s.yaml")
    up_and_down = absolute(["--trace", "s.yaml:s.yaml"])
    assert up_and_down == ["--trace", f"{path}:{path}"]
    quick = absolute(["--config", "quick"])[1]
    assert quick == str(ROOT / "scenarios" / "quick.yaml"), "both states measure the scenario of this netsim"
    assert found == ["--config", path, "--method", "topk", f"--trace={path}", "--link-profile", "lte"]


def test_the_repository_is_that_of_the_working_folder(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever netsim itself lies: a user's package by the modules that are named, netsim's own checkout whole."""
    for start in (repository, repository / "src", repository / "src" / "deeper"):
        start.mkdir(exist_ok=True)
        monkeypatch.chdir(start)
        with two_states("HEAD", None, ["mine", "torch.nn"]) as (base, head):
            assert head.own == (repository / "src",)
            assert base.own == (base.own[0].parent / "src",)
            assert not head.is_netsim
    with (
        pytest.raises(UsageError, match=r"theirs\.method is not in"),
        two_states("HEAD", None, ["theirs.method"]),
    ):
        pass
    with pytest.raises(UsageError, match="no method or model of"), two_states("HEAD", None):
        pass
    (repository / "netsim_ddp").mkdir()
    (repository / "netsim_ddp" / "__init__.py").touch()
    git(repository, "add", "-A")
    git(repository, "commit", "--quiet", "-m", "netsim's own")
    with two_states("HEAD", None) as (base, head):
        assert head.own == (repository,)
        assert base.is_netsim
        assert head.is_netsim
        assert (base.paths[0] / "src" / "mine.py").is_file()
    assert not base.paths[0].exists()
    assert worktrees(repository) == 1


def test_a_branch_that_only_origin_has_is_found_there(repository: Path, tmp_path: Path) -> None:
    git(repository, "branch", "stable")
    git(tmp_path, "clone", "--quiet", repository.as_uri(), "clone")
    with two_states("stable", tmp_path / "clone" / "src") as (base, _):
        assert base.name == "base (origin/stable)"


def test_a_built_in_method_that_one_state_lacks_is_left_to_the_other(tmp_path: Path) -> None:
    """Of netsim itself: each state's own command line says what it takes."""
    body = "import sys; sys.exit(0 if set(sys.argv) & {known} == set() else 2)"
    states = tuple(
        State(name, (stub(tmp_path / name, body.format(known=unknown)),), (tmp_path / name,))
        for name, unknown in (("base", {"new"}), ("head", {"old", "topk,option=1"}))
    )
    methods = ["dense", "new", "old", "topk,option=1"]
    base, head = available((states[0], states[1]), methods, None, timeout_s=30)
    assert (base.methods, base.lacks) == (["dense", "old", "topk,option=1"], ["new"])
    assert (head.methods, head.lacks) == (["dense", "new"], ["old", "topk,option=1"])
    same, _ = available((states[0], states[0]), ["dense", "old"], None, timeout_s=30)
    assert same.methods is None, "nothing is left out"
    with pytest.raises(UsageError, match="'new' is neither in base nor in head"):
        available((states[0], states[0]), methods, None, timeout_s=30)


def test_a_state_without_any_of_the_methods_is_not_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    state = printing(tmp_path / "head", make_result([make_cell("new", [100])]), log)
    words = ["--method", "new", "--seed", "1", "--method=other"]
    found = (Available([], ["new"]), Available(["new"], []))
    base, head = measure((state, state), words, repeats=2, timeout_s=30, report=silent, available=found)
    assert base is None
    assert head is not None
    assert (
        log.read_text().splitlines()
        == ["head run --seed 1 --method new --baseline none --repeats 1 --json -"] * 2
    )
    comparison = compare(side_of(base, state, found[0]), side_of(head, state, found[1]), Rules())
    assert comparison.only_in_new == ["new"]
    assert comparison.failures == []


def test_what_cannot_be_compared_gets_one_line(repository: Path, tmp_path: Path) -> None:
    source = str(repository / "src")
    said = complaint(["regress", "--base", "gone", "--package", source], tmp_path)
    assert said.startswith(f"--base 'gone' is no commit of {repository} (name a commit, a branch or a tag")
    # A reference that reads like a flag is none.
    assert "is no commit of" in complaint(["regress", "--base=--all", "--package", source], tmp_path)
    bad = {
        ("HEAD", tmp_path / "nowhere"): "is no folder",
        ("HEAD", tmp_path): "is not in a git repository",
    }
    for (ref, folder), message in bad.items():
        with pytest.raises(UsageError, match=message), two_states(ref, folder):
            pass
    assert "is not in a git repository (run it in your checkout" in complaint(
        ["regress", "--base", "x"], tmp_path
    )
    assert worktrees(repository) == 1


FLAGS = {
    "": "missing option '--base' (netsim regress --help lists what it takes)",
    "--base HEAD --deadline 5": "--deadline '5' is not a duration (write 5ms or 5s)",
    "--base HEAD --methodd dense": "no such option: --methodd (did you mean --method or --model? netsim run --help"
    " lists what it takes)",
    "--base HEAD --config odd.yaml": "{folder} is not in a git repository (run it in your checkout, or name a folder"
    " in one: --package PATH)",
    "--base HEAD --json - --junit -": "--json - and --junit - both want stdout (name a file for one of them)",
    "--base HEAD --save no/folder": "--save no/folder is no folder (mkdir -p no/folder)",
}


@pytest.mark.parametrize("words", FLAGS)
def test_a_bad_flag_gets_one_line(tmp_path: Path, words: str) -> None:
    (tmp_path / "odd.yaml").write_text("methods: 5\nmodel: [1]\n")
    assert complaint(["regress", *words.split()], tmp_path) == FLAGS[words].replace("{folder}", str(tmp_path))
