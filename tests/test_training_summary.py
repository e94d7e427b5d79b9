"""From curves to a verdict: pairs of seeds, intervals, the test set's resolution, time to an accuracy. No torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
from rich.console import Console

from netsim_ddp.report.terminal.training import render_training, sentences
from netsim_ddp.results.fields import Tool
from netsim_ddp.results.files import parse
from netsim_ddp.results.record import Cell, LinkRecord, RankRecord, RepeatRecord, Result
from netsim_ddp.results.training import summarise_training, time_to
from netsim_ddp.results.training_record import EpochRecord, Recipe, TrainingSummary

SAMPLES = 400


def epoch(number: int, accuracy: float, seconds: float, sent: int) -> EpochRecord:
    return EpochRecord(
        epoch=number,
        steps=10,
        learning_rate=0.1,
        train_loss=1.0,
        validation_loss=1.1 - accuracy,
        validation_accuracy=accuracy,
        elapsed_s=seconds,
        tx_bytes=sent,
    )


def cell(
    method: str, finals: list[float], *, per_epoch_s: float = 1.0, sent: int = 1000, **more: Any
) -> Cell:
    """Three epochs per seed that end at ``finals``; each epoch before is 0.05 lower."""
    repeats = [
        RepeatRecord(
            seed=seed,
            ranks=[
                RankRecord(
                    rank=0, tx_bytes=3 * sent, rx_bytes=0, payload_bytes=0, peak_memory_bytes=1, steps=[]
                )
            ],
            epochs=[epoch(n, last - 0.05 * (3 - n), per_epoch_s * n, sent) for n in (1, 2, 3)],
        )
        for seed, last in enumerate(finals)
    ]
    values: dict[str, Any] = {"workers": 4, "bandwidth_bps": None, "threads": 1, **more}
    return Cell(
        id=method,
        method=method.split(",")[0],
        link=LinkRecord(
            mechanism="none", requested_bps=None, configured_bps=None, measured_bps=None, ceiling_bps=None
        ),
        recipe=Recipe(optimizer="sgd", learning_rate=0.1, epochs=3, validation_samples=SAMPLES),
        repeats=repeats,
        **values,
    )


def summary(cells: list[Cell], index: int = 1) -> TrainingSummary:
    found = summarise_training(cells)[index].training
    assert found is not None
    return found


def test_differences_are_paired_by_seed() -> None:
    # Seeds differ by 10 points, the methods by half a point on each.
    found = summary([cell("dense", [0.85, 0.90, 0.95]), cell("topk", [0.845, 0.895, 0.945])])
    assert found.difference_points is not None
    assert found.difference_points.mean == pytest.approx(-0.5)
    assert found.difference_points.ci_high == pytest.approx(-0.5)
    assert found.accuracy is not None
    assert found.accuracy.ci_high is not None
    # t(2) = 4.3027 for 95%.
    assert found.accuracy.ci_high - found.accuracy.mean == pytest.approx(4.3027 * 0.05 / 3**0.5, rel=1e-4)
    assert found.resolution_points == 100 / SAMPLES
    assert found.resolvable_points == found.resolution_points  # no less than one sample
    assert (found.verdict, found.comparisons, found.seeds_needed) == ("not resolvable", 2, 5)


SEEDS = [0.0, 0.002, -0.002, 0.001, -0.001, 0.003, -0.003, 0.0005]


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [
        (0.0003, "within"),
        (-0.007, "worse"),  # by less than a point, and surely so: worse beats within
        (-0.02, "worse"),
        (0.02, "better"),
    ],
)
def test_verdicts(shift: float, verdict: str) -> None:
    ours = [0.90 + shift + noise / 4 for noise in SEEDS]
    assert summary([cell("dense", [0.90] * len(ours)), cell("topk", ours)]).verdict == verdict
    few = summary([cell("dense", [0.90] * 4), cell("topk", ours[:4])])
    assert few.verdict == "not resolvable", "four seeds claim nothing"


def test_seeds_that_disagree_decide_nothing() -> None:
    ours = [0.90 + 10 * noise for noise in SEEDS]
    assert summary([cell("dense", [0.90] * len(ours)), cell("topk", ours)]).verdict == "not resolvable"


def with_loss(made: Cell, losses: list[float]) -> Cell:
    for repeat, loss in zip(made.repeats, losses, strict=True):
        repeat.epochs[-1].validation_loss = loss
    return made


def test_a_loss_that_is_worse_is_worse_whatever_the_accuracy_says() -> None:
    ours, dense = [0.90 + noise for noise in SEEDS], cell("dense", [0.90] * len(SEEDS))
    lost = with_loss(cell("topk", ours), [0.31 + noise for noise in SEEDS])
    found = summary([dense, lost])
    assert (found.accuracy_verdict, found.loss_verdict, found.verdict) == ("not resolvable", "worse", "worse")
    (said, *_) = sentences(summarise_training([dense, lost]))
    assert said.startswith("topk: worse than dense in loss (+0.01")
    assert "validation loss +55" in said
    base = with_loss(cell("dense", [0.90] * len(SEEDS)), [0.2 + 0.03 * i for i in range(8)])
    hinted = with_loss(cell("topk", ours), [0.22 + 0.031 * i for i in range(8)])
    alone = summary([base, hinted])
    assert (alone.loss_verdict, alone.verdict) == ("worse", "worse")
    many = summarise_training([base, hinted, *(cell(f"topk,{n}", ours) for n in range(4))])[1].training
    assert many is not None
    assert (many.loss_verdict, many.verdict) == ("not resolvable", "not resolvable"), "not within, either"
    diverged = summary([dense, with_loss(cell("topk", ours), [math.nan, *[0.2] * 7])])
    assert (diverged.loss_verdict, diverged.verdict) == ("worse", "worse")


def test_more_methods_need_more_seeds() -> None:
    ours = [0.88 + noise / 4 for noise in SEEDS[:5]]
    dense = cell("dense", [0.90 + noise / 9 for noise in SEEDS[:5]])
    assert summary([dense, cell("topk", ours)]).verdict == "worse"
    found = summarise_training([dense, *(cell(f"topk,{n}", ours) for n in range(4))])[1].training
    assert found is not None
    assert (found.comparisons, found.seeds_needed, found.verdict) == (8, 6, "not resolvable")


def test_only_seeds_that_both_have_are_compared_and_unfinished_ones_do_not_count() -> None:
    other = cell("topk", [0.90, 0.90, 0.10])
    other.repeats[2].ranks = []
    found = summary([cell("dense", [0.91, 0.91, 0.91, 0.91]), other])
    assert found.seeds == [0, 1]
    assert found.difference_points is not None
    assert found.difference_points.mean == pytest.approx(-1)


def test_time_to_denses_accuracy_and_bytes() -> None:
    dense, topk = cell("dense", [0.9], per_epoch_s=10, sent=1000), cell("topk", [0.96], sent=10)
    found = summary([dense, topk])
    assert (found.time_to_accuracy_s, found.reached) == (2.0, 1)  # 0.91 after its second epoch
    assert found.time_speedup == pytest.approx(30 / 2)
    assert found.wire_reduction == pytest.approx(100)
    assert found.tx_bytes_per_step == 1.0
    slow = summary([dense, cell("topk", [0.88])])
    assert (slow.time_to_accuracy_s, slow.reached, slow.time_speedup) == (None, 0, None)
    near = summary([dense, cell("topk", [0.891])])  # as good as dense, to a point
    assert (near.time_to_accuracy_s, near.reached) == (3.0, 1)
    assert time_to(dense.repeats[0].epochs, 0.8) == 10


def test_a_target_replaces_denses_accuracy() -> None:
    cells = [cell("dense", [0.9], per_epoch_s=10), cell("topk", [0.89])]
    for each in cells:
        assert each.recipe is not None
        each.recipe.target = 0.83
    assert summary(cells).time_speedup == pytest.approx(20 / 2)


@pytest.mark.parametrize("axis", ["learning_rate", "tune_lr"])
def test_a_learning_rate_does_not_part_a_training_from_its_dense_baseline(axis: str) -> None:
    """Each method is trained at the rate that suits it; dense of the same rate is taken where there is one."""
    dense = cell("dense", [0.90] * len(SEEDS), axes={axis: 0.1, "workers": 4})
    ours = cell("topk", [0.80 + noise for noise in SEEDS], axes={axis: 0.5, "workers": 4})
    assert summary([dense, ours]).verdict == "worse"
    same = cell("dense", [0.80] * len(SEEDS), axes={axis: 0.5, "workers": 4})
    assert summary([dense, ours, same]).verdict == "within"
    elsewhere = dense.model_copy(update={"axes": {axis: 0.1, "batch_size": 32}})
    assert summary([elsewhere, ours]).verdict is None


def test_cells_of_another_setting_are_no_baseline() -> None:
    dense, other = cell("dense", [0.9, 0.9], workers=8), cell("topk", [0.8, 0.8])
    assert summary([dense, other]).verdict is None
    along = [
        cell("dense", [0.9] * 7, axes={"batch_size": 16}),
        cell("topk", [0.9] * 7, axes={"batch_size": 16, "ratio": 0.1}),
    ]
    assert summary(along).verdict == "within"
    along[1].axes = {"batch_size": 32}
    assert summary(along).verdict is None


def result(cells: list[Cell]) -> Result:
    return Result(
        kind="training",
        tool=Tool(version="0"),
        created_utc="2026-01-01T00:00:00+00:00",
        status="complete",
        environment={},
        scenario={"model": "simple_cnn", "dataset": "digits", "epochs": 3, "repeats": 2, "batch_size": 32},
        command="netsim train",
        cells=summarise_training(cells),
    )


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_fits_and_says_what_it_means(width: int) -> None:
    seeds = [0.90 + noise for noise in SEEDS]
    cells = [
        cell("dense", seeds, per_epoch_s=100, sent=4_512_000),
        cell("topk", [value + 0.001 for value in seeds], params={"ratio": 0.01}),
        cell(
            "topk,feedback=off", [value - 0.3 for value in seeds], params={"ratio": 0.01, "feedback": False}
        ),
    ]
    console = Console(width=width, record=True, force_terminal=False)
    found = result(cells)
    render_training(found, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "within 1 point of dense" in " ".join(text.split())
    assert "worse than dense in accuracy and loss" in " ".join(text.split())
    assert "4 comparisons, Holm at 5%" in " ".join(text.split())
    assert "400 validation samples" in " ".join(text.split())
    assert parse(found.model_dump(mode="json"), source="itself") == found


def test_few_seeds_are_said_to_claim_nothing() -> None:
    found = summarise_training([cell("dense", [0.9]), cell("topk", [0.95])])
    assert sentences(found)[0].startswith(
        "topk: +5.00 points, validation loss -25% over 1 seed; a claim needs 5 seeds"
    )
