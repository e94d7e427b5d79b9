"""The bandwidth that a method needs for a utilisation: found where the algebra says, and never claimed beyond it."""

from __future__ import annotations

import pytest
from rich.console import Console

from netsim_ddp.report.charts import all_plots
from netsim_ddp.report.collection import Collection, Source
from netsim_ddp.report.facts import answers
from netsim_ddp.report.terminal.sweep import render_sweep
from netsim_ddp.results.identity import method_id
from netsim_ddp.results.record import Cell
from netsim_ddp.results.summary import summarise
from netsim_ddp.results.utilisation import LEVELS, Utilisation, utilisations
from tests.results_factory import make_result
from tests.test_crossover import RATES, at

COMPUTE_S, BITS, CODEC_S = 0.06, 6e6, 0.008


def cells(rates: list[int] = RATES) -> list[Cell]:
    found = []
    for rate in rates:
        for method, codec, bits in (("dense", 0.0, BITS), ("topk", CODEC_S, BITS / 20)):
            step = COMPUTE_S + codec + bits / rate
            found.append(at(rate, method, step * 1e3, id=f"{method}@{rate}"))
    found = summarise(found)
    for cell in found:
        assert cell.summary
        cell.summary.efficiency = COMPUTE_S / cell.summary.step_s.median
    return found


def of(method: str, found: list[Utilisation]) -> Utilisation:
    (one,) = [each for each in found if method_id(each.cell) == method]
    return one


def test_the_rate_is_where_the_algebra_says() -> None:
    dense = of("dense", utilisations(cells()))
    assert [each.level for each in dense.needed] == list(LEVELS)
    # 0.06 / (0.06 + 6e6 / rate) = level
    for each in dense.needed:
        wanted = BITS / (COMPUTE_S / each.level - COMPUTE_S)
        assert each.bps == pytest.approx(wanted)
        assert each.how == ("measured" if wanted <= RATES[-1] else "model")


def test_a_codec_that_takes_too_long_never_gets_there() -> None:
    topk = of("topk", utilisations(cells()))
    assert [each.how for each in topk.needed] == ["under", "measured", "none", "none", "none"]
    assert topk.needed[1].bps == pytest.approx(BITS / 20 / (COMPUTE_S / 0.8 - COMPUTE_S - CODEC_S))


def test_two_rates_say_nothing_of_what_lies_beyond() -> None:
    dense = of("dense", utilisations(cells(RATES[:2])))
    assert [(each.how, each.bps) for each in dense.needed][1:] == [("over", None)] * 4


def test_where_the_host_sets_the_pace_there_is_no_point() -> None:
    found = cells()
    for cell in found:
        if cell.bandwidth_bps == RATES[-1]:
            cell.link.host_limited = True
    dense = of("dense", utilisations(found))
    assert dense.points[-1][0] == RATES[-2]


def test_every_exporter_shows_it() -> None:
    result = make_result([]).model_copy(update={"cells": cells()})
    console = Console(width=80, no_color=True)
    with console.capture() as captured:
        render_sweep(result, console)
    shown = captured.get()
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    (row,) = [line.split() for line in shown.splitlines() if line.startswith("dense ") and "~9.9" in line]
    assert row == ["dense", "0.1", "0.4", "0.9", "~1.9", "~9.9"]
    collection = Collection([Source("a.json", result)])
    plots = all_plots(collection)
    assert [plot.key for plot in plots].count("utilisation") == 1
    titles = [each.title for each in answers(collection, plots)]
    assert any(title.startswith("bandwidth for a utilisation, ") for title in titles)
