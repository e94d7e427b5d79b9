"""What a sweep runs, in which order, and what it keeps: with an executor that answers at once."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from netsim_ddp.errors import LinkUnavailable, NetsimError, RankError, UsageError
from netsim_ddp.report.terminal.sweep import render_sweep
from netsim_ddp.report.terminal.sweep_progress import SweepTable
from netsim_ddp.results.files import load, parse, save, to_json
from netsim_ddp.results.record import Cell, LinkRecord, RankRecord, RepeatRecord, Result, StepRecord
from netsim_ddp.results.summary import summarise
from netsim_ddp.scenario import Scenario, TrainScenario
from netsim_ddp.scenario.matrix import expand
from netsim_ddp.scenario.matrix import parse as parse_matrix
from netsim_ddp.sweep.earlier import read_earlier, still_valid
from netsim_ddp.sweep.plan import MAX_NAMESPACES, Run, batches, order, plan
from netsim_ddp.sweep.runner import Progress, Sweep
from netsim_ddp.sweep.selection import compile_expression
from netsim_ddp.sweep.source import Command, read_plan
from tests.commands import answer, complaint
from tests.results_factory import make_cell, make_link, make_result

SMALL = """
title: Small
question: Does it pay?
link: none
workers: 2
threads: 1
execution: concurrent
repeats: 3
methods: [dense, topk, fp16]
baseline: none
matrix:
  bandwidth: [100mbps, 1gbps]
"""


def runs_of(text: str = SMALL) -> list[Run]:
    return plan(expand(parse_matrix(yaml.safe_load(text), "s.yaml"), Scenario))


def ids(runs: Sequence[Run]) -> list[str]:
    return [cell.id for run in runs for cell in run.cells]


def test_combinations_that_differ_in_their_methods_alone_are_one_run() -> None:
    (run,) = runs_of("matrix: {ratio: [1%, 10%], methods: [dense, topk, fp16]}")
    assert [cell.id for cell in run.cells] == [
        "dense,overlap=off",
        "dense,overlap=on",
        "fp16,overlap=on",
        "topk,ratio=0.01",
        "fp16",
        "topk,ratio=0.1",
    ]
    assert [dict(cell.axes) for cell in run.cells] == [
        {"methods": "dense"},
        {"methods": "dense"},
        {},
        {"ratio": "1%", "methods": "topk"},
        {"methods": "fp16"},
        {"ratio": "10%", "methods": "topk"},
    ]


def test_every_cell_says_where_it_stands() -> None:
    first, second = runs_of()
    assert first.label == "bandwidth=100mbps"
    assert second.cells[0].id == "bandwidth=1gbps/dense,overlap=off"
    assert {tuple(cell.axes.items()) for cell in second.cells} == {(("bandwidth", "1gbps"),)}


def test_an_identity_is_what_is_measured_and_not_how_often() -> None:
    def identities(text: str) -> list[str]:
        return [cell.identity for run in runs_of(text) for cell in run.cells]

    base = identities(SMALL)
    assert identities(SMALL + "timeout: 10s\n") == base
    assert identities(SMALL.replace("repeats: 3", "repeats: 9")) == base
    assert set(identities(SMALL + "batch_size: 8\n")).isdisjoint(base)
    assert len(set(base)) == len(base)


@pytest.mark.parametrize("key", ["checkpoint", "log_dir"])
def test_trainings_do_not_share_a_folder(key: str) -> None:
    data = {"epochs": 1, key: "folder", "matrix": {"workers": [1, 2]}}
    with pytest.raises(UsageError, match=f"{key} is one folder, and a sweep has many trainings"):
        plan(expand(parse_matrix(data, "s.yaml"), TrainScenario))


def test_repeats_go_there_and_back() -> None:
    runs = runs_of()
    missing = {name: [0, 1] for name in ids(runs)}
    units = order(runs, missing)
    first, second = [u.cell.id for u in units[:8]], [u.cell.id for u in units[8:]]
    assert first == ids(runs)
    assert second == first[::-1]
    assert [unit.repeats for unit in units] == [(0,)] * 8 + [(1,)] * 8
    uneven = order(runs, {first[0]: [2], first[1]: [0, 1, 2]})
    assert [(unit.cell.id, unit.repeats) for unit in uneven] == [
        (first[0], (2,)),
        (first[1], (0,)),
        (first[1], (1,)),
        (first[1], (2,)),
    ]


def test_no_more_links_stand_at_once_than_a_helper_can_hold() -> None:
    rates = [f"{rate}mbps" for rate in range(1, 41)]
    runs = runs_of(yaml.safe_dump({"workers": 8, "matrix": {"bandwidth": rates}}))
    found = list(batches(runs))
    assert [run for batch in found for run in batch] == runs
    assert len(found) == 3
    assert all(9 * len(batch) <= MAX_NAMESPACES for batch in found)


@pytest.mark.parametrize(
    ("text", "matched"),
    [
        ("topk", {"a/topk", "b/topk", "a/topk-dense"}),
        ("topk and not dense", {"a/topk", "b/topk"}),
        ("not (topk or a/)", {"b/dense"}),
        ("a/ and topk or b/ and DENSE", {"a/topk", "a/topk-dense", "b/dense"}),
        ("not not b/", {"b/topk", "b/dense"}),
    ],
)
def test_expressions_choose_by_words(text: str, matched: set[str]) -> None:
    names = {"a/topk", "b/topk", "a/topk-dense", "a/dense", "b/dense"}
    assert {name for name in names if compile_expression(text)(name)} == matched


@pytest.mark.parametrize(
    "text", ["", "and", "a or", "(a", "a)", "a b", "not", "a and (or b)", "(" * 500 + "a"]
)
def test_what_is_no_expression_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="is not an expression"):
        compile_expression(text)


class Machine:
    """Answers a run at once: every method has a step time, and some fail."""

    def __init__(self, fail: Callable[[Any], NetsimError | None] = lambda _: None) -> None:
        self.fail, self.ran = fail, []  # type: ignore[var-annotated]
        self._noise = random.Random(0)

    def execute(self, settings: Any, **_: Any) -> Result:
        (method,) = settings.methods
        self.ran.append((settings.bandwidth_bps, method.id))
        if (error := self.fail(settings)) is not None:
            raise error
        base = {
            "dense": 40e6 / settings.bandwidth_bps,
            "topk": 0.1,
            "fp16": 0.02 + 20e6 / settings.bandwidth_bps,
        }
        seconds = (0.02 + base[method.name]) * self._noise.uniform(0.98, 1.02)
        params = dict(method.params)
        link = LinkRecord(
            mechanism="none",
            requested_bps=settings.bandwidth_bps,
            configured_bps=settings.bandwidth_bps,
            measured_bps=None,
            ceiling_bps=None,
        )
        cell = Cell(
            id=method.id,
            method=method.name,
            overlap=bool(params.pop("overlap", False)),
            params=params,
            model=settings.model,
            dataset=settings.dataset,
            workers=settings.workers,
            bandwidth_bps=settings.bandwidth_bps,
            threads=1,
            link=link,
            repeats=[RepeatRecord(ranks=[rank(0, seconds), rank(1, seconds)])],
        )
        return Result.model_validate(
            {
                "tool": {"version": "0"},
                "created_utc": "",
                "status": "complete",
                "environment": {},
                "scenario": {},
                "command": "",
                "cells": [cell],
            }
        )

    @property
    def command(self) -> Command:
        return Command(Scenario, self.execute, summarise)


def rank(number: int, seconds: float) -> RankRecord:
    names = ("compress", "wait", "decompress", "optimizer", "other")
    step = StepRecord(
        wall_s=seconds,
        elapsed_s=seconds,
        compute_s=0.02,
        communicate_s=seconds - 0.02,
        **{f"{name}_s": 0.0 for name in names},
    )
    return RankRecord(
        rank=number, tx_bytes=1000, rx_bytes=1000, payload_bytes=900, peak_memory_bytes=1, steps=[step, step]
    )


def swept(
    machine: Machine,
    text: str = SMALL,
    *,
    only: Callable[[str], bool] = lambda _: True,
    kept: Mapping[str, Cell] | None = None,
    path: Path | None = None,
    **options: Any,
) -> tuple[Sweep, Result, list[Progress]]:
    matrix = parse_matrix(yaml.safe_load(text), "s.yaml")
    runs = plan(expand(matrix, Scenario))
    chosen = frozenset(name for name in ids(runs) if only(name))
    going = Sweep("small", matrix, runs, selected=chosen, kept=kept or {}, known={}, **options)
    events: list[Progress] = []

    def keep(result: Result) -> None:
        if path is not None:
            save(result, path)

    result = going.execute(machine.command, command=["netsim"], report=events.append, save=keep)
    return going, result, events


def repeats(result: Result) -> dict[str, int]:
    return {cell.id: len(cell.repeats) for cell in result.cells}


def test_all_cells_are_measured_and_compared_within_their_place() -> None:
    going, result, events = swept(Machine())
    assert result.status == "complete"
    assert repeats(result) == dict.fromkeys(ids(going.runs), 3)
    assert parse(yaml.safe_load(to_json(result)), source="it") == result
    for cell in result.cells:
        assert cell.summary is not None
        dense = next(c for c in result.cells if c.axes == cell.axes and c.method == "dense")
        assert dense.summary is not None
        assert cell.summary.speedup == pytest.approx(dense.summary.step_s.median / cell.summary.step_s.median)
    counts = [(event.done, event.total) for event in events if event.kind == "done"]
    assert counts == [(number, 24) for number in range(1, 25)]
    left = [event.remaining_s for event in events if event.kind == "done"]
    assert left[-1] == 0


def fails_in(
    method: str, rate: int = 10**9, error: NetsimError | None = None
) -> Callable[[Any], NetsimError | None]:
    def fail(settings: Any) -> NetsimError | None:
        hit = settings.methods[0].name == method and settings.bandwidth_bps == rate
        return error or RankError("rank 1 died") if hit else None

    return fail


def test_a_cell_that_fails_is_marked_and_the_rest_go_on() -> None:
    going, result, _ = swept(Machine(fails_in("fp16")))
    assert [cell.id for cell in going.failed] == ["bandwidth=1gbps/fp16"]
    assert result.status == "partial"
    failed = next(cell for cell in result.cells if cell.error)
    assert (failed.id, failed.error, failed.repeats) == ("bandwidth=1gbps/fp16", "rank 1 died", [])
    assert sum(repeats(result).values()) == 7 * 3
    machine = Machine(fails_in("fp16"))
    swept(machine)
    assert machine.ran.count((10**9, "fp16")) == 1  # its other repeats are not tried


def test_a_link_that_cannot_be_made_fails_its_place_at_once() -> None:
    machine = Machine(
        fails_in("dense", error=LinkUnavailable("no netem here", hint="sudo modprobe sch_netem"))
    )
    going, result, _ = swept(machine)
    assert [cell.id for cell in going.failed] == ids(going.runs)[4:]
    assert {cell.error for cell in result.cells if cell.error} == {"no netem here (sudo modprobe sch_netem)"}
    assert len(machine.ran) == 4 * 3 + 1


def test_x_stops_at_the_first_failure() -> None:
    going, result, _ = swept(Machine(fails_in("fp16", 10**8)), stop_at_failure=True)
    assert going.stopped == "-x: stopped at bandwidth=100mbps/fp16"
    assert list(repeats(result)) == ids(going.runs)[:4]


def test_a_spent_budget_leaves_the_rest_for_later() -> None:
    going, result, _ = swept(Machine(), time_budget_s=0.0)
    assert going.stopped == "the time budget is spent"
    assert result.status == "failed"  # nothing was measured
    assert len(going.units) == 24


@pytest.mark.parametrize("after", [1, 5, 13, 23])
def test_a_stopped_sweep_goes_on_where_it_stopped(tmp_path: Path, after: int) -> None:
    path = tmp_path / "s.json"
    counter = itertools.count(1)

    def interrupt(_: Any) -> NetsimError | None:
        if next(counter) > after:
            raise KeyboardInterrupt
        return None

    with pytest.raises(KeyboardInterrupt):
        swept(Machine(interrupt), path=path)
    before = load(path)
    assert before.status == "partial"
    assert sum(repeats(before).values()) == after
    machine = Machine()
    kept = still_valid(before, runs_of())
    going, result, _ = swept(machine, kept=kept, path=path)
    assert result.status == load(path).status == "complete"
    assert len(machine.ran) == 24 - after
    assert repeats(result) == dict.fromkeys(ids(going.runs), 3)
    for cell in before.cells:  # nothing is measured again, nothing counted twice
        again = next(other for other in result.cells if other.id == cell.id)
        assert again.repeats[: len(cell.repeats)] == cell.repeats


def test_a_failed_cell_starts_afresh_and_one_with_other_settings_too(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    counter = itertools.count(1)

    def late(settings: Any) -> NetsimError | None:
        hit = settings.methods[0].name == "fp16" and settings.bandwidth_bps == 10**9
        return RankError("rank 1 died") if hit and next(counter) == 2 else None

    _, first, _ = swept(Machine(late), path=path)
    assert repeats(first)["bandwidth=1gbps/fp16"] == 1
    kept = still_valid(load(path), runs_of())
    assert "bandwidth=1gbps/fp16" not in kept
    machine = Machine()
    _, second, _ = swept(machine, kept=kept)
    assert machine.ran == [(10**9, "fp16")] * 3
    assert repeats(second)["bandwidth=1gbps/fp16"] == 3
    assert second.status == "complete"
    assert still_valid(load(path), runs_of(SMALL + "batch_size: 8\n")) == {}
    elsewhere = first.model_copy(update={"environment": {**first.environment, "cpu": "another"}})
    assert still_valid(elsewhere, runs_of()) == {}


def test_a_selection_leaves_the_others_as_they_are() -> None:
    _, first, _ = swept(Machine(), only=lambda name: "100mbps" in name)
    assert first.status == "partial"
    machine = Machine()
    kept = {cell.id: cell for cell in first.cells}
    _, second, _ = swept(machine, only=lambda name: "1gbps/topk" in name, kept=kept)
    assert machine.ran == [(10**9, "topk,ratio=0.01")] * 3
    assert len(second.cells) == 5


def test_what_is_no_sweep_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    assert read_earlier(path) is None
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="has no schema_version"):
        read_earlier(path)
    assert read_earlier(path, unless=True) is None


def shown(result: Result, width: int) -> str:
    console = Console(width=width, file=None, record=True, no_color=True)
    with console.capture() as captured:
        render_sweep(result, console)
    return captured.get()


@pytest.mark.parametrize("width", [80, 160])
def test_every_axis_has_a_column_of_its_own(width: int) -> None:
    cells = [
        make_cell(
            method, [ms], id=f"{rate},{delay}/{method}", axes={"bandwidth": rate, "queue": delay}, link=link
        )
        for rate, delay in itertools.product(("100mbps", "1gbps"), ("50ms", "200ms"))
        for link in [make_link(requested_bps=10**8 if rate == "100mbps" else 10**9, shape=f"{rate} {delay}")]
        for method, ms in (("dense", 100), ("topk", 20))
    ]
    text = shown(make_result(summarise(cells)), width)
    places = [" ".join(line.split()[:3]) for line in text.splitlines() if " dense " in line and "ms " in line]
    assert places == ["100mbps 50ms dense", "100mbps 200ms dense", "1gbps 50ms dense", "1gbps 200ms dense"]


@pytest.mark.parametrize("width", [48, 80, 160])
def test_the_table_fits_and_names_the_break_even(width: int) -> None:
    _, result, _ = swept(Machine(fails_in("fp16")))
    text = shown(result, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    for word in ("bandwidth", "method", "step±", "dense"):
        assert word in text
    flat = " ".join(text.split())
    # 20 ms + 40 Mbit / rate against 20 + 100 ms: equal at 400 Mbit/s, give or take 3% of noise.
    # Overlapped dense, in the column before, is broken even with too; two rates of it have no interval.
    assert width < 80 or re.search(r"topk 4[01]0 4[01]0 \(3\d0 to 4\d0\)", flat)
    assert "Failed: bandwidth=1gbps/fp16: rank 1 died." in flat
    assert ("comm" in text) == (width > 48)


def test_the_live_table_fits_its_screen() -> None:
    places = [(f"bandwidth={number}mbps", 3) for number in range(50)]
    table = SweepTable(places)
    table.start("bandwidth=30mbps", "topk, repeat 1 of 3", 90, 150, 75.0)
    console = Console(width=80, height=20, force_terminal=True, no_color=True)
    with console.capture() as captured:
        console.print(table.render(80, 20))
    lines = captured.get().splitlines()
    assert len(lines) <= 20
    assert any("bandwidth=30mbps" in line for line in lines)
    assert any("90/150  about 1 min left" in line for line in lines)


MISTAKES = {
    "nosuch": "scenario 'nosuch' is not known (known: accuracy,",
    "quick -k zzz": "-k 'zzz' matches none of 7 cells (--dry-run lists their ids)",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_gets_one_line(tmp_path: Path, words: str) -> None:
    assert complaint(["sweep", *words.split()], tmp_path).startswith(MISTAKES[words])


def test_the_result_of_a_sweep_is_a_scenario_and_that_of_a_run_is_none(tmp_path: Path) -> None:
    _, result, _ = swept(Machine())
    path = tmp_path / "any.json"
    save(result, path)
    name, matrix, _, runs = read_plan(str(path), ["steps=5"])
    assert (name, ids(runs), runs[0].settings.steps) == ("small", ids(runs_of()), 5)  # type: ignore[attr-defined]
    assert matrix.title == "Small"
    path.write_text('{"schema_version": 2, "scenario": {}}', encoding="utf-8")
    with pytest.raises(UsageError, match="is no result of a sweep"):
        read_plan(str(path))


def test_run_says_who_runs_a_matrix(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("matrix: {workers: [2, 4]}", encoding="utf-8")
    said = complaint(["run", "--config", "s.yaml"], tmp_path)
    assert said == "s.yaml is a matrix of runs (netsim sweep s.yaml)"
    done = answer(["sweep", "s.yaml", "--dry-run", "-k", "topk"], tmp_path)
    assert done.stdout.split("\n")[:-1] == [f"workers={count}/topk,ratio=0.01 x 3" for count in (2, 4)]
    assert "netsim: 2 of 8 cells in 2 places, 6 repeats to run: about " in done.stderr
    assert not (tmp_path / ".netsim").exists()
