"""What is assumed of a figure stands wherever the figure does: one list, in every table and file, each thing once."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from netsim_ddp.errors import LinkUnavailable
from netsim_ddp.link.tc.link import TcLink
from netsim_ddp.report.assumptions import assumptions
from netsim_ddp.report.collection import Collection, Source
from netsim_ddp.report.crossover import render_break_evens
from netsim_ddp.report.export import ci, html, junit, latex, markdown, tidy
from netsim_ddp.report.terminal.result import render_result
from netsim_ddp.report.terminal.sweep import render_sweep
from netsim_ddp.report.terminal.training import render_training
from netsim_ddp.results.files import load
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.scenario import Scenario, build
from netsim_ddp.tools import launch as launched
from netsim_ddp.units import format_rate
from tests.results_factory import make_cell, make_link, make_result, sweep, training

SUBSTITUTED = "cuda, from a100.json"


def run(execution: str, mechanism: str = "bucket", asked: str = "bucket", **scenario: Any) -> Result:
    link = make_link(mechanism)
    cells = [
        make_cell("dense", [100], execution=execution, link=link),
        make_cell(
            "topk", [50], execution=execution, link=link, substituted=SUBSTITUTED, params={"ratio": 0.01}
        ),
    ]
    settings = {"model": "simple_cnn", "compute_s": 0.05, "link": asked, "repeats": 1, "steps": 4, "seed": 0}
    return make_result(cells, scenario={**settings, **scenario})


def shown(render: Any, *given: Any) -> str:
    console = Console(width=200, record=True, highlight=False, file=io.StringIO())
    render(*given, console)
    return console.export_text()


def everywhere(result: Result) -> dict[str, str]:
    """What a reader sees, by the way that it is shown; of a CSV only the column."""
    made = Collection([Source("run.json", result)])
    table = list(csv.DictReader(io.StringIO(tidy.table(made))))
    return {
        "run": shown(render_result, result),
        "sweep": shown(render_sweep, result),
        "html": html.page(made),
        "markdown": markdown.document(made).replace("\\", ""),
        "latex": latex.document(made),
        "csv": "\n".join(dict.fromkeys(row["assumed"] for row in table)),
        "junit": junit.document(made),
        "github": ci.github_benchmark(made),
    }


@pytest.mark.parametrize("execution", ["concurrent", "replayed"])
def test_what_is_assumed_stands_everywhere(execution: str) -> None:
    for where, text in everywhere(run(execution)).items():
        assert execution in text.lower(), where
        assert "compute emulated 50 ms" in text, where
        assert f"codec SUBSTITUTED: {SUBSTITUTED}" in text, where
        assert "bucket as asked" in text, where
        assert "charged, not measured" in text, where
    fallback = everywhere(run(execution, asked="auto"))
    assert all("bucket because tc does not work there" in text for text in fallback.values())
    real = everywhere(run(execution, mechanism="tc", compute_s=None))
    assert not any("emulated" in text or "bucket" in text or "charged" in text for text in real.values())


def test_a_training_says_it_too() -> None:
    trained = training()
    links = {"link": make_link("bucket")}
    result = trained.model_copy(
        update={
            "cells": [cell.model_copy(update=links) for cell in trained.cells],
            "scenario": {**trained.scenario, "link": "bucket"},
        }
    )
    assert "link bucket as asked:" in shown(render_training, result)


def test_it_is_one_list() -> None:
    result = run("replayed")
    expected = [
        "replayed", "compute emulated 50 ms", f"codec SUBSTITUTED: {SUBSTITUTED}",
        "link bucket as asked: bytes are charged, not measured",
    ]  # fmt: skip
    assert assumptions(result.cells, result) == expected
    assert assumptions(result.cells[:1], result) == [expected[0], expected[1], expected[3]]


def cells_of(places: list[dict[str, Any]]) -> list[Cell]:
    return [
        make_cell(method, [ms], id=f"{number}/{method}", axes=axes, execution=str(axes.get("execution", "replayed")),
                  bandwidth_bps=rate, link=make_link(requested_bps=rate, shape=format_rate(rate)))
        for number, axes in enumerate(places)
        for rate in (10**8, 10**9)
        for method, ms in (("dense", 1e10 / rate + 30.0 + number), ("topk", 50.0 + 10 * number))
    ]  # fmt: skip


def test_a_sweep_says_it_of_each_place() -> None:
    """Its settings stand with its places, and none at the top where they differ."""
    places = [{"compute": "20ms"}, {"compute": "50ms"}]
    runs = [
        {"axes": axes, "settings": {"compute_s": seconds, "link": "tc"}}
        for axes, seconds in zip(places, (0.02, 0.05), strict=True)
    ]
    scenario = {"model": "simple_cnn", "sweep": {"runs": runs, "cells": {}}}
    result = make_result(cells_of(places), scenario=scenario)
    assert assumptions(result.cells, result)[1] == "compute emulated 20 ms, 50 ms"
    made = Collection([Source("sweep.json", result)])
    headings = [block.heading for block in made.blocks]
    assert headings[0] == "8 workers, 100 Mbit/s, replayed, compute emulated 20 ms"
    assert headings[-1] == "8 workers, 1 Gbit/s, replayed, compute emulated 50 ms"
    rows = csv.DictReader(io.StringIO(tidy.table(made)))
    assert {(json.loads(row["axes"])["compute"], row["assumed"]) for row in rows} == {
        ("20ms", "replayed; compute emulated 20 ms"),
        ("50ms", "replayed; compute emulated 50 ms"),
    }
    # Two places that differ in an axis alone are two curves, each with its break-even.
    text = shown(render_break_evens, result.cells)
    assert "compute=20ms" in text
    assert "compute=50ms" in text
    assert text.count("pays below") == 2


def test_a_label_names_a_thing_once() -> None:
    places = [{"execution": "replayed", "delay": "5ms"}, {"execution": "concurrent", "delay": "5ms"}]
    result = make_result(cells_of(places), scenario={"model": "simple_cnn"})
    made = Collection([Source("sweep.json", result)])
    for block in made.blocks:
        way = block.cells[0].execution
        assert block.title.count(way) == 1, block.title
        assert block.heading.count(way) == 1, block.heading
        assert "delay=" not in block.title, "the link's own words tell it"
    names = [each["name"] for each in json.loads(ci.github_benchmark(made))]
    assert all(name.count("replayed") + name.count("concurrent") == 1 for name in names)
    assert len(set(names)) == len(names)
    text = shown(render_break_evens, result.cells)
    assert all(line.count("replayed") <= 1 for line in text.splitlines())
    text = shown(render_result, run("replayed"))
    assert text.lower().count("replayed") == 1


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ((1, 1), "median of 1 run"),
        ((3, 3), "median of 3 runs ± range (a 75% interval)"),
        ((1, 3), "median of 1 to 3 runs ± range (at least a 50% interval, none of one run)"),
        ((2, 7), "median of 2 to 7 runs ± range (at least a 50% interval)"),
        ((6, 7), "median of 6 to 7 runs ± a 95% interval"),
    ],
)
def test_what_an_interval_is_worth_stands_everywhere(runs: tuple[int, int], says: str) -> None:
    """In the same words: a ± of three runs is no 95% interval in one exporter and a range in another."""
    ways = {"dense": 100.0, "topk": 50.0}
    cells = [
        make_cell(method, [ms + number for number in range(count)])
        for (method, ms), count in zip(ways.items(), runs, strict=True)
    ]
    shown_in = everywhere(make_result(cells))
    for where in ("run", "sweep", "html", "markdown"):
        assert f"ms per step, slowest rank, {says}" in shown_in[where], where
    assert says.replace("±", r"$\pm$").replace("%", r"\%") in shown_in["latex"]
    assert ("step±95%" in shown_in["sweep"]) == ("step±95%" in shown_in["run"]) == ("95%" in says)
    assert ("by 5% or more" in shown_in["sweep"]) == (min(runs) > 4)


def test_what_was_published_has_its_assumptions_on_the_page() -> None:
    path = Path(__file__).parent.parent / "reports" / "headline-resnet50.json"
    for where, text in everywhere(load(path)).items():
        assert "compute emulated 50 ms" in text, where
    made = sweep(bandwidths=(10**8, 10**9))
    assert "replayed" in tidy.table(Collection([Source("s.json", made)]))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            LinkUnavailable(
                "no netem", hint="use --link bucket, which has delay; or R", remedy="R", wanted=("--delay",)
            ),
            "R; or leave --delay away: the rate needs neither; netsim run and netsim train need no tc: --link bucket, "
            "which has delay and jitter",
        ),
        (
            LinkUnavailable("no netem", hint="R", remedy="R", wanted=("--delay", "--loss")),
            "R; or leave --delay and --loss away: the rate needs neither; no other link has loss",
        ),
        (
            LinkUnavailable("no tool", hint="install T, or use --link bucket", remedy="install T"),
            "install T; netsim run and netsim train need no tc: --link bucket",
        ),
        (
            LinkUnavailable("tc needs Linux", hint="use --link bucket"),
            "netsim doctor says more; netsim run and netsim train need no tc: --link bucket",
        ),
        (
            LinkUnavailable("no bbr", hint="it has cubic"),
            "it has cubic; netsim run and netsim train need no tc: --link bucket",
        ),
    ],
)
def test_what_launch_cannot_do_says_what_can(
    error: LinkUnavailable, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its advice is whole: what makes tc work, what to leave away, and which commands need no tc."""

    class Refusing(TcLink):
        def __enter__(self) -> TcLink:
            raise error

    monkeypatch.setattr(launched, "TcLink", Refusing)
    scenario = build(Scenario, {"workers": 2})
    with pytest.raises(LinkUnavailable) as raised:
        launched.launch_program(
            scenario, ["true"], io.BytesIO(), io.BytesIO(),
            one_per_node=False, timeout_s=None, command=[], report=lambda _: None,
        )  # fmt: skip
    assert raised.value.message == f"netsim launch needs tc: {error.message}"
    assert raised.value.hint == expected
