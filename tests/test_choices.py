"""What netsim chose by itself stands below the table of every command, in the same words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from netsim_ddp.report.choices import choices
from netsim_ddp.report.collection import Collection, Source
from netsim_ddp.report.facts import sentences
from netsim_ddp.report.terminal.result import render_result
from netsim_ddp.report.terminal.sweep import render_sweep
from netsim_ddp.report.terminal.training import render_training
from netsim_ddp.results.record import Result
from tests.results_factory import make_cell, make_result, training

WHOLE = "Under adamw topk sent parameters of fewer than 20,000 entries whole (dense_below, docs/training.md)"
SPLIT = "topk sent its entries by split-reduce (fewer bytes) at 8 workers."


def measured(**axes: Any) -> Result:
    params = {"ratio": 0.01, "dense_below": 20_000, "collective": "split"}
    cells = [
        make_cell("dense", [1000, 1010, 1020], id="dense", axes=axes),
        make_cell("topk", [100, 101, 102], id="topk,dense_below=20000,ratio=0.01", params=params, axes=axes),
    ]
    result = make_result(cells)
    return result.model_copy(update={"scenario": result.scenario | {"optimizer": "adamw"}})


def trained() -> Result:
    result = training()
    result.cells[-1].params |= {"dense_below": 20_000, "collective": "split"}
    return result.model_copy(update={"scenario": result.scenario | {"optimizer": "adamw"}})


@pytest.mark.parametrize(
    ("render", "result"),
    [
        (render_result, measured()),
        (render_sweep, measured(bandwidth="1 Gbit/s")),
        (render_training, trained()),
    ],
    ids=["run", "sweep and predict", "train"],
)
def test_below_the_table_of_every_command(render: Callable[[Result, Console], None], result: Result) -> None:
    console = Console(width=80, record=True, force_terminal=False)
    render(result, console)
    said = " ".join(console.export_text().split())
    assert WHOLE in said
    assert "topk sent its entries by split-reduce (fewer bytes) at" in said
    collection = Collection([Source("result.json", result)])
    page = " ".join(sentences(collection.sources[0], collection.blocks))
    assert WHOLE in page


def test_each_place_has_its_collective() -> None:
    result = measured()
    assert choices(result)[1:] == [SPLIT]
    few, many, more = (result.cells[-1].model_copy(deep=True) for _ in range(3))
    few.params["collective"], few.workers, more.workers = "allgather", 4, 16
    two = result.model_copy(update={"cells": [few, many, more]})
    assert choices(two)[1:] == [
        "topk sent its entries by all-gather (fewer rounds for no more bytes) at 4 workers, by split-reduce (fewer "
        "bytes) at 8, 16 workers."
    ]
    few.workers, few.bandwidth_bps = many.workers, 10**7
    (said,) = choices(two)[1:]
    assert "no more bytes) at 8 workers and " in said


def test_plain_topk_is_told_from_what_sends_small_parameters_whole() -> None:
    result = measured()
    plain = make_cell("topk", [100], id="topk,dense_below=0,ratio=0.01", params={"dense_below": 0})
    said = choices(result.model_copy(update={"cells": [*result.cells, plain]}))
    assert said[0].startswith("Under adamw topk,dense_below=20000 sent parameters")


def test_what_was_asked_for_is_not_told_again() -> None:
    result = measured()
    result.cells[-1].id = "topk,collective=split,dense_below=20000,ratio=0.01"
    result.scenario["optimizer"] = "sgd"
    assert choices(result) == []
