"""The registry: a built-in method is its entry and its implementation, and nothing else knows it by name."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import netsim_ddp
from netsim_ddp.cli import app
from netsim_ddp.communication.building import build_method
from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.methods.fp16 import Float16AllReduce
from netsim_ddp.communication.segments import Group, Local
from netsim_ddp.methods import BASELINE, DEFAULT, METHODS, SIXTEEN_BIT
from netsim_ddp.methods.citations import paper
from netsim_ddp.methods.entry import OVERLAP, MethodEntry
from netsim_ddp.methods.spec import parse_method
from netsim_ddp.options import whole
from netsim_ddp.report.charts.wire import growth_of
from netsim_ddp.report.export.citations import bibliography
from netsim_ddp.report.reference import methods_page
from netsim_ddp.results.record import Cell
from tests.results_factory import make_cell, make_result
from tests.test_reports import collection

ROOT = Path(netsim_ddp.__file__).parent
FORMATS = {
    "training/task.py", "training/precision.py", "scenario/train.py", "compression/codec.py", "cli/bench.py",
    "report/terminal/codec.py", "compression/__init__.py",
}  # fmt: skip
"""Files where such a word is a value's format, a training's precision or a compressor, not a method."""


class ThrownAway(Float16AllReduce):
    name = "thrown-away"

    def __init__(self, flat: FlatGradients, group: Group, *, turns: int = 1) -> None:
        super().__init__(flat, group)
        self.turns = turns


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> MethodEntry:
    found = MethodEntry(
        "thrown-away",
        "a method that is there for this test",
        impl="tests.test_methods:ThrownAway",
        options={"turns": whole(1, "how often it turns", least=1), "overlap": OVERLAP},
        phases=("compress", "communicate", "decompress"),
        formula="2(P-1)/P x 2N",
        scheme="ring",
        payload="fixed",
        value_bytes=2,
        citations=(paper("nobody2026thrown", "Nobody, Nora", "Thrown Away", "Nowhere", 2026),),
    )
    monkeypatch.setitem(METHODS, found.name, found)
    return found


def test_a_new_method_is_one_entry_and_one_implementation(entry: MethodEntry) -> None:
    assert parse_method("thrown-away,turns=3").params == {"turns": 3}
    layer = nn.Linear(3, 2)
    built = build_method(entry.name, FlatGradients(layer.named_parameters()), Group(0, 1), turns=3)
    assert isinstance(built, ThrownAway)
    assert built.turns == 3
    listed = CliRunner().invoke(app, ["scenarios", "methods", entry.name])
    assert listed.exit_code == 0
    assert entry.about in listed.output
    assert "turns=1" in listed.output
    assert "2(P-1)/P x 2N" in listed.output
    assert "## `thrown-away`" in methods_page()
    assert entry.wire_bytes(1e6, 4, {}) == 1.5 * 2e6
    cell = make_cell("thrown-away", [1])
    assert growth_of(cell) == "ring"
    assert "nobody2026thrown" in bibliography(collection(make_result([cell])))


def literals(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}


def test_nothing_else_knows_a_built_in_method_by_name() -> None:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        own = relative.parts[0] == "methods" or relative.parts[:2] == ("communication", "methods")
        if not own and str(relative) not in FORMATS and (names := literals(path) & METHODS.keys()):
            found[str(relative)] = names
    assert found == {}


def test_the_entries_that_others_ask_for_are_there_once() -> None:
    assert [entry.name for entry in METHODS.values() if entry.is_baseline] == [BASELINE.name]
    assert [entry.name for entry in METHODS.values() if entry.is_default] == [DEFAULT.name]
    assert set(SIXTEEN_BIT) == {"gloo", "nccl"}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_an_entry_says_what_its_implementation_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases, and the bytes that the formula gives for many values."""
    monkeypatch.setattr(torch.distributed, "get_backend", lambda _: "gloo")
    torch.manual_seed(0)
    entry, ranks = METHODS[name], 4
    flat = FlatGradients(nn.Linear(300, 400).named_parameters())
    method = build_method(name, flat, Group(0, ranks))
    segments = method.segments()
    phases = [each.phase if isinstance(each, Local) else "communicate" for each in segments]
    assert [phase for phase in entry.phases if phase in phases] == list(entry.phases)
    assert set(phases) == set(entry.phases)
    assert entry.formula
    if entry.payload == "fixed" and not entry.same_torch:
        sent = sum(size for each in segments if not isinstance(each, Local) for size in each.messages())
        assert math.isclose(sent, entry.wire_bytes(flat.numel, ranks, {}), rel_tol=0.01)


def cited(cell: Cell, citation: str) -> str:
    return bibliography(collection(make_result([cell.model_copy(update={"citation": citation})])))


def test_a_method_of_one_s_own_is_cited_as_it_says() -> None:
    cell = make_cell("mine:Signs", [1])
    text = cited(cell, "@misc{me, title = {Mine}}")
    assert text.startswith("@misc{me, title = {Mine}}\n")
    plain = cited(cell, "Me, 2026")
    assert plain.startswith("@misc{mine_Signs,\n  note = {Me, 2026},\n}\n")
    assert bibliography(collection(make_result([cell]))).startswith("@software{netsim,")
