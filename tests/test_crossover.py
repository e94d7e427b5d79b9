"""Break-even bandwidths: known ones are found, and their intervals hold them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from netsim_ddp.report.charts.steps import speedups
from netsim_ddp.report.collection import Collection, Source
from netsim_ddp.report.crossover import render_break_evens
from netsim_ddp.results.crossover import BreakEven, break_evens
from netsim_ddp.results.identity import method_id
from netsim_ddp.results.labels import curve_label
from netsim_ddp.results.record import Cell
from netsim_ddp.results.summary import summarise
from tests.results_factory import make_cell, make_link, make_result

RATES = [10**7, 3 * 10**7, 10**8, 3 * 10**8, 10**9]
BITS, CODEC_MS, REDUCTION = 40e6, 90.0, 20.0
# 60 + 40e6 / b = 60 + 90 + 2e6 / b (seconds times 1000): they meet at b = 38e6 / 0.09.
TRUTH = (BITS - BITS / REDUCTION) / (CODEC_MS / 1e3)
Noise = Callable[[], float]


def dense_ms(rate: float) -> float:
    return 60 + BITS / rate * 1e3


def topk_ms(rate: float) -> float:
    return 60 + CODEC_MS + BITS / REDUCTION / rate * 1e3


def at(rate: int, method: str, milliseconds: float, noise: Sequence[float] = (1.0,), **fields: Any) -> Cell:
    link = make_link(requested_bps=rate, configured_bps=rate, **fields.pop("link", {}))
    runs = [milliseconds * each for each in noise]
    return make_cell(method, runs, steps=1, ranks=1, bandwidth_bps=rate, link=link, **fields)


def curve(noise: Callable[[], Sequence[float]] = lambda: (1.0,), rates: Sequence[int] = RATES) -> list[Cell]:
    cells = [at(rate, "dense", dense_ms(rate), noise()) for rate in rates]
    cells += [
        at(rate, "topk", topk_ms(rate), noise(), params={"ratio": 0.01}, id=f"topk,ratio=0.01@{rate}")
        for rate in rates
    ]
    return summarise(cells)


def only(found: list[BreakEven]) -> BreakEven:
    assert len(found) == 1
    return found[0]


def test_a_known_break_even_is_found() -> None:
    found = only(break_evens(curve(), "plain"))
    assert found.kind == "crosses"
    assert found.bps == pytest.approx(TRUTH, rel=1e-6)
    assert (found.lowest_bps, found.highest_bps) == (RATES[0], RATES[-1])
    assert method_id(found.cell) == "topk,ratio=0.01"
    assert [rate for rate, _ in found.points] == RATES
    assert found.points[0][1] == pytest.approx(dense_ms(1e7) / topk_ms(1e7))
    assert found.low_bps is None, "a single run shows no noise"
    assert found.high_bps is None


def test_beyond_the_range_it_says_on_which_side() -> None:
    always = only(break_evens(curve(rates=RATES[:3]), "plain"))
    assert (always.kind, always.bps) == ("always pays in range", None)
    never = only(break_evens(curve(rates=[RATES[4], 2 * 10**9]), "plain"))
    assert (never.kind, never.bps) == ("never pays in range", None)


def test_repeats_give_an_interval_that_stays_in_the_range() -> None:
    generator = np.random.default_rng(3)
    cells = curve(lambda: generator.normal(1, 0.02, 7))
    found = only(break_evens(cells, "plain"))
    assert found.low_bps is not None
    assert found.high_bps is not None
    assert found.bps is not None
    assert RATES[0] < found.low_bps < found.bps < found.high_bps < RATES[-1]
    always = only(break_evens(curve(lambda: generator.normal(1, 0.02, 7), RATES[:3]), "plain"))
    assert (always.low_bps, always.high_bps) == (RATES[2], RATES[2]), "cut off at the range, exactly"


def test_a_break_even_says_what_codec_it_rests_on() -> None:
    cells = curve()
    for cell in cells:
        if cell.method == "topk" and cell.summary:
            cell.summary.compress_s, cell.summary.decompress_s = 0.06, 0.03
    found = only(break_evens(cells, "plain"))
    assert found.codec_s == pytest.approx(0.09)
    assert found.at_codec(0.18) == (pytest.approx(38e6 / 0.18), True)
    assert found.at_codec(0.02) == (pytest.approx(38e6 / 0.02), False), "beyond the range, by the model"
    assert found.at_codec(50.0) == (0.0, False)
    console = Console(width=100, no_color=True)
    with console.capture() as captured:
        render_break_evens(cells, console)
    text = " ".join(captured.get().split())
    assert "x 0.25 x 0.5 x 2 x 4" in text
    assert "topk 90 ~1.7 0.84 0.21 0.11" in text


def test_noise_about_a_method_that_never_matters_is_not_a_break_even() -> None:
    generator = np.random.default_rng(5)
    cells = [
        at(rate, method, dense_ms(rate), generator.normal(1, 0.03, 7))
        for rate in RATES
        for method in ("dense", "topk-dense")
    ]
    found = only(break_evens(summarise(cells), "plain"))
    assert (found.low_bps, found.high_bps) == (RATES[0], RATES[-1]), "the interval leaves nothing out"


def test_against_overlapped_dense() -> None:
    cells = curve()
    assert break_evens(cells, "overlapped") == [], "none was measured"
    cells = [cell for cell in cells if cell.method == "topk"]
    cells += [at(rate, "dense", dense_ms(rate) - 30, overlap=True) for rate in RATES]
    found = only(break_evens(summarise(cells), "overlapped"))
    assert found.bps is not None
    assert found.bps < 0.9 * TRUTH


def test_where_the_host_limits_dense_there_is_no_point() -> None:
    cells = [
        cell.model_copy(update={"link": cell.link.model_copy(update={"host_limited": True})})
        if cell.method == "dense" and cell.bandwidth_bps == RATES[-1]
        else cell
        for cell in curve()
    ]
    found = only(break_evens(cells, "plain"))
    assert found.left_out == (RATES[-1],)
    assert found.highest_bps == RATES[-2]
    assert found.kind == "always pays in range"


def test_cells_of_other_places_are_not_mixed() -> None:
    elsewhere: list[dict[str, Any]] = [
        {"workers": 4},
        {"execution": "replayed"},
        {"model": "resnet50"},
        {"axes": {"batch_size": 8}},
        {"link": {"mechanism": "bucket"}},
        {"link": {"delay_s": 0.01}},
    ]
    for fields in elsewhere:
        mechanism = dict(fields.get("link", {}))
        cells = curve() + [
            at(rate, "topk", topk_ms(rate), **{**fields, "link": dict(mechanism)}) for rate in RATES
        ]
        assert len(break_evens(summarise(cells), "plain")) == 1, fields


def test_axes_that_name_the_method_or_the_bandwidth_do_not_part_it_from_dense() -> None:
    cells = [
        cell.model_copy(update={"axes": {"method": cell.method, "bandwidth": str(cell.bandwidth_bps)}})
        for cell in curve()
    ]
    assert only(break_evens(cells, "plain")).bps is not None


def delayed(cell: Cell, seconds: float) -> Cell:
    shape = f"{(cell.bandwidth_bps or 0) / 1e6:g} Mbit/s; delay {seconds * 1e3:g} ms"
    return cell.model_copy(update={"link": cell.link.model_copy(update={"delay_s": seconds, "shape": shape})})


def test_delays_stand_in_the_place() -> None:
    cells = [delayed(cell, 0.005) for cell in curve(rates=RATES[:4])]
    assert curve_label(only(break_evens(cells, "plain")).cell) == "concurrent, tc, delay 5 ms"


def test_several_places_get_a_heading_each_and_fit_80_columns() -> None:
    noisy = curve(lambda: (0.99, 1.0, 1.01, 1.0, 0.99))
    cells = noisy + [
        delayed(cell, 0.02).model_copy(update={"id": f"{cell.id}/2", "workers": 2}) for cell in noisy
    ]
    console = Console(width=80, no_color=True)
    with console.capture() as captured:
        render_break_evens(cells, console)
    text = captured.get()
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    headings = [line for line in text.splitlines() if "workers, " in line]
    assert headings == ["8 workers, concurrent, tc", "2 workers, concurrent, tc, delay 20 ms"]
    assert "420 (" in text
    assert "~420" in text
    assert "~ faster at every rate measured (10 Mbit/s to 300 Mbit/s)" in text


def test_the_longest_names_leave_room_for_their_intervals() -> None:
    noisy = curve(lambda: (0.9, 1.0, 1.1, 1.05, 0.95))
    overlapped = [cell.model_copy(update={"overlap": True, "id": f"{cell.id},overlap"}) for cell in noisy]
    long = {"ratio": 0.01, "values": "fp16"}
    cells = summarise(
        [
            cell if cell.method == "dense" else cell.model_copy(update={"params": long})
            for cell in [*noisy, *overlapped]
        ]
    )
    console = Console(width=80, no_color=True)
    with console.capture() as captured:
        render_break_evens(cells, console)
    text = captured.get()
    assert "…" not in text
    assert "pays below, Mbit/s" in text, "one unit for all, above them"
    assert "(95% interval)" in text
    assert text.count("bit/s") == 1


def test_two_bandwidths_are_needed() -> None:
    assert break_evens(curve(rates=RATES[:1]), "plain") == []
    assert break_evens([], "plain") == []
    found = only(break_evens(curve(rates=[RATES[0], RATES[4]]), "plain"))
    assert math.isfinite(found.bps or math.nan)


def test_the_chart_draws_the_curve_that_the_break_even_is_read_from() -> None:
    """Through every point, and equal speed where the mark stands; in log-log, straight lines would cross elsewhere."""
    crosses, always = curve(rates=[10**8, 10**9]), curve(rates=RATES[:3])
    for cells, inside in ((crosses, True), (always, False)):
        (chart,) = speedups(Collection([Source("sweep.json", make_result(cells))]))
        (one,) = chart.series
        drawn = dict(one.curve)
        assert all(drawn[point.x] == pytest.approx(point.y) for point in one.points)
        x, y = zip(*(one.curve if inside else one.model), strict=True)
        found = only(break_evens(cells, "plain"))
        at_par = float(np.interp(0, np.log(y)[::-1], np.log(x)[::-1]))
        assert math.exp(at_par) * 1e6 == pytest.approx(found.bps or found.model_bps, rel=2e-3)
        assert bool(one.model) is not inside
        if not inside:
            assert x[0] * 1e6 == pytest.approx(found.highest_bps)
            assert any("nothing was measured" in note for note in chart.notes)


def test_two_rates_of_a_step_that_overlaps_have_no_interval() -> None:
    noise = np.random.default_rng(1)
    for rates, known in ([RATES[2:4], False], [RATES[2:5], True]):
        cells = [
            cell.model_copy(update={"overlap": True})
            for cell in curve(lambda: noise.normal(1, 0.01, 5), rates)
        ]
        assert (only(break_evens(summarise(cells), "overlapped")).low_bps is not None) is known
