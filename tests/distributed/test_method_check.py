"""``netsim check`` and ``--method my_module:factory`` in real processes: what keeps the contract passes, and each way
of breaking it fails the check that is for it, by name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from netsim_ddp.bench.launcher import Launcher
from netsim_ddp.bench.method_check import CHECKS, Trials
from netsim_ddp.communication.backend import build_method
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Group
from netsim_ddp.errors import UsageError
from netsim_ddp.link.choose import choose
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.methods import parse_method
from netsim_ddp.results.record import load
from netsim_ddp.scenario import Scenario

ROOT = Path(__file__).parents[2]

BROKEN = '''
import time
import torch
import torch.distributed as dist
from my_method import SharedRandom
from netsim_ddp.communication.segments import Local

class Reseeds(SharedRandom):
    """Draws from everybody's random numbers."""
    def _pick(self):
        torch.manual_seed(self.step)
        super()._pick()

class RankDependent(SharedRandom):
    """Divides by a number that is not the same everywhere."""
    def _spread(self):
        super()._spread()
        self.flat.data.mul_(1 + 1e-6 * self.group.rank)

class Forgets(SharedRandom):
    """Keeps no residual."""
    def _spread(self):
        super()._spread()
        self.residual.zero_()

class NoState(SharedRandom):
    """Saves less than it needs."""
    def state_dict(self):
        return {"residual": self.residual.clone(), "step": 0}

class AloneWithNaN(SharedRandom):
    """Raises while the others wait."""
    def _pick(self):
        if not self.flat.data.isfinite().all():
            raise ArithmeticError("NaN")
        super()._pick()

class Poisoned(SharedRandom):
    """Lets a NaN into its residual."""
    def _spread(self):
        self.residual.copy_(self.compensated)[self.positions] = 0
        self.flat.data.zero_()[self.positions] = self.values / self.group.world_size
        self.step += 1

class Smuggles(SharedRandom):
    """Sends a second time where nobody counts."""
    def _spread(self):
        dist.all_reduce(self.values.clone(), group=self.group.process_group)
        super()._spread()

class Hangs(SharedRandom):
    """One rank does not come back."""
    def _pick(self):
        if self.group.rank == 1 and self.step == 2:
            time.sleep(3600)
        super()._pick()
'''
FAILS = {
    "Reseeds": ("deterministic", "changes the global random numbers of torch"),
    "RankDependent": ("identical,buckets", "rank 1's average is not rank 0's"),
    "Forgets": ("conserves", "of the gradient has not come"),
    "NoState": ("state", "continued from its state_dict it gives other bits"),
    "AloneWithNaN": ("nan", "made no progress"),
    "Poisoned": ("nan", "steps after a NaN"),
    "Smuggles": ("local,bytes", "a local segment sends"),
    "Hangs": ("identical", "rank 1 made no progress for 3 s: at step 3, compute"),
}


def netsim(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "examples"), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "netsim_ddp", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def verdicts(output: str) -> dict[str, str]:
    return {name: word for word, name in re.findall(r"^\[(PASS|FAIL|TIME)\] (\w+)", output, re.M)}


def test_the_example_keeps_the_contract(tmp_path: Path) -> None:
    done = netsim(tmp_path, "check", "my_method:shared_random,ratio=0.2", "--link", "bucket")
    assert done.returncode == 0, done.stdout + done.stderr
    assert verdicts(done.stdout) == {**dict.fromkeys(CHECKS, "PASS"), "time": "TIME"}


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    """Ranks that find the broken methods; one start for all tests."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "broken.py").write_text(BROKEN, encoding="utf-8")
    scenario = Scenario(workers=3, threads=1, device="cpu", backend="gloo", timeout_s=3).resolved()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT / "examples"), str(ROOT)]))
        with (
            choose(LinkSpec(3, 10**9), "bucket", print) as link,
            Launcher(link, threads=1, timeout_s=3) as launcher,
        ):
            yield Trials(launcher, link, scenario)


@pytest.mark.parametrize("broken", FAILS)
def test_a_broken_method_fails_the_check_that_is_for_it(trials: Trials, broken: str) -> None:
    names, said = FAILS[broken]
    method = parse_method(f"broken:{broken},ratio=0.3")
    found = {name: trials.check(name, method) for name in ("builds", *names.split(","))}
    assert [finding.passed for finding in found.values()] == [True] + [False] * (len(found) - 1)
    assert said in found[names.split(",")[0]].found


def test_the_command_ends_with_what_failed(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    left_out = [
        word for name in CHECKS if name not in ("builds", "identical") for word in ("--without", name)
    ]
    done = netsim(tmp_path, "check", "broken:RankDependent,ratio=0.3", "--link", "bucket", *left_out)
    assert done.returncode == 3, done.stdout + done.stderr
    assert verdicts(done.stdout) == {"builds": "PASS", "identical": "FAIL"}
    last = done.stderr.strip().splitlines()[-1]
    assert last == "netsim: broken:RankDependent,ratio=0.3 fails 1 of the checks: identical"


def test_a_run_takes_it_like_any_method(tmp_path: Path) -> None:
    words = ["--link", "none", "--workers", "2", "--steps", "2", "--warmup", "0", "--repeats", "1"]
    words += ["--execution", "concurrent", "--json", "out.json"]
    methods = [
        "--method",
        "my_method:SharedRandom,ratio=0.2,seed=3",
        "--method",
        "my_method:SharedRandom,overlap=on",
    ]
    done = netsim(tmp_path, "run", *words, *methods)
    assert done.returncode == 0, done.stderr
    first, second = load(tmp_path / "out.json").cells
    assert first.params == {"ratio": 0.2, "seed": 3}
    assert (first.overlap, second.overlap) == (False, True)
    assert first.repeats[0].ranks[0].payload_bytes == 2 * 4 * round(0.2 * 1_078_666)
    assert first.repeats[0].ranks[0].residual_bytes == 4 * 1_078_666


WRONG = {
    "nowhere:factory": "there is no module 'nowhere'",
    "netsim_ddp.units:parse_rat": "has no 'parse_rat' (did you mean",
    "netsim_ddp.communication:dense": "is a module, not a function or class",
    "math:sqrt": "failed while building: TypeError",
    "builtins:print": "returned a NoneType, not a Method",
}


@pytest.mark.parametrize("method", WRONG)
def test_what_is_no_method_is_named(method: str) -> None:
    flat = FlatGradients({"weight": nn.Parameter(torch.zeros(3))}.items())
    with pytest.raises(UsageError) as caught:
        build_method(method, flat, Group(0, 1))
    assert WRONG[method] in f"{caught.value.message} ({caught.value.hint})"


def test_a_wrong_option_is_one_clear_line(tmp_path: Path) -> None:
    done = netsim(tmp_path, "check", "my_method:shared_random,ratoi=1", "--link", "bucket")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "unexpected keyword argument 'ratoi'" in done.stderr.strip().splitlines()[-1]


def test_options_are_numbers_and_switches_where_they_read_like_them() -> None:
    spec = parse_method("a.b:C,rank=2,ratio=0.5,big=1e3,fast=on,name=x1,overlap=off")
    assert spec.params == {
        "rank": 2,
        "ratio": 0.5,
        "big": 1000.0,
        "fast": True,
        "name": "x1",
        "overlap": False,
    }
    assert parse_method(spec.id) == spec
    with pytest.raises(UsageError, match="overlap=so is not on or off"):
        parse_method("a:b,overlap=so")
