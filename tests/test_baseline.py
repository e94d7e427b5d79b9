"""What others hold their results against: the published baseline, and the names of the benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from netsim_ddp.results.compare import Rules, compare
from netsim_ddp.results.files import load
from netsim_ddp.results.sides import side
from netsim_ddp.scenario import build_scenario

ROOT = Path(__file__).parent.parent
BASELINE = ROOT / "reports" / "baseline.json"
BYTES = Rules(only=frozenset({"bytes"}))


def test_the_baseline_is_what_its_scenario_runs() -> None:
    baseline, scenario = load(BASELINE), build_scenario({}, ROOT / "scenarios" / "baseline.yaml")
    assert [cell.id for cell in baseline.cells] == [method.id for method in scenario.cells()]
    assert baseline.status == "complete"
    for key in ("steps", "warmup", "seed", "workers", "link", "execution", "threads", "device", "backend"):
        assert baseline.scenario[key] == getattr(scenario, key), key


def test_every_cell_of_the_baseline_has_something_to_hold_against() -> None:
    baseline = load(BASELINE)
    found = compare(side(baseline, "one"), side(baseline, "other"), BYTES)
    assert len(found.pairs) == len(baseline.cells)
    for pair in found.pairs:
        figures = {row.figure for row in pair.figures}
        assert {"payload bytes", "charged bytes", "parameters"} <= figures, pair.name
        assert ("entries" in figures) == pair.name.startswith("topk")


def test_a_byte_more_is_noticed_on_any_machine() -> None:
    baseline = load(BASELINE)
    for i, cell in enumerate(baseline.cells):
        changed = baseline.model_copy(deep=True, update={"environment": {"cpu": "another"}})
        ranks = changed.cells[i].repeats[0].ranks
        ranks[0].payload_bytes += 1
        ranks[0].residual_bytes += 8
        rows = compare(side(baseline, "one"), side(changed, "other"), BYTES).pairs[i].figures
        noticed = {row.figure for row in rows if row.changed}
        selective = cell.method == "topk"  # how long its messages are follows from the gradients' bits
        assert ("payload bytes" in noticed) != selective, cell.id


def test_benchmarks_keep_their_names(request: pytest.FixtureRequest) -> None:
    """Whoever compares two versions matches them by name. After a change on purpose: what this prints is the file."""
    modules = [
        pytest.Module.from_parent(request.session, path=path)
        for path in sorted((ROOT / "tests" / "benchmarks").glob("test_*.py"))
    ]
    found = [item.nodeid for module in modules for item in request.session.genitems(module)]
    print("\n".join(sorted(found)))
    assert sorted(found) == (ROOT / "tests" / "fixtures" / "benchmarks.txt").read_text().splitlines()
