"""``netsim check`` and ``--method my_module:factory`` in real processes: what keeps the contract passes, and each way
of breaking it fails the check that is for it, by name."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from netsim_ddp.communication.building import build_method
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.segments import Group
from netsim_ddp.errors import UsageError
from netsim_ddp.link.mechanisms import choose
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.methods import METHODS
from netsim_ddp.methods.spec import parse_method
from netsim_ddp.results.files import load
from netsim_ddp.tools.check.checks import CHECKS, NOT_SEEN, CheckRanks
from tests.commands import ROOT, measuring

PATH = os.pathsep.join(str(ROOT / folder) for folder in ("examples", "tests", "."))

PLANTED: dict[str, tuple[str, str]] = {
    "NoWire": ("builds", "it has no Wire"),
    "OtherSegment": ("builds", "neither a Local nor a Wire"),
    "FloatBytes": ("builds", "not a whole number"),
    "RankDependent": ("identical", "step 0: rank 1's average is not rank 0's"),
    "PartsAfterTen": ("identical", "step 10: rank 1's average is not rank 0's"),
    "PartsAfterHundred": ("identical", "step 100: rank 1's average is not rank 0's"),
    "PartsOnTies": ("identical", "step 13: rank 1's average is not rank 0's"),
    "Float64Average": ("identical", "`average` is torch.float64"),
    "Hangs": ("identical", "rank 1 made no progress for 5 s: at step 3, computing"),
    "HangsInFinish": ("identical", "rank 2 made no progress for 5 s: at step 1, communicating"),
    "NothingOfOne": ("sizes", "one parameter of one element: IndexError: no element to send"),
    "EmptyParameter": ("sizes", "an empty parameter: "),
    "ZeroNorm": ("sizes", "gradients that are zero: the average is not finite"),
    "Reseeds": ("deterministic", "changes the global random numbers of torch"),
    "DrawsFromNumpy": ("deterministic", "changes the global random numbers of numpy"),
    "SeededByOthers": ("deterministic", "other global random numbers give other bits"),
    "CountsForAll": ("deterministic", "a second instance gives other bits"),
    "HashOrder": ("deterministic", "with another PYTHONHASHSEED it gives other bits"),
    "ChangesShapes": ("clean", "it changes flat.shapes"),
    "ReplacesData": ("clean", "it changes flat.data"),
    "ChangesParameters": ("clean", "it changes the parameter conv"),
    "SetsThreads": ("clean", "it changes torch's number of threads"),
    "StatisticsMove": ("clean", "state_dict() or statistics() changes the average"),
    "SharesBuffers": ("buckets", "instances share something"),
    "FirstBucketOnly": ("buckets", "works on the first bucket only"),
    "Forgets": ("conserves", "of the gradient has not come"),
    "Undivided": (
        "conserves",
        "3.00 times the mean of the gradients comes: divide the sum by the number of ranks",
    ),
    "DividedTwice": (
        "conserves",
        "0.33 of the mean of the gradients comes: it is divided by the number of ranks twice",
    ),
    "SentStays": ("conserves", "of the gradient came twice or more"),
    "AppliedTwice": ("conserves", "of the gradient came twice or more"),
    "Float16Lost": ("rounding", "what rounding takes must stay in the residual"),
    "Int8Lost": ("rounding", "what rounding takes must stay in the residual"),
    "Float16Residual": ("rounding", "what rounding takes must stay in the residual"),
    "BareSigns": ("scale", "divide the sum by the number of ranks"),
    "QuietRank": ("scale", "rank 2's gradient does not count as the others' do"),
    "QSGDUndivided": ("unbiased", " times that of the gradients: divide the sum by the number of ranks"),
    "QSGDSameDraws": ("unbiased", "in the same way at every step"),
    "RandomKUnscaled": ("unbiased", "times that of the gradients"),
    "NaNOnly": ("nonfinite", "an inf in the first place of rank 0's gradient is swallowed"),
    "InfOnly": ("nonfinite", "a -inf in the first place of rank 0's gradient is swallowed"),
    "ExceptTheLast": ("nonfinite", "a NaN in the last place of rank 0's gradient is swallowed"),
    "RankZeroKnows": ("nonfinite", "is not seen by rank 1"),
    "AloneWithNaN": ("nonfinite", "with a NaN in the first place of rank 0's gradient"),
    "Poisoned": (
        "nonfinite",
        "after a NaN in the first place of rank 0's gradient, rank 0: not finite",
    ),
    "HugeResidual": ("nonfinite", "keep it out of the residual"),
    "NeverAgain": ("nonfinite", "the method does not recover"),
    "Smuggles": ("local", "local segment 2 (decompress) calls allreduce of"),
    "SmugglesAFloat": ("local", "local segment 2 (decompress) calls allreduce of 4 bytes"),
    "SmugglesInAGroup": ("local", "local segment 2 (decompress) calls broadcast"),
    "SmugglesInAStore": ("local", "local segment 0 (compress) talks past the process group (Store.set)"),
    "SmugglesInAThread": ("local", "local segment 0 (compress) calls allreduce of 4 bytes"),
    "StartsInLocal": ("local", "local segment 0 (compress) calls allreduce"),
    "WaitsInLocal": ("local", "local segment 2 (decompress) waits for an exchange"),
    "EndsEarly": ("wire", "returns before its allreduce"),
    "ComputesInStart": ("wire", "start() of the wire 0 (all_reduce) computes"),
    "ComputesInFinish": ("wire", "finish() of the wire 1 (all_reduce) computes"),
    "ComputesInAverage": ("wire", "`average` computes"),
    "NumpyInStart": ("wire", "ms of CPU time"),
    "PythonInStart": ("wire", "ms of CPU time"),
    "ThreadInFinish": ("wire", "ms of CPU time in the process"),
    "GoesOnInAThread": ("wire", "has returned and"),
    "WaitsInStart": ("wire", "must return at once, while the other ranks have not started"),
    "StartsInFinish": ("wire", "starts nothing, finish() does"),
    "HalfThePayload": ("bytes", "payload_bytes of the wire 1 (told) says"),
    "TwiceThePayload": ("bytes", "payload_bytes of the wire 1 (told) says"),
    "HalfTheMessages": ("bytes", "by the messages() of its wires"),
    "SaysNoResidual": ("residual", "residual_bytes says 0"),
    "HalfTheResidual": ("residual", "its state keeps 800,004 bytes of the gradient's shapes"),
    "TwiceTheResidual": ("residual", "its state keeps 800,004 bytes in all"),
    "Leaks": ("memory", "MB per 100 steps"),
    "LeaksBytes": ("memory", "MB per 100 steps"),
    "NoState": ("state", "in a new instance it gives other bits"),
    "LoadsNoStep": ("state", "in a new instance it gives other bits"),
    "LoadsOntoTheOld": ("state", "in an instance that has been used it gives other bits"),
    "SharesState": ("state", "in a new instance it gives other bits"),
    "KeepsTheLoaded": ("state", "load_state_dict() keeps the caller's tensors"),
    "StateIsNotPlain": ("state", "its state_dict is not plain"),
    "SavingMoves": ("state", "state_dict() changes what comes after it"),
}
"""Methods of tests/planted_methods.py, the check that each must fail, and what it must say."""
HONEST = [
    "compressors:SignFeedback",
    "compressors:QSGD",
    "compressors:RandomK,feedback=on",
    "powersgd",
]
HONEST_TOO = ["compressors:RotatedSign", "compressors:RandomK", "planted_methods:Gathered"]
"""Their segments are built as those of the others are: of these the checks of the average alone are asked."""
OF_THE_AVERAGE = (
    "identical",
    "deterministic",
    "buckets",
    "conserves",
    "rounding",
    "scale",
    "unbiased",
    "state",
    "residual",
)
# powersgd is among the honest; bf16 is fp16 with another type, and tests/distributed/test_backend.py has its rounding.
BUILT_IN = [
    *(name for name in METHODS if name not in ("powersgd", "bf16")),
    "topk,values=int8-stochastic,ratio=0.05,collective=split",
]
ASKED_OF_BUILT_IN = (
    "identical",
    "sizes",
    "clean",
    "conserves",
    "rounding",
    "nonfinite",
    "wire",
    "bytes",
    "residual",
)
"""What tests of their own do not ask of them yet."""
LEFT_OPEN = {"rounding", "unbiased", "conserves", "time"}


def netsim(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return measuring([*words], folder, env={"PYTHONPATH": PATH, "COLUMNS": "200"}, timeout=200)


def verdicts(output: str) -> dict[str, str]:
    return {name: word for word, name in re.findall(r"^\[(PASS|FAIL|TIME|NOTE)\] (\w+)", output, re.M)}


@pytest.fixture(scope="module")
def ranks() -> Iterator[CheckRanks]:
    """Ranks that find the examples and the planted methods; one start for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATH)
        with choose(LinkSpec(3, 10**9), "bucket", print) as link, CheckRanks(link, timeout_s=5) as ranks:
            yield ranks


@pytest.mark.no_kernels
@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_fault_fails_the_check_that_is_for_it(ranks: CheckRanks, planted: str) -> None:
    check, said = PLANTED[planted]
    finding = ranks.check(check, parse_method(f"planted_methods:{planted}"))
    assert finding.passed is False, finding.found
    assert said in finding.found


def test_every_check_catches_something() -> None:
    assert {check for check, _ in PLANTED.values()} == set(CHECKS) - {"time"}


@pytest.mark.no_kernels
@pytest.mark.parametrize("honest", [*HONEST, *HONEST_TOO])
def test_an_honest_method_passes(ranks: CheckRanks, honest: str) -> None:
    method = parse_method(honest)
    asked = OF_THE_AVERAGE if honest in HONEST_TOO else set(CHECKS) - {"time"}
    findings = [ranks.check(name, method) for name in CHECKS if name in asked]
    assert {finding.name: finding.found for finding in findings if finding.passed is False} == {}
    assert {finding.name for finding in findings if finding.passed is None} <= LEFT_OPEN


@pytest.mark.parametrize(
    "name",
    [name if "topk" in name else pytest.param(name, marks=pytest.mark.no_kernels) for name in BUILT_IN],
)
def test_a_built_in_method_passes(ranks: CheckRanks, name: str) -> None:
    findings = [ranks.check(each, parse_method(name)) for each in ASKED_OF_BUILT_IN]
    assert {finding.name: finding.found for finding in findings if finding.passed is False} == {}


@pytest.mark.no_kernels
def test_what_conserves_cannot_ask_of_an_unbiased_method_unbiased_does(ranks: CheckRanks) -> None:
    qsgd = parse_method("compressors:QSGD")
    found = {name: ranks.check(name, qsgd) for name in ("conserves", "unbiased")}
    assert [found["conserves"].passed, found["unbiased"].passed] == [None, True]


@pytest.mark.no_kernels
def test_the_command_prints_each_finding_and_what_it_cannot_see(tmp_path: Path) -> None:
    done = netsim(tmp_path, "check", "my_method:shared_random", "--link", "bucket", "--json", "found.json")
    assert done.returncode == 0, done.stdout + done.stderr
    shown = verdicts(done.stdout)
    assert shown == {**dict.fromkeys(CHECKS, "PASS"), "unbiased": "NOTE", "time": "TIME"}
    assert done.stdout.strip().splitlines()[-1] == NOT_SEEN
    document = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert document["passed"] is True
    assert {each["name"]: each["result"].upper() for each in document["checks"]} == shown


@pytest.mark.no_kernels
def test_the_command_ends_with_what_failed(tmp_path: Path) -> None:
    left_out = [
        word for name in CHECKS if name not in ("builds", "identical") for word in ("--without", name)
    ]
    words = ["check", "planted_methods:RankDependent,ratio=0.3", "--link", "bucket", "--json", "-"]
    done = netsim(tmp_path, *words, *left_out)
    assert done.returncode == 3, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert [each["result"] for each in document["checks"]] == ["pass", "fail"]
    assert verdicts(done.stderr) == {"builds": "PASS", "identical": "FAIL"}
    last = done.stderr.strip().splitlines()[-1]
    assert last == "netsim: planted_methods:RankDependent,ratio=0.3 fails 1 of the checks: identical"


@pytest.mark.no_kernels
def test_a_run_takes_it_like_any_method(tmp_path: Path) -> None:
    words = ["--link", "none", "--workers", "2", "--steps", "2", "--warmup", "0", "--repeats", "1"]
    words += ["--execution", "concurrent", "--baseline", "none", "--json", "out.json"]
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
    "netsim_ddp.communication:flat": "is a module, not a function or class",
    "math:sqrt": "failed while building: TypeError",
    "builtins:print": "returned a NoneType, not a Method",
}


@pytest.mark.parametrize("method", WRONG)
def test_what_is_no_method_is_named(method: str) -> None:
    flat = FlatGradients({"weight": nn.Parameter(torch.zeros(3))}.items())
    with pytest.raises(UsageError) as caught:
        build_method(method, flat, Group(0, 1))
    assert WRONG[method] in f"{caught.value.message} ({caught.value.hint})"


@pytest.mark.no_kernels
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
