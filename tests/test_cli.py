"""The command line as its users meet it: every mistake gets one line that says what to type instead."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import netsim_ddp
from tests.commands import ROOT, answer, command, complaint, instead, measuring

INSTALLED = Path(sys.executable).parent / "netsim"
SHORT = ["--link", "none", "--workers", "2", "--steps", "2", "--warmup", "0", "--repeats", "1"]
ONE = ["--method", "dense,overlap=off"]


FLAGS = {
    "--bandwidth fast": "--bandwidth 'fast' is not a rate (write for example 100mbps, 1gbps or 125MB/s)",
    "--bandwidth -1gbps": "--bandwidth '-1gbps' must be more than zero (write for example 100mbps",
    "--bandwidth 0": "--bandwidth '0' must be more than zero (write for example 100mbps",
    "--bandwidth 100": "--bandwidth '100' has no unit (write 100mbps or 100gbps)",
    "--bandwidth 1GBps": "--bandwidth '1GBps' could mean bits or bytes (write 1gbps for bits or 1GB/s for bytes)",
    "--ratio 0": "--ratio '0' must be above 0 and at most 1 (write for example 0.01 or 1%)",
    "--ratio 1.5": "--ratio '1.5' must be above 0 and at most 1 (for 1.5 percent write 1.5%)",
    "--ratio nan": "--ratio 'nan' must be above 0 and at most 1 (write for example 0.01 or 1%)",
    # A word where a quantity belongs: what the flag is, since something else was meant.
    "--loss mse2": "loss 'mse2' is not known (did you mean 'mse'? choose from cross-entropy, mse, torch.nn:NAME,",
    "--dataset cifer": "dataset 'cifer' is not known (did you mean 'cifar10'? choose from digits, mnist,",
    "--loss 100x": "--loss '100x' is not a share of packets (write for example 0.1%)",
    "--queue fifo": "--queue 'fifo' is not a duration (it is the longest that a packet waits in the link's queue",
    "--delay bdp": "--delay 'bdp' is not a duration (it is how long a packet travels between two ranks: write for exa",
    "--compute gpu": "--compute 'gpu' is not a duration (it is how long forward, backward and optimizer take (where is",
    "--timeout never": "--timeout 'never' is not a duration (it is the longest time without progress of a rank: write",
    "--link 1gbps": "--link '1gbps' is not known here (--link says how the link is made: auto, tc, bucket or none; its "
    "rate is --bandwidth 1gbps)",
    "--ratio 100x": "--ratio '100x' is not a fraction (write the kept fraction: 100x less is 0.01)",
    "--workers 0": "--workers 0 must be at least 1 (write for example --workers 4)",
    "-n -1": "--workers -1 must be at least 1 (write for example --workers 4)",
    "--nproc-per-node two": "--workers 'two' is not a whole number (write for example --workers 4)",
    "--workers 2.5": "--workers 2.5 is not a whole number (write for example --workers 4)",
    "--workers 1000": "--workers 1000 must be at most 64 (write for example --workers 4)",
    "--batch-size 0": "--batch-size 0 must be at least 1 (write for example --batch-size 32)",
    "--lr nan": "--learning-rate nan must be a number, neither infinite nor NaN (write for example",
    "--learning-rate fast": "--learning-rate 'fast' is not a number (write for example --learning-rate 0.1)",
    "--momentum 1": "--momentum 1 must be less than 1 (write for example --momentum 0.0)",
    "--overlap yes": "--overlap 'yes' is not known here (choose from auto, on or off)",
    "--method ./a.py:b": "unknown method './a.py:b' (known: bf16, dense, fp16,",
    "--runs 0": "--repeats 0 must be at least 1 (write for example --repeats 3)",
    "--compute 50": "--compute '50' is not a duration (write 50ms or 50s)",
    "--compute 0": "--compute 0 must be more than 0 (write for example --compute 50ms)",
    "--timeout 0": "--timeout 0 must be more than 0 (write for example --timeout 60s)",
    "--timeout 1000000h": "--timeout '1000000h' must be at most 10000000 (write for example --timeout 60s)",
    "--time-budget 5": "--time-budget '5' is not a duration (write 5ms or 5s)",
    "--link wifi": "--link 'wifi' is not known here (choose from auto, tc, bucket, none or host)",
    "--backend mpi": "--backend 'mpi' is not known here (choose from auto, gloo or nccl)",
    "--device tpu": "--device 'tpu' is not known here (choose from auto, cpu or cuda)",
    "--model resnet51": "model 'resnet51' is not known (did you mean 'resnet50'? choose from simple_cnn,",
    "--model a/b.py:build": "model 'a/b.py:build' is not MODULE:ATTRIBUTE (did you mean 'a.b:build'? choose",
    "--dataset mnits": "dataset 'mnits' is not known (did you mean 'mnist'? choose from digits, mnist, fashion",
    "--model transformer --dataset digits": "model 'transformer' is for tokens, and digits holds images (choose a",
    "--text book.txt": "a text is read by the dataset text, not by digits (write --model transformer, or",
    "--method topkk": "unknown method 'topkk' (did you mean 'topk'? known: bf16, dense, fp16,",
    "--method topk,rate=1": "method 'topk' has no option 'rate' (did you mean 'ratio'? known:",
    "--method fp16,ratio=1": "method 'fp16' has no option 'ratio' (known: overlap; ratio is an option of topk, ",
    "--method topk,ratio": "method 'topk,ratio': 'ratio' is not key=value (write topk,key=value)",
    "--method topk,ratio=5": "method 'topk': ratio '5' must be above 0 and at most 1 (for 5 percent",
    "--method topk,ratio=1,ratio=0.5": "method 'topk,ratio=1,ratio=0.5' gives 'ratio' twice (write topk,",
    "--method dense,overlap=so": "method 'dense': overlap=so is not on or off (write for example overlap=on)",
    "--method topk,values=int4": "method 'topk': values=int4 is not one of fp32, fp16, bf16, int8, int8-stochastic",
    "--method topk --method topk": "method 'topk,ratio=0.01' is named twice (name it once)",
    "--bandwith 1gbps": "no such option: --bandwith (did you mean --backend or --bandwidth? netsim run --help",
    "--workers": "option '--workers' requires an argument (netsim",
    "extra": "got unexpected extra argument(s) (extra) (netsim run --help lists what it takes)",
    "--json /proc/x": "cannot write /proc/x: no file can be made in /proc (name a file in a folder you can",
    "--json no/such.json": "cannot write no/such.json: no folder no (name a file in a folder you can write to)",
    "--json .": "cannot write .: it is a folder (name a file in a folder you can write to)",
    "--json /dev/null": "cannot write /dev/null: it is not a file (write --json - for stdout)",
    "--config gone.yaml": "cannot read gone.yaml: No such file or directory (name a scenario in YAML or a",
    "--config .": "cannot read .: Is a directory (name a scenario in YAML or a result file)",
}


@pytest.mark.parametrize("words", FLAGS)
def test_a_bad_flag_gets_one_line(tmp_path: Path, words: str) -> None:
    said = complaint(["run", *words.split()], tmp_path)
    assert said.startswith(FLAGS[words])
    assert said.endswith(")")
    assert list(tmp_path.iterdir()) == []  # nothing was started, nothing saved


FILES: dict[str, tuple[bytes, str]] = {
    "unknown": (
        b"bandwith: 1gbps",
        "s.yaml: unknown key 'bandwith' (did you mean 'bandwidth'? known: backend,",
    ),
    "range": (b"batch_size: 0", "s.yaml: batch_size 0 must be at least 1 (write for example batch_size: 32)"),
    "bare": (b"bandwidth: 100", "s.yaml: bandwidth '100' has no unit (write 100mbps or 100gbps)"),
    "fraction": (b"workers: 2.5", "s.yaml: workers 2.5 is not a whole number (write for example workers: 4)"),
    "text": (b"steps: many", "s.yaml: steps 'many' is not a whole number (write for example steps: 20)"),
    "switch": (b"workers: yes", "s.yaml: workers is not a switch (write for example workers: 4)"),
    "both": (b"bandwidth: 1gbps\nbandwidth_bps: 5", "s.yaml: bandwidth and bandwidth_bps are the same thing"),
    "infinite": (
        b"timeout_s: .inf",
        "s.yaml: timeout_s inf must be a number, neither infinite nor NaN (write",
    ),
    "model": (b"model: 3", "s.yaml: model 3 is not a name (write for example model: simple_cnn)"),
    "dataset": (b"dataset: svhn", "s.yaml: dataset 'svhn' is not known (choose from digits,"),
    "number": (b"methods: 3", "s.yaml: methods 3 is not a list (write for example [dense, topk])"),
    "mapping": (
        b"methods: {topk: 1}",
        "s.yaml: methods {'topk': 1} is not a list (write for example [dense,",
    ),
    "nothing": (b"methods: []", "s.yaml: no method to run (write for example --method dense --method topk)"),
    "item": (b"methods: [3]", "s.yaml: 3 is not a method (write for example topk,ratio=0.01)"),
    "option": (
        b"methods: [{name: topk, params: {ratio: 5}}]",
        "s.yaml: method 'topk': ratio '5' must be above 0 and at most 1 (for 5 percent write 5%)",
    ),
    "list": (b"- 1", "s.yaml holds no scenario (write keys such as 'bandwidth: 1gbps', one on a line)"),
    "empty": (b"", "s.yaml holds no scenario (write keys such as 'bandwidth: 1gbps', one on a line)"),
    "not-yaml": (b"a: [1,\n", "s.yaml, line 2, is not YAML: "),
    "deep": (
        b"[" * 20_000,
        "s.yaml is not YAML: it is nested too deeply (name a scenario in YAML or a result",
    ),
    "binary": (
        bytes(range(256)),
        "s.yaml is not text in UTF-8: byte 128 is none (name a scenario in YAML or a result file)",
    ),
    "half-a-result": (b'{"schema_version": 1, "cells": []}', "s.yaml holds no scenario (write keys such as"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_gets_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "s.yaml").write_bytes(FILES[name][0])
    said = complaint(["run", "--config", "s.yaml"], tmp_path)
    assert said.startswith(FILES[name][1])
    assert said.endswith(")")


def test_a_flag_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("bandwidth: 1gbps\nworkers: 2\n")
    said = complaint(["run", "--config", "s.yaml", "--bandwidth", "fast"], tmp_path)
    assert said.startswith("--bandwidth 'fast'")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to and read from everything")
def test_permissions_are_checked_before_the_measuring(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert "no file can be made in closed" in complaint(["run", "--json", "closed/x.json"], tmp_path)
    (tmp_path / "secret.yaml").touch(mode=0)
    assert "Permission denied" in complaint(["run", "--config", "secret.yaml"], tmp_path)


def test_an_unknown_command_is_answered_with_the_near_one(tmp_path: Path) -> None:
    assert complaint(["rnu"], tmp_path).startswith(
        "no such command 'rnu'. Did you mean 'run'? (netsim --help"
    )


def _unshare_without_a_map() -> None:
    """In a user namespace that maps nobody the kernel refuses to make further namespaces."""
    if ctypes.CDLL(None).unshare(0x10000000) != 0:
        raise OSError("no user namespaces")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="namespaces are Linux's")
def test_a_link_that_cannot_be_made_is_the_environments_fault(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    try:
        words = ["run", *instead(SHORT, "--link", "tc")]
        done = command(words, tmp_path, preexec_fn=_unshare_without_a_map)
    except subprocess.SubprocessError:
        pytest.skip("this machine makes no user namespaces, from which a refusal could be had")
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert re.search(
        r"^netsim: (namespaces are not allowed here|ip is not installed)", done.stderr, re.MULTILINE
    )
    assert "--link bucket" in done.stderr  # what to type instead
    assert list((tmp_path / ".netsim").iterdir()) == []  # nothing was measured, nothing is kept


@pytest.mark.parametrize("columns", [80, 160])
def test_help_fits_its_terminal(tmp_path: Path, columns: int) -> None:
    for words in (["--help"], ["run", "--help"], ["run", "-h"]):
        done = answer(words, tmp_path, env={"COLUMNS": str(columns), "TERMINAL_WIDTH": str(columns)})
        assert done.returncode == 0
        assert done.stderr == ""
        assert max(len(line) for line in done.stdout.splitlines()) <= columns
    for word in ("--bandwidth RATE", "-n, --workers, --nproc-per-node N", "--lr", "--runs", "--json PATH|-"):
        assert word in done.stdout
    text = " ".join(done.stdout.split())
    for default in ("[1gbps]", "[dense, topk]", "[simple_cnn]", "[4]", "[auto]", "[none]"):
        assert default in text  # rich reads such words as markup and drops them


def test_the_named_links_are_listed_with_their_sources(tmp_path: Path) -> None:
    done = answer(["scenarios", "links"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    names = [
        "lan-100m",
        "lan-1g",
        "lan-10g",
        "wifi",
        "dsl",
        "lte",
        "inter-az",
        "wan-us-eu",
        "wan-us-asia",
        "ec2-burst",
    ]
    assert [line.split()[0] for line in lines[::2]] == names
    assert "--bandwidth 1.25gbps --peak 10gbps --credit 4GB" in done.stdout
    bare = answer(["scenarios"], tmp_path)
    assert bare.returncode == 0
    assert "links" in bare.stdout


def test_only_a_tc_link_has_commands_to_show(tmp_path: Path) -> None:
    shown = answer(["run", "--show-commands", "--workers", "2", "--delay", "5ms"], tmp_path)
    assert shown.returncode == 0
    assert "tc -n netsim1 qdisc replace dev eth0 parent 1:1 handle 10: netem" in shown.stdout
    assert list(tmp_path.iterdir()) == []
    said = complaint(["run", "--show-commands", "--delay", "5ms", "--delay-by", "tun"], tmp_path)
    assert said.startswith("--delay-by tun is not made by commands")
    said = complaint(["run", "--show-commands", "--link", "bucket"], tmp_path)
    assert said == "--link bucket is not made by commands (use --link tc)"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--link", "bucket", "--loss", "1%"], "the bucket link has no loss (use --link tc, on Linux)"),
        (
            ["--link", "none", "--delay", "1ms"],
            "a link that is not shaped has no delay (use --link tc, on Linux)",
        ),
    ],
)
def test_what_a_link_cannot_do_is_the_environments_fault(tmp_path: Path, words: list[str], said: str) -> None:
    assert complaint(["run", *words], tmp_path, code=4) == said


def test_without_a_command_the_help_is_shown(tmp_path: Path) -> None:
    done = answer([], tmp_path)
    assert done.returncode == 0
    assert "netsim run --bandwidth 1gbps --ratio 0.01" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"], ["run", "--ratio", "2"]])
def test_answering_at_once_means_not_importing_torch(tmp_path: Path, words: list[str]) -> None:
    done = command(words, tmp_path, how=[sys.executable, "-X", "importtime", "-m", "netsim_ddp"])
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "netsim_ddp.cli" in imported
    assert not {"torch", "numpy", "numba"} & imported


@pytest.mark.parametrize("words", [["--version"], ["run", "--help"], ["run", "--workers", "0"], ["nonsense"]])
def test_every_way_in_answers_alike(tmp_path: Path, words: list[str]) -> None:
    ways = [[sys.executable, "-m", "netsim_ddp"], [sys.executable, str(ROOT / "cli.py")]]
    if INSTALLED.exists():
        ways.append([str(INSTALLED)])
    answers = [command(words, tmp_path, how=way) for way in ways]
    assert len({(each.returncode, each.stdout, each.stderr) for each in answers}) == 1
    if words == ["--version"]:
        assert answers[0].stdout == f"netsim {netsim_ddp.__version__}\n"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One short run, in the spellings of other tools, with its result on stdout."""
    folder = tmp_path_factory.mktemp("measured")
    familiar = ["--nproc-per-node", "2", "--runs", "1", "--ratio", "2%", "--lr", "0.05"]
    words = ["run", *instead(SHORT, *familiar), *ONE, "--method", "topk", "--json", "-"]
    return folder, measuring(words, folder)


def test_json_on_stdout_is_one_document_and_nothing_else(measured: Any) -> None:
    folder, done = measured
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # trailing text would be an error
    assert result["schema_version"] == 4
    assert result["status"] == "complete"
    assert result["command"].startswith("netsim run --link none")
    kept = [path for path in (folder / ".netsim").iterdir() if not path.is_symlink()]
    assert [json.loads(path.read_text()) for path in kept] == [result]
    assert (folder / ".netsim" / "last.json").resolve() == kept[0].resolve()


def test_progress_goes_to_stderr_as_plain_lines(measured: Any) -> None:
    _, done = measured
    assert "importing torch once" in done.stderr
    assert all(line.startswith("netsim: ") for line in done.stderr.splitlines())
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr


def test_familiar_spellings_mean_the_same(measured: Any) -> None:
    scenario = json.loads(measured[1].stdout)["scenario"]
    assert (scenario["workers"], scenario["repeats"], scenario["ratio"]) == (2, 1, 0.02)
    assert scenario["learning_rate"] == 0.05
    assert [method["params"] for method in scenario["methods"]] == [
        {"overlap": False},
        {"overlap": True},
        {"ratio": 0.02},
    ]


def test_a_result_file_replays_and_flags_win_over_it(measured: Any, tmp_path: Path) -> None:
    folder, done = measured
    before = json.loads(done.stdout)
    last = str(folder / ".netsim" / "last.json")
    (tmp_path / ".netsim").write_text("in the way")  # a run that cannot be saved is still a run
    replay = measuring(["run", "--config", last, "--json", "again.json", "--ratio", "5%"], tmp_path)
    assert replay.returncode == 0, replay.stderr
    after = json.loads((tmp_path / "again.json").read_text())
    methods = [
        {"name": "dense", "params": {"overlap": False}},
        {"name": "fp16", "params": {"overlap": True}},
        {"name": "topk", "params": {"ratio": 0.05}},
    ]
    assert after["scenario"] == before["scenario"] | {"ratio": 0.05, "methods": methods}
    dense = [result["cells"][0]["repeats"][0]["ranks"][0] for result in (before, after)]
    assert dense[0]["parameters_sha256"] == dense[1]["parameters_sha256"]
    assert "netsim: warning: the run is not saved: cannot write to .netsim" in replay.stderr
    assert "saved .netsim" not in replay.stdout
    assert "topk" in replay.stdout
