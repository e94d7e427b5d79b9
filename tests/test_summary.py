"""Summaries: phases that add up, and each ratio against its own definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsim_ddp.results.record import Cell, RepeatRecord, Summary
from netsim_ddp.results.summary import PHASES, elapsed_step_s, notes, slowest_steps, summarise
from tests.results_factory import make_cell, make_link, make_rank, make_step


def summary(cell: Cell) -> Summary:
    assert cell.summary is not None
    return cell.summary


def phase_sum(found: Summary) -> float:
    return math.fsum(getattr(found, name) for name in PHASES)


def test_a_step_is_its_slowest_ranks() -> None:
    fast = make_rank([make_step(100), make_step(300)])
    slow = make_rank([make_step(200, compute=150), make_step(100)], rank=1)
    steps = slowest_steps(RepeatRecord(ranks=[fast, slow]))
    assert [step.wall_s for step in steps] == [0.2, 0.3]
    assert [step.compute_s for step in steps] == [0.15, 0.05], "phases are the slowest rank's, step by step"


def test_only_steps_that_every_rank_finished_count() -> None:
    ranks = [make_rank([make_step(100)] * 3), make_rank([make_step(100)] * 2, rank=1)]
    assert len(slowest_steps(RepeatRecord(ranks=ranks))) == 2
    assert slowest_steps(RepeatRecord(ranks=[])) == []


@given(
    st.lists(
        st.lists(st.floats(min_value=60, max_value=2000), min_size=1, max_size=6), min_size=1, max_size=4
    )
)
def test_phases_add_up_to_the_step(runs: list[list[float]]) -> None:
    repeats = [RepeatRecord(ranks=[make_rank([make_step(ms, compress=5) for ms in run])]) for run in runs]
    cell = make_cell("dense", []).model_copy(update={"repeats": repeats})
    found = summary(summarise([cell])[0])
    assert phase_sum(found) == pytest.approx(found.step_s.median, rel=1e-9)
    assert found.efficiency == pytest.approx(found.compute_s / found.step_s.median)


def test_an_outlier_step_moves_neither_the_step_nor_the_sum() -> None:
    steps = [make_step(100)] * 9 + [make_step(10_000)]
    cell = make_cell("dense", []).model_copy(update={"repeats": [RepeatRecord(ranks=[make_rank(steps)])]})
    found = summary(summarise([cell])[0])
    assert found.step_s.median == pytest.approx(0.1)
    assert phase_sum(found) == pytest.approx(0.1)


def test_arithmetic_of_the_ratios() -> None:
    dense, overlapped, topk = (
        summary(cell)
        for cell in summarise(
            [
                make_cell("dense", [1000, 1010, 1020], tx=200e6),
                make_cell("dense", [800, 808, 816], tx=200e6, overlap=True),
                make_cell("topk", [100, 101, 102], tx=2e6, residual=10**8),
            ]
        )
    )
    assert dense.speedup == 1.0
    assert overlapped.speedup_vs_overlapped == 1.0
    assert overlapped.speedup == pytest.approx(1010 / 808)
    assert topk.speedup == pytest.approx(10.0)
    assert topk.speedup_vs_overlapped == pytest.approx(8.0)
    assert topk.wire_reduction == pytest.approx(100.0)
    assert topk.tx_bytes_per_step == pytest.approx(2e6)
    assert topk.payload_bytes_per_step == pytest.approx(1e6)
    assert topk.residual_bytes == 10**8
    assert topk.peak_memory_bytes == 1001
    assert topk.step_s.ci_low == pytest.approx(0.1)


def test_bytes_are_the_busiest_ranks() -> None:
    ranks = [make_rank([make_step(100)] * 4, rank=rank, tx=tx) for rank, tx in enumerate((1e6, 3e6))]
    cell = make_cell("topk", []).model_copy(update={"repeats": [RepeatRecord(ranks=ranks)]})
    assert summary(summarise([cell])[0]).tx_bytes_per_step == pytest.approx(3e6)


@pytest.mark.parametrize(
    "change",
    [
        {"workers": 4},
        {"bandwidth_bps": 10**8},
        {"execution": "replayed"},
        {"link": make_link("bucket")},
        {"device": "cuda"},
        {"method": "fp16"},
        {"params": {"values": "fp16"}},
    ],
)
def test_only_a_dense_cell_of_the_same_setting_is_a_baseline(change: dict[str, Any]) -> None:
    dense = make_cell("dense", [1000], tx=1e6).model_copy(update=change)
    found = summary(summarise([dense, make_cell("topk", [100], tx=1e4)])[1])
    assert (found.speedup, found.speedup_vs_overlapped, found.wire_reduction) == (None, None, None)


def test_the_baseline_of_the_same_threads_is_preferred() -> None:
    cells = [
        make_cell("dense", [1000], threads=1),
        make_cell("dense", [600], threads=2),
        make_cell("topk", [100], threads=2),
    ]
    assert summary(summarise(cells)[2]).speedup == pytest.approx(6.0)


def test_a_host_limited_baseline_bounds_the_speedup_from_above() -> None:
    dense = make_cell("dense", [1000], tx=100e6, link=make_link(host_limited=True))
    overlapped = make_cell("dense", [900], tx=100e6, overlap=True)
    own, other, topk = map(summary, summarise([dense, overlapped, make_cell("topk", [100], tx=1e6)]))
    assert (own.speedup, own.speedup_bound) == (None, "none")
    assert (other.speedup_bound, other.speedup_vs_overlapped_bound) == ("<=", "")
    assert topk.speedup == pytest.approx(10.0)
    assert topk.speedup_bound == "<="
    assert topk.speedup_vs_overlapped == pytest.approx(9.0)
    assert topk.wire_reduction == pytest.approx(100.0)


@pytest.mark.parametrize(
    "change", [{"shape": "1 Gbit/s; delay 20 ms"}, {"shape": "1 Gbit/s; rank 1 1 Mbit/s"}]
)
def test_cells_of_unlike_links_are_not_compared(change: dict[str, Any]) -> None:
    dense = make_cell("dense", [1000], link=make_link(shape="1 Gbit/s"))
    topk = make_cell("topk", [100], link=make_link(**change))
    assert summary(summarise([dense, topk])[1]).speedup is None


def test_nothing_is_divided_by_zero() -> None:
    zero = make_cell("dense", [0], phases={"compute": 0, "other": 0, "communicate": 0})
    found = summary(summarise([zero])[0])
    assert (found.efficiency, found.speedup, found.wire_reduction) == (0.0, None, None)
    assert phase_sum(found) == 0
    unexplained = make_cell("dense", [5], phases={"compute": 0, "other": 0, "communicate": 0})
    assert summary(summarise([unexplained])[0]).other_s == pytest.approx(0.005)


def test_missing_repeats_give_no_summary() -> None:
    empty = make_cell("topk", [])
    no_steps = make_cell("topk", [100], steps=0)
    no_ranks = make_cell("topk", [100], ranks=0)
    assert [cell.summary for cell in summarise([empty, no_steps, no_ranks])] == [None, None, None]


def test_a_cell_that_failed_later_is_summarised_from_what_it_has() -> None:
    cell = make_cell("topk", [100, 110]).model_copy(
        update={
            "repeats": [*make_cell("topk", [100, 110]).repeats, RepeatRecord(ranks=[])],
            "error": "rank 1 died",
        }
    )
    assert summary(summarise([cell])[0]).step_s.median == pytest.approx(0.105)


def test_summarise_leaves_its_argument_alone_and_repeats_itself() -> None:
    cells = [make_cell("dense", [1000]), make_cell("topk", [100])]
    once = summarise(cells)
    assert all(cell.summary is None for cell in cells)
    assert summarise(once) == once


def test_losses_are_means_over_ranks_and_a_nan_survives() -> None:
    ranks = [
        make_rank([make_step(100, loss=2.0), make_step(100, loss=1.0)]),
        make_rank([make_step(100, loss=4.0), make_step(100, loss=math.nan)], rank=1),
    ]
    cell = make_cell("topk", []).model_copy(update={"repeats": [RepeatRecord(ranks=ranks)]})
    found = summary(summarise([cell])[0])
    assert found.first_loss == 3.0
    assert found.last_loss is not None
    assert math.isnan(found.last_loss)
    assert summary(summarise([make_cell("topk", [100])])[0]).first_loss is None


def test_elapsed_is_the_other_clock() -> None:
    assert elapsed_step_s(make_cell("dense", [100, 200, 120])) == pytest.approx(0.36)
    assert elapsed_step_s(make_cell("dense", [])) is None


def test_notes_name_the_cell_and_the_number() -> None:
    assert notes([make_cell("dense", [100, 101, 102])]) == []
    (noisy,) = notes([make_cell("dense", [100, 130, 100])])
    assert "dense: repeats differ by 30% (100 to 130 ms)" in noisy
    steps = [make_step(200)] * 3 + [make_step(150)] * 3 + [make_step(100)] * 3
    cold = make_cell("dense", []).model_copy(update={"repeats": [RepeatRecord(ranks=[make_rank(steps)])]})
    assert notes([cold]) == ["dense: run 1 ends 50% faster than it starts: raise --warmup"]
    (hot,) = notes([cold.model_copy(update={"repeats": [RepeatRecord(ranks=[make_rank(steps[::-1])])]})])
    assert "100% slower" in hot
    (gap,) = notes([make_cell("dense", [100], phases={"communicate": 29})])
    assert "add up to 80.0%" in gap
