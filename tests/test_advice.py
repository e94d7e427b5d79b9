"""``netsim advise``: which method its rule chooses, what it says, and that it measures what it says it measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from netsim_ddp.cli.advise import parse_points
from netsim_ddp.errors import LinkOffTarget, UsageError
from netsim_ddp.methods.snippet import snippet
from netsim_ddp.methods.spec import parse_method
from netsim_ddp.report.terminal.advice import render_advice
from netsim_ddp.results.advice import (
    AccuracyOf,
    Advice,
    Candidate,
    expected,
    prediction_errors,
    ranked,
    within,
)
from netsim_ddp.results.files import load
from netsim_ddp.results.record import Interval, Result
from netsim_ddp.results.repeatability import repeatability
from netsim_ddp.results.training_record import MeanInterval
from netsim_ddp.tools import advise as tools
from netsim_ddp.tools.advise import RIVAL, considered
from tests.commands import answer, complaint, measuring
from tests.results_factory import make_cell, make_link, make_result


def candidate(name: str, predicted: float, sent: float, *measured: float, **more: Any) -> Candidate:
    interval = Interval(median=measured[0], ci_low=min(measured), ci_high=max(measured)) if measured else None
    return Candidate(
        id=name, method=name, params={}, overlap=True, bytes_per_step=sent, residual_bytes=0, communicate_s=0.0,
        predicted_s=predicted, measured_s=list(measured), measured=interval, **more,
    )  # fmt: skip


def first(*candidates: Candidate) -> str:
    return ranked(candidates)[0].id


def test_of_methods_that_are_as_fast_the_one_that_compresses_least_is_recommended() -> None:
    dense, half, topk = (
        candidate("dense", 1.01, 4e8),
        candidate("fp16", 1.0, 2e8),
        candidate("topk", 1.0, 4e6),
    )
    assert first(topk, half, dense) == "dense"
    assert first(topk, half, dense.model_copy(update={"predicted_s": 1.05})) == "fp16"
    assert first(topk, half.model_copy(update={"predicted_s": 1.3})) == "topk"
    fewer_headers = candidate("topk,overlap=off", 1.005, 3.99e6)
    assert first(fewer_headers, topk) == "topk"  # as many bytes: the faster one


def test_what_was_measured_decides_unless_the_host_set_its_pace() -> None:
    promised, measured = candidate("a", 0.1, 1e6), candidate("b", 0.2, 1e6, 0.15)
    assert first(promised, measured) == "b"
    limited = candidate("c", 0.12, 1e6, 0.4, host_limited=True)
    assert limited.step_s == 0.12
    assert first(promised, measured, limited) == "c"


def test_what_is_beyond_the_budget_comes_last() -> None:
    order = ranked(
        [candidate("a", 0.1, 1e6, budget="beyond"), candidate("b", 0.3, 1e6), candidate("c", 0.2, 1e6)]
    )
    assert [each.id for each in order] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("mean", "low", "said"),
    [
        (-0.1, -0.4, "within"),
        (-0.1, -0.9, "not resolved"),
        (-0.7, -1.5, "beyond"),
        (-0.1, None, "not resolved"),
    ],
)
def test_the_budget_is_held_against_the_whole_interval(mean: float, low: float | None, said: str) -> None:
    high = None if low is None else 2 * mean - low
    found = MeanInterval(mean=mean, ci_low=low, ci_high=high)
    known = AccuracyOf(source="a.json", seeds=5, difference_points=found, same_model=True)
    assert within(known, 0.5) == said
    assert within(known, None) is None
    assert within(None, 0.5) == "not measured"


def test_an_interval_comes_from_what_predictions_were_off() -> None:
    cells = [candidate("a", 1.1, 1, 1.0), candidate("b", 0.9, 1, 1.0), candidate("c", 2.0, 1)]
    errors, repeatable = prediction_errors(cells), (-0.02, 0.03)
    assert errors == pytest.approx((-0.1, 0.1))
    found = expected(cells[2], errors, repeatable)
    assert (found.ci_low, found.median, found.ci_high) == pytest.approx((2 / 1.1, 2.0, 2 / 0.9))
    assert expected(cells[2], None, repeatable).ci_high == 2.0


def test_a_measured_steps_interval_holds_what_other_runs_were_off() -> None:
    once, wide = candidate("a", 1.1, 1, 1.0), candidate("b", 1.1, 1, 1.0, 0.9, 1.2)
    for one, low, high in ((once, 0.98, 1.03), (wide, 0.9, 1.2)):
        found = expected(one, None, (-0.02, 0.03))
        assert (found.ci_low, found.median, found.ci_high) == pytest.approx((low, 1.0, high))


def test_what_other_runs_were_off_is_the_later_runs_step_over_each_repeat() -> None:
    limited = make_link(host_limited=True)
    first = [
        make_cell("topk", [100.0, 80.0]),
        make_cell("fp16", [10.0]),
        make_cell("dense", [10.0], link=limited),
    ]
    later = [make_cell("dense", [90.0]), make_cell("topk", [100.0, 80.0, 90.0]), make_cell("powersgd", [1.0])]
    found = repeatability([(make_result(first), make_result(later))], "here")
    assert (found.cells, found.low, found.high) == (1, pytest.approx(-0.1), pytest.approx(0.125))
    with pytest.raises(UsageError, match="no cell twice"):
        repeatability([(make_result(first[1:]), make_result(later))], "here")


def test_candidates_overlap_and_do_not_and_the_baselines_are_always_there() -> None:
    assert len(considered([])) > 8
    found = [each.id for each in considered([parse_method("topk,ratio=0.05")])]
    assert found == [
        "dense,overlap=on", RIVAL.id, "topk,overlap=on,ratio=0.05", "topk,overlap=off,ratio=0.05",
    ]  # fmt: skip
    assert [each.id for each in considered([parse_method("topk,overlap=off")])][2:] == ["topk,overlap=off"]


def test_snippets_are_python_and_name_the_options() -> None:
    text = snippet("topk", {"ratio": 0.01, "values": "fp16"}, overlap=True)
    assert "HookState(ddp, 'topk', ratio=0.01, values='fp16', overlap=True)" in text
    for method in ("dense", "fp16", "bf16", "powersgd"):
        compile(snippet(method, {}, overlap=True), method, "exec")
    assert "fp16_compress_hook" in snippet("fp16", {}, overlap=True)


@pytest.mark.parametrize(("text", "points"), [("0.5pt", 0.5), ("1", 1.0), ("2 pts", 2.0), ("0.5%", 0.5)])
def test_a_budget_in_points(text: str, points: float) -> None:
    assert parse_points(text) == points


@pytest.mark.parametrize("text", ["", "much", "-1pt", "nan", "200pt"])
def test_a_budget_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="percentage points"):
        parse_points(text)


WORDS = ("advise", "--model", "simple_cnn", "--workers", "2", "--bandwidth")


def test_the_command_measures_and_says_so(tmp_path: Path) -> None:
    page = tmp_path / "advice.html"
    words = [
        *WORDS,
        "20mbps",
        "--compute",
        "20ms",
        "--method",
        "topk",
        "--time",
        "60s",
        "--repeats",
        "1",
        "--link",
        "bucket",
        "--json",
        "-",
        "--html",
        str(page),
    ]
    done = measuring(words, tmp_path)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    advice = Advice.model_validate(json.loads(out))
    assert advice.verdict == "compress"
    assert advice.best.method == "topk"
    assert advice.speedup.value > 3
    held = [each for each in advice.candidates if each.measured is not None]
    assert {advice.rival, advice.recommended} <= {each.id for each in held}
    assert len(advice.files) == 2
    assert {cell.link.mechanism for cell in load(tmp_path / advice.files[1]).cells} == {"bucket"}
    assert any("netsim run" in line and "--link bucket" in line for line in advice.commands)
    assert any("accuracy was not measured" in each for each in advice.missing)
    text = page.read_text()
    assert "What is not known" in text
    assert re.search(r"method_hook\nstate = HookState.*\nddp.register_comm_hook", text)
    place = tmp_path / "advice.json"
    place.write_text(out)
    shown = answer(["show", str(place)], tmp_path).stdout
    assert "Use topk" in shown
    assert "netsim train" in shown


def test_where_the_link_cannot_be_made_the_prediction_stands_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved: list[Result] = []

    def refused(*_: object, save: Any, **__: object) -> None:
        save(saved[0].model_copy(update={"cells": []}))
        raise LinkOffTarget("the link delivers half")

    monkeypatch.setattr(tools.runner, "run", refused)
    advice = tools.advise(
        {"model": "simple_cnn", "workers": 2, "bandwidth": "20mbps", "compute": "20ms"},
        methods=[parse_method("topk")],
        time_s=60.0,
        command=["netsim", "advise"],
        report=lambda _: None,
        save=saved.append,
    )
    assert [bool(each.cells) for each in saved] == [True]
    assert any("cannot be measured here: the link delivers half" in each for each in advice.missing)
    assert advice.step_s.ci_low < advice.step_s.median < advice.step_s.ci_high


def test_where_the_link_is_fast_dense_is_recommended(tmp_path: Path) -> None:
    words = [*WORDS, "10gbps", "--compute", "500ms", "--method", "topk", "--time", "0", "--json", "-"]
    done = measuring(words, tmp_path)
    assert done.returncode == 0, done.stderr
    advice = Advice.model_validate(json.loads(done.stdout))
    assert advice.verdict == "not the network"
    assert advice.recommended == "dense,overlap=on"
    assert all(each.measured is None for each in advice.candidates)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--time", "soon"), "--time 'soon' is not a duration"),
        (("--accuracy-budget", "some"), "write for example 0.5pt"),
        (("--accuracy", "missing.json"), "missing.json"),
        (("--method", "tpok"), "unknown method 'tpok'"),
        (("--json", "-", "--html", "-"), "both want stdout"),
        (("--link", "none"), "--link tc, bucket or auto"),
        (("--link", "wire"), "choose from auto, tc"),
    ],
)
def test_what_cannot_be_advised_is_refused(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert message in complaint([*WORDS, "1gbps", *words], tmp_path)


def test_a_narrow_terminal_has_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    advice = Advice(
        tool={"version": "0"}, created_utc="", environment={}, command="netsim advise", model="m", workers=4,  # type: ignore[arg-type]
        link="1 Gbit/s", recommended="topk", verdict="compress", rival="fp16", speedup={"value": 2.0},  # type: ignore[arg-type]
        step_s=Interval(median=0.1, ci_low=0.1, ci_high=0.1), missing=["x " * 100], snippet="a\nb", commands=["c"],
        candidates=[candidate("topk", 0.1, 1e6), candidate("fp16", 0.2, 1e8)],
    )  # fmt: skip
    render_advice(advice, Console(width=60, highlight=False))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert any(line.startswith("topk") for line in lines)
    assert any(line.startswith("fp16") for line in lines)
