"""``netsim show``, and a recording's page and trace: what they say of planted moments, and what they refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from netsim_ddp.report.charts.recorded import timelines
from netsim_ddp.report.recordings import watching
from netsim_ddp.results.fields import Tool
from netsim_ddp.results.files import save, to_json
from netsim_ddp.results.launch import Launch, LaunchRank, recorded_launch
from netsim_ddp.results.recorded_steps import seen_steps
from netsim_ddp.results.recording import Gradients, Overhead, Recording
from netsim_ddp.results.recording_file import write
from tests.commands import ROOT, answer, complaint
from tests.planted_recordings import apart, file, recording
from tests.results_factory import make, make_link, training


def shown(words: list[str], folder: Path, columns: int = 80) -> str:
    done = answer(words, folder, env={"COLUMNS": str(columns), "TERMINAL_WIDTH": str(columns)})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("columns", [80, 160])
def test_a_recording_is_shown_in_the_width_that_is_there(tmp_path: Path, columns: int) -> None:
    overhead = Overhead(on_s=[0.0505, 0.0515, 0.051], off_s=[0.05, 0.05, 0.05])
    file(tmp_path / "r.netsim", apart(hook="mine", batch_size=8, notes=["something"], overhead=overhead))
    text = shown(["show", "r.netsim"], tmp_path, columns)
    assert max(map(len, text.splitlines())) <= columns
    one = " ".join(text.split())
    for said in (
        "Net, 5.4k parameters in 2 buckets (under DDP, hook mine) | 2 ranks on cpu | SGD | batch 8",
        "train.py",
        "exposed communication",
        "Without exposed communication a step would take 48 ms instead of 68 ms: worked out",
        "holds no data and no parameters, but all gradients of steps 0, 1, from which something of the data can",
        "The largest 1% of the gradients' entries hold",
        "Watching cost +2.0% of a step: 51 ms (50.5..51.5 ms) watched, 50 ms (50..50 ms) not, 3 and 3 steps",
        "note: something",
    ):
        assert said in one, text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["0"][1:3] == ["1", "last.weight"] if columns == 160 else rows["0"][1:3] == ["1", "0.0084"]
    assert re.search(r"wait +4 +0\.\.8 +8 +0\n", text)


@pytest.mark.parametrize(
    ("on_s", "said"),
    [
        ([0.049, 0.05, 0.051], "What watching costs is not measurable (below 4.1% of a step): 50 ms"),
        ([0.045, 0.046, 0.047], "What watching costs is not measurable (watched steps were shorter): 46 ms"),
        ([0.0515], "What watching costs is not measurable from so few steps: 51.5 ms"),
        (
            [0.06, 0.061, 0.062],
            "Watching cost +22.0% of a step: 61 ms (60..62 ms) watched, 50 ms (49..51 ms) not,",
        ),
    ],
)
def test_what_watching_costs_is_claimed_only_where_it_shows(on_s: list[float], said: str) -> None:
    text = watching(Overhead(on_s=on_s, off_s=[0.05, 0.049, 0.051]))
    assert said in text
    assert "-" not in text, "no negative cost"


def test_one_rank_of_several_is_told_to_be_one(tmp_path: Path) -> None:
    of = apart()
    file(tmp_path / "r.netsim", of.model_copy(update={"ranks": of.ranks[:1]}))
    text = " ".join(shown(["show", "r.netsim"], tmp_path).split())
    assert "1 of 2 ranks was seen: the exposed communication of this rank may be a wait for others." in text
    assert "ranks apart" not in text


@pytest.mark.parametrize(
    ("kind", "said"), [("none", "and no gradients."), ("synthetic", "drawn from a normal distribution")]
)
def test_a_file_without_gradients_says_so(tmp_path: Path, kind: str, said: str) -> None:
    of = recording(gradients=Gradients.model_validate({"kind": kind}))
    write(tmp_path / "r.netsim", of, [])
    text = " ".join(shown(["show", "r.netsim"], tmp_path).split())
    assert said in text
    assert "What watching cost was not measured." in text


def test_samples_are_told_from_all(tmp_path: Path) -> None:
    of = recording(
        gradients=Gradients(kind="sampled", steps=[3], kept=[64, 64, 64], scales=[[0.1, 0.1, 0.1]])
    )
    write(tmp_path / "r.netsim", of, [np.linspace(-1, 1, 192).astype(np.float16)])
    text = " ".join(shown(["show", "r.netsim"], tmp_path).split())
    assert "but samples of the gradients (3.6% of them) of step 3, from which" in text


def test_other_files_are_shown_as_their_commands_show_them(tmp_path: Path) -> None:
    save(make([]), tmp_path / "steps.json")
    save(training(), tmp_path / "training.json")
    for name in ("steps.json", "training.json"):
        assert shown(["show", name], tmp_path) == shown(["report", name], tmp_path)
    assert "ms, median of" in shown(["show", str(ROOT / "reports" / "compress.json")], tmp_path, 120)


def _launch(of: Recording) -> Launch:
    rank = LaunchRank(
        rank=0,
        exit_code=0,
        signal=None,
        ended_here=False,
        wall_s=1.0,
        tx_bytes=1,
        rx_bytes=1,
        drops=0,
        retransmits=0,
    )
    return Launch(
        tool=Tool(version="0"),
        created_utc="2026-01-01T00:00:00+00:00",
        status="complete",
        exit_code=0,
        first_failing_rank=None,
        environment={},
        command="netsim launch",
        program=["train.py"],
        workers=2,
        wall_s=1.0,
        link=make_link(),
        ranks=[rank],
        recorded=recorded_launch(of, "r.netsim"),
    )


def test_a_recorded_launch_is_shown_with_where_its_steps_went(tmp_path: Path) -> None:
    save(_launch(apart()), tmp_path / "launch.json")
    text = shown(["show", "launch.json"], tmp_path)
    assert max(map(len, text.splitlines())) <= 80
    rows = {tuple(line.split()) for line in text.splitlines()}
    assert {
        ("0", "68", "4", "10", "20", "8", "20", "1", "5"),
        ("1", "68", "4", "10", "28", "0", "20", "1", "5"),
    } <= rows
    one = " ".join(text.split())
    assert "Exposed communication of 2 of 2 buckets: 10 ms of bucket 1, 8 ms of bucket 0." in one
    assert "Without exposed communication a step would take 48 ms instead of 68 ms" in one


def test_a_launch_of_before_recordings_is_still_shown(tmp_path: Path) -> None:
    data = json.loads(to_json(_launch(apart())))
    del data["recorded"]
    (tmp_path / "launch.json").write_text(json.dumps(data | {"schema_version": 1}))
    assert "exposed" not in shown(["show", "launch.json"], tmp_path)


def test_what_is_no_file_of_netsim_is_one_line(tmp_path: Path) -> None:
    file(tmp_path / "whole.netsim")
    (tmp_path / "cut.netsim").write_bytes((tmp_path / "whole.netsim").read_bytes()[:-300])
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "other.json").write_text('{"schema_version": 1, "kind": "strange"}')
    (tmp_path / "probe.json").write_text('{"schema_version": 99, "kind": "probe"}')
    (tmp_path / "half.json").write_text('{"schema_version": 1, "kind": "launch"}')
    (tmp_path / "bench.json").write_text('{"machine_info": {}, "benchmarks": []}')
    for name, said in {
        "cut.netsim": "its end is missing",
        "missing.netsim": "cannot read missing.netsim",
        "text.txt": "text.txt",
        "list.json": "not a netsim result file",
        "other.json": "holds a strange",
        "probe.json": "has schema version 99",
        "half.json": "half.json: tool",
        "bench.json": "netsim compare bench.json OTHER.json",
    }.items():
        assert said in complaint(["show", name], tmp_path), name


def test_a_report_of_a_recording(tmp_path: Path) -> None:
    file(tmp_path / "r.netsim", apart(model="<b>Net"))
    assert shown(["report", "r.netsim"], tmp_path) == shown(["show", "r.netsim"], tmp_path)
    done = answer(["report", "r.netsim", "--html", "a.html", "--trace", "a.json"], tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("wrote") == 2
    page = (tmp_path / "a.html").read_text()
    assert page.count('<svg class="plot"') == 2
    assert "<b>Net" not in page
    assert "Recorded step 1 on rank 0: data 4 ms, forward 10 ms, backward 20 ms, wait 8 ms" in page
    events = json.loads((tmp_path / "a.json").read_text())["traceEvents"]
    long = [event for event in events if event["ph"] == "X"]
    of_first = [event for event in long if event["pid"] == 0 and event["args"]["step"] == 0]
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} >= {"rank 1", "step", "bucket 1"}
    assert any(
        (event["name"], event["ts"], event["dur"], event["tid"]) == ("exchange", 42000, 18000, 2)
        for event in of_first
    )
    assert sum(event["ph"] == "i" for event in events) == 2 * 3 * 2


def test_a_report_of_a_recording_has_no_exporters_of_results(tmp_path: Path) -> None:
    file(tmp_path / "r.netsim")
    save(make([]), tmp_path / "steps.json")
    assert "--csv is of results" in complaint(["report", "r.netsim", "--csv", "-"], tmp_path)
    assert "--figures is of results" in complaint(["report", "r.netsim", "--figures", "d"], tmp_path)
    assert "reported alone" in complaint(["report", "r.netsim", "steps.json"], tmp_path)
    assert "reported alone" in complaint(["report", "steps.json", "r.netsim"], tmp_path)
    assert "--trace is of a recording" in complaint(["report", "steps.json", "--trace", "-"], tmp_path)


def test_of_very_many_buckets_and_ranks_the_first_are_drawn() -> None:
    of = apart()
    steps = of.ranks[0].steps[0].model_copy(update={"full_s": [0.02] * 500, "done_s": [0.06] * 500})
    of = of.model_copy(
        update={
            "buckets": of.buckets * 250,
            "ranks": [of.ranks[0].model_copy(update={"rank": rank, "steps": [steps]}) for rank in range(9)],
            "world_size": 9,
        }
    )
    plots = timelines(of, seen_steps(of))
    assert len(plots) == 4
    assert len(plots[0].lanes) == 41
    assert "Not drawn: the last 460 buckets." in plots[0].notes
    assert "488 more buckets" in plots[0].text


def test_the_page_of_a_result_has_a_step_of_its_recording_where_it_is_at_hand(tmp_path: Path) -> None:
    file(tmp_path / "r.netsim", apart())
    words = ["predict", "--recording", "r.netsim", "--method", "dense", "-n", "2", "--json", "p.json"]
    assert answer(words, tmp_path).returncode == 0
    done = answer(["report", "p.json", "--html", "a.html"], tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "a.html").read_text()
    assert "A step as it was recorded" in page
    assert "Net: Rank 1, step 2 of 3: 68 ms" in page
    (tmp_path / "r.netsim").unlink()
    done = answer(["report", "p.json", "--html", "a.html"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "r.netsim is not here" in done.stderr
    assert "A step as it was recorded" not in (tmp_path / "a.html").read_text()
