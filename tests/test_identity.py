"""Figures of rules that netsim has given up: said wherever they stand, never held against newer ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from netsim_ddp.errors import NothingComparable, UsageError
from netsim_ddp.report.charts.steps import speedups
from netsim_ddp.report.collection import Collection, Source
from netsim_ddp.results.compare import Rules, compare
from netsim_ddp.results.files import load
from netsim_ddp.results.identity import (
    AS_MEASURED,
    BY_BYTES,
    READY,
    TCP,
    curve_setting,
    method_id,
    outdated,
    rules,
    setting,
)
from netsim_ddp.results.labels import label
from netsim_ddp.results.merge import merge
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.results.sides import side
from netsim_ddp.results.summary import summarise
from netsim_ddp.units import format_rate
from tests.results_factory import make_cell, make_link, make_result
from tests.test_assumptions import everywhere

OLD, NEW = 3, 4


def measured(
    *,
    version: int,
    compute: float = 0.05,
    mechanism: str = "tc",
    rates: tuple[int, ...] = (10**8, 10**9),
    **link: Any,
) -> Result:
    """Dense and topk, plain and overlapped, at two rates."""
    cells: list[Cell] = [
        make_cell(
            method,
            [ms + i for i in range(3)],
            id=f"{method}{overlap}{rate}",
            overlap=overlap,
            bandwidth_bps=rate,
            link=make_link(mechanism, requested_bps=rate, shape=format_rate(rate), **link),
        )
        for rate in rates
        for method, ms in (("dense", 5e9 / rate + 50), ("topk", 60.0))
        for overlap in (False, True)
    ]
    made = make_result(
        summarise(cells), scenario={"model": "simple_cnn", "compute_s": compute, "link": mechanism}
    )
    return made.model_copy(update={"schema_version": version})


def test_which_figures_hang_on_a_rule() -> None:
    for cell in (old := measured(version=OLD)).cells:
        assert rules(cell, old) == ({READY: BY_BYTES} if cell.overlap else {})
    for cell in (new := measured(version=NEW)).cells:
        assert rules(cell, new) == ({READY: AS_MEASURED} if cell.overlap else {})
        assert not outdated(cell, new)
    real = measured(version=OLD, compute=0)
    assert not any(rules(cell, real) for cell in real.cells)
    for delay, tcp in ((0.04, {TCP: "ideal"}), (0.0, {})):
        bucket = measured(version=OLD, compute=0, mechanism="bucket", delay_s=delay)
        assert all(rules(cell, bucket) == tcp for cell in bucket.cells)
    linux = measured(version=NEW, compute=0, mechanism="bucket", delay_s=0.04, tcp="linux")
    assert all(rules(cell, linux) == {TCP: "linux"} for cell in linux.cells)


def test_every_table_says_so() -> None:
    for where, text in everywhere(measured(version=OLD, mechanism="bucket", delay_s=0.04)).items():
        plain = re.sub(r"\s+", " ", text)
        assert f"buckets become full {BY_BYTES} (netsim before 0.2" in plain, where
        assert "TCP on the bucket ideal (netsim before 0.2" in plain, where
    new = everywhere(measured(version=NEW, mechanism="bucket", delay_s=0.04, tcp="linux"))
    assert not any("before 0.2" in text for text in new.values())
    assert all("TCP on the bucket linux" in re.sub(r"\s+", " ", text) for text in new.values())


def held(base: Result, new: Result) -> list[str]:
    found = compare(side(base, "old.json"), side(new, "new.json"), Rules())
    assert not any("overlap" in pair.name for pair in found.pairs)
    return found.notes


def test_they_are_not_compared() -> None:
    notes = held(measured(version=OLD), measured(version=NEW))
    (said,) = [note for note in notes if "rules" in note]
    assert all(part in said for part in (BY_BYTES, "old.json", "new.json", "measure both"))
    with pytest.raises(NothingComparable, match=r"ideal in old\.json, linux in new\.json.*measure both"):
        held(
            measured(version=OLD, mechanism="bucket", compute=0, delay_s=0.04),
            measured(version=NEW, mechanism="bucket", compute=0, delay_s=0.04, tcp="linux"),
        )
    same = measured(version=OLD)
    assert len(compare(side(same, "a"), side(same, "b"), Rules()).pairs) == len(same.cells)


def test_they_are_not_merged_and_stand_on_no_common_curve() -> None:
    old, new = measured(version=OLD), measured(version=NEW)
    with pytest.raises(UsageError, match="measure both"):
        merge([old, new])
    assert len(merge([old, old]).cells[0].repeats) == 6
    low, high = measured(version=OLD, rates=(10**7, 10**8)), measured(version=NEW, rates=(10**9, 2 * 10**9))
    apart = speedups(Collection([Source("old", low), Source("new", high)]))
    together = [
        Source(name, one.model_copy(update={"schema_version": NEW}))
        for name, one in (("a", low), ("b", high))
    ]
    rates = [sorted({point.x for one in chart.series for point in one.points}) for chart in apart]
    assert rates == [[10, 100], [10, 100], [1000, 2000], [1000, 2000]]
    assert all(
        len({p.x for one in chart.series for p in one.points}) == 4
        for chart in speedups(Collection(together))
    )


def test_committed_results_of_the_old_rule_are_told(request: pytest.FixtureRequest) -> None:
    """The reports of 0.1.0 have overlapped dense under an emulated compute."""
    crossover = load(Path(request.config.rootpath) / "reports" / "crossover.json")
    if crossover.schema_version < NEW:
        assert [cell.overlap for cell in crossover.cells] == [
            outdated(cell, crossover) for cell in crossover.cells
        ]
    else:
        assert not any(outdated(cell, crossover) for cell in crossover.cells)


def test_one_cell_has_one_label_on_a_terminal_and_on_a_page() -> None:
    """A collective that nobody asked for is not in it, and overlap stands before what was substituted."""
    chosen = make_cell("topk", [10], id="a", params={"ratio": 0.01, "collective": "split"}, overlap=True)
    asked = make_cell(
        "topk", [10], id="topk,collective=allgather", params={"ratio": 0.01, "collective": "allgather"}
    )
    substituted = make_cell("topk", [10], id="b", params={"ratio": 0.1}, overlap=True, substituted="cuda")
    cells = [chosen, asked, substituted]
    (block,) = Collection([Source("a", make_result(cells))]).blocks
    expected = [
        "topk,ratio=0.01,overlap",
        "topk,collective=allgather,ratio=0.01",
        "topk,ratio=0.1,overlap,substituted",
    ]
    assert [entry.label for entry in block.entries] == expected
    assert [label(cell, cells) for cell in cells] == expected
    assert method_id(chosen) == "topk,overlap=on,ratio=0.01"


def test_curves_join_files_and_keep_links_apart() -> None:
    """What a cell tells by itself need not stand in its axes as well; links with and without loss have two curves."""
    one, other = make_cell("topk", [10], bandwidth_bps=10**8), make_cell("topk", [20], bandwidth_bps=10**9)
    swept = one.model_copy(update={"axes": {"bandwidth": "100mbps", "workers": one.workers}})
    assert curve_setting(swept, "bandwidth") == curve_setting(other, "bandwidth")
    lossy = make_link(requested_bps=10**9, shape=f"{format_rate(10**9)}; loss 0.01")
    assert curve_setting(other.model_copy(update={"link": lossy}), "bandwidth") != curve_setting(
        one, "bandwidth"
    )
    assert setting(swept) != setting(other)
    batch = one.model_copy(update={"axes": {"batch_size": 8}})
    assert curve_setting(batch, "bandwidth") != curve_setting(one, "bandwidth")
