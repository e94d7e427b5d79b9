"""What is drawn: where curves go, what may stand on one, and that everybody can tell them apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsim_ddp.report.charts import Bars, Chart, all_plots, svg
from netsim_ddp.report.charts.scales import Scale, around, ticks
from netsim_ddp.report.charts.steps import speedups
from netsim_ddp.report.charts.style import DARK, LIGHT, Looks, Theme
from netsim_ddp.report.charts.training import differences, training_curves
from netsim_ddp.report.charts.wire import bytes_over_workers
from netsim_ddp.report.charts.workers import steps_over_workers, utilisation_over_workers
from netsim_ddp.report.collection import Collection, Source
from netsim_ddp.report.export import figures
from netsim_ddp.report.facts import pays
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.results.summary import summarise
from netsim_ddp.results.training import WITHIN_POINTS
from netsim_ddp.units import format_rate
from tests.results_factory import make, make_cell, make_link, make_result, sweep, training


def collection(*results: Result) -> Collection:
    return Collection([Source(f"file{number}.json", result) for number, result in enumerate(results)])


def at(rate: int, dense: float, topk: float, **fields: object) -> list[Cell]:
    """Dense and topk at ``rate`` with steps of so many ms, three repeats a percent apart."""
    link = make_link(requested_bps=rate, shape=format_rate(rate))
    return [
        make_cell(name, [ms * 0.99, ms, ms * 1.01], link=link, bandwidth_bps=rate, **fields)
        for name, ms in (("dense", dense), ("topk", topk))
    ]


# Speedup over bandwidth


def test_the_break_even_is_where_the_curve_crosses_one() -> None:
    cells = summarise([*at(10**8, 400, 100), *at(10**10, 100, 400)])
    (chart,) = speedups(collection(make_result(cells)))
    (curve,) = chart.series
    assert [(point.x, round(point.y, 6)) for point in curve.points] == [(100, 4), (10000, 0.25)]
    assert all(point.low < point.y < point.high for point in curve.points)
    (mark,) = chart.marks
    # Steps that are a + b / rate: 400 to 100 ms and 100 to 400 ms meet half way over 1 / rate.
    assert mark.x == pytest.approx(2 / (1 / 100 + 1 / 10000), rel=1e-6)
    assert mark.low is not None
    assert mark.high is not None
    assert mark.low < mark.x < mark.high
    (place,) = pays([chart])
    assert place.rows[0][1].startswith("200 (")
    assert place.headers == ("pays below", "than dense"), "no other rival ran"


def test_a_method_that_always_or_never_pays_has_no_mark() -> None:
    cells = summarise([*at(10**8, 400, 100), *at(10**9, 300, 100)])
    (chart,) = speedups(collection(make_result(cells)))
    assert not chart.marks
    assert dict(chart.ends) == {"topk": "over 1 Gbit/s"}


def test_one_bandwidth_is_no_curve() -> None:
    assert speedups(collection(make_result(at(10**8, 400, 100)))) == []


def test_curves_never_join_executions_links_or_workers() -> None:
    replayed = sweep(workers=(2, 4))
    concurrent = [cell.model_copy(update={"execution": "concurrent"}) for cell in replayed.cells]
    bucket = [
        cell.model_copy(update={"link": cell.link.model_copy(update={"mechanism": "bucket"})})
        for cell in replayed.cells
    ]
    charts = speedups(collection(make([*replayed.cells, *concurrent, *bucket])))
    assert len({chart.title for chart in charts}) == 3 * 2
    assert all(len(one.points) == 3 for chart in charts for one in chart.series)


def test_files_of_one_bandwidth_each_make_a_curve_and_repeated_files_do_not_mix() -> None:
    slow, fast = (
        make_result(at(rate, dense, topk)) for rate, dense, topk in ((10**8, 400, 100), (10**9, 200, 100))
    )
    assert len(speedups(collection(slow, fast))) == 1
    both = make_result([*at(10**8, 400, 100), *at(10**9, 200, 100)])
    again = make_result([*at(10**8, 500, 100), *at(10**9, 300, 100)])
    charts = speedups(collection(both, again))
    assert [chart.series[0].points[0].y for chart in charts] == pytest.approx([4, 5])


# Bytes over workers


def test_formulas_go_on_from_what_was_measured() -> None:
    (chart,) = bytes_over_workers(collection(sweep(workers=(2, 4))))
    curves = {one.label: one for one in chart.series}
    for label, growth in (("dense", lambda p: 2 * (p - 1) / p), ("topk", lambda p: 2 * (p - 1) / p),
                          ("topk-allgather", lambda p: p - 1)):  # fmt: skip
        one = curves[label]
        (start, measured), *beyond = one.formula
        assert (start, measured) == pytest.approx((4, one.points[-1].y))
        assert [x for x, _ in beyond] == [8, 16, 32]
        for x, y in beyond:
            assert y / measured == pytest.approx(growth(x) / growth(4))
        assert one.points[0].y / measured == pytest.approx(growth(2) / growth(4), rel=1e-4), (
            "and holds before"
        )


def test_a_users_own_method_has_no_formula() -> None:
    cells = [make_cell("mine:Mine", [100], workers=count, tx=1e6 * count) for count in (2, 4)]
    (chart,) = bytes_over_workers(collection(make_result(cells)))
    assert chart.series[0].formula == ()


def test_links_share_a_plot_only_while_their_bytes_agree() -> None:
    same = [make_cell("dense", [100], workers=n, tx=1e6 * n, bandwidth_bps=rate,
                      link=make_link(shape=format_rate(rate))) for n in (2, 4) for rate in (10**8, 10**9)]  # fmt: skip
    assert len(bytes_over_workers(collection(make_result(same)))) == 1
    other = [cell if cell.bandwidth_bps == 10**8 or cell.workers == 2 else make_cell(
        "dense", [100], workers=4, tx=5e6, bandwidth_bps=10**9, link=cell.link) for cell in same]  # fmt: skip
    assert len(bytes_over_workers(collection(make_result(other)))) == 2


# Training


def test_training_curves_are_means_over_seeds() -> None:
    result = training(seeds=(0, 1))
    charts = {chart.key: chart for chart in training_curves(collection(result))}
    assert set(charts) == {"training-bytes", "training-time", "training-epoch", "training-loss"}
    losses = [repeat.epochs[1].validation_loss or 0 for repeat in result.cells[0].repeats]
    assert charts["training-loss"].series[0].points[1].y == pytest.approx(sum(losses) / 2)
    (_, first, *_) = charts["training-epoch"].series[0].points
    reached = [repeat.epochs[1].validation_accuracy or 0 for repeat in result.cells[0].repeats]
    assert first.y == pytest.approx(sum(reached) / 2 * 100)
    assert (first.low, first.high) == pytest.approx((min(reached) * 100, max(reached) * 100))
    sent = [point.x for point in charts["training-bytes"].series[0].points]
    assert sent[-1] == pytest.approx(5 * sent[0]), "bytes add up over epochs"


def test_every_methods_distance_to_dense_is_a_row_with_its_interval() -> None:
    trained = collection(training(seeds=(0, 1, 2)))
    (plot,) = differences(trained)
    cells = [entry.cell for entry in trained.entries]
    compared = [cell for cell in cells if cell.training and cell.training.difference_points]
    assert len(plot.rows) == len(compared) == len(cells) - 1, "dense is what the others are compared with"
    for row, cell in zip(plot.rows, compared, strict=True):
        found = cell.training and cell.training.difference_points
        assert found
        assert (row.value, row.low, row.high) == (found.mean, found.ci_low, found.ci_high)
        assert row.text in plot.text
    assert plot.limit == -WITHIN_POINTS
    drawn = svg.draw(plot, Looks(["dense", "topk"], ["dense"]))
    for row in plot.rows:
        assert f"{row.label}: {row.text} points" in drawn
    (alone,) = differences(collection(training(seeds=(0,))))
    assert all(row.low == row.value == row.high for row in alone.rows)
    assert "no intervals" in alone.notes[0]


def test_a_diverged_training_draws_nothing_that_is_no_number() -> None:
    assert training_curves(collection(training(diverged=True, accuracy=False))) == []


# Keys, words, colours


def test_plots_have_keys_of_their_own_and_words() -> None:
    plots = all_plots(collection(sweep(), training()))
    assert len({plot.key for plot in plots}) == len(plots)
    for plot in plots:
        parts = plot.bars if isinstance(plot, Bars) else plot.series if isinstance(plot, Chart) else plot.rows
        labels = [part.label for part in parts]
        assert all(label in plot.text for label in labels)


def test_bars_add_up_to_the_step() -> None:
    for plot in all_plots(collection(sweep())):
        if isinstance(plot, Bars):
            for bar in plot.bars:
                assert math.fsum(bar.phases) == pytest.approx(bar.step.median * 1e3)


def test_a_method_keeps_its_colour_and_no_two_look_alike() -> None:
    both = collection(sweep(), training())
    looks = Looks(both.colours, ["dense"])
    assert looks.of("dense").colour == 0
    names = [f"method{number}" for number in range(40)]
    many = Looks(["dense", *names], ["dense"])
    assert len({many.of(name) for name in names}) == 40
    charts = [plot for plot in all_plots(both) if isinstance(plot, Chart)]
    overlapped = {one.colour for chart in charts for one in chart.series if one.dashed}
    assert all(not name.endswith(",overlap") for name in overlapped), "overlap is a dash, not a colour"


def luminance(colour: str) -> float:
    """WCAG 2.1: relative luminance."""
    values = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_contrasts_meet_wcag_aa(theme: Theme) -> None:
    for ground in (theme.ground, theme.panel):
        for text in (theme.ink, theme.muted, theme.accent, theme.warn):
            assert contrast(text, ground) >= 4.5, f"{text} on {ground}"
    for drawn in (*theme.methods, *theme.phases):
        assert contrast(drawn, theme.ground) >= 3, f"{drawn} on {theme.ground}"


# Axes


@given(st.floats(1e-6, 1e9), st.floats(1.0, 1e6), st.booleans())
def test_ticks_are_round_few_and_inside(low: float, factor: float, log: bool) -> None:
    start, end = around([low, low * factor], log=log)
    found = ticks(start, end, log=log)
    assert len(found) <= 20
    assert found == sorted(set(found))
    slack = 1e-9 * end
    assert all(start - slack <= value <= end + slack for value in found)
    if factor > 3:
        assert len(found) >= 2


def test_a_logarithmic_scale_puts_the_geometric_mean_in_the_middle() -> None:
    assert Scale(1, 100, 0, 10, log=True)(10) == pytest.approx(5)
    assert Scale(5, 5, 0, 10)(5) == 5, "a single value is no division by zero"


def test_pdf_and_png_take_any_label(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cells = at(10**8, 400, 100)
    cells[1] = cells[1].model_copy(update={"method": r"$\frac{<b>"})
    written = figures.write(collection(make_result(cells)), tmp_path, ["pdf", "png"])
    heads: Sequence[bytes] = [path.read_bytes()[:4] for path in written]
    assert heads == [b"%PDF", b"\x89PNG"]


def test_steps_and_utilisation_are_drawn_over_workers() -> None:
    cells = [
        make_cell(name, [ms * 0.99, ms, ms * 1.01], workers=ranks)
        for ranks, dense, topk in ((2, 100, 50), (4, 150, 60), (8, 180, 70))
        for name, ms in (("dense", dense), ("topk", topk))
    ]
    (chart,) = steps_over_workers(collection(make_result(summarise(cells))))
    assert {one.label: [(point.x, round(point.y)) for point in one.points] for one in chart.series} == {
        "dense": [(2, 100), (4, 150), (8, 180)], "topk": [(2, 50), (4, 60), (8, 70)],
    }  # fmt: skip
    assert all(point.low < point.y < point.high for one in chart.series for point in one.points)
    (shares,) = utilisation_over_workers(collection(make_result(summarise(cells))))
    assert all(0 < point.y <= 100 for one in shares.series for point in one.points)
    assert steps_over_workers(collection(make_result(summarise(cells[:2])))) == []
