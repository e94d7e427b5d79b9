"""The floors of the house: a package imports only from those below it, and what must stay light imports no torch."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import netsim_ddp

ROOT = Path(netsim_ddp.__file__).parent
FLOORS = [
    {"errors", "log", "units", "names", "reading", "stolen", "switches"},
    {"options"},
    {"methods", "origin"},
    {"results"},
    {"link"},
    {"scenario"},
    {"compression", "workloads"},
    {"communication"},
    {"ranks"},
    {"steps"},
    {"training", "predict"},
    {"sweep"},
    {"tools"},
    {"report"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
FREE = {"__init__", "__main__"}
FORBIDDEN = {
    "methods": {"torch", "numpy", "rich", "typer"},
    "results": {"torch", "rich", "typer"},
    "report": {"torch", "typer"},
    "link": {"torch", "numpy", "rich", "typer"},
    "ranks": {"rich", "typer"},
    "steps": {"rich", "typer"},
    "tools": {"rich", "typer"},
    "training": {"rich", "typer"},
    "predict": {"rich", "typer"},
    "sweep": {"torch", "rich", "typer"},
    "communication": {"rich", "typer"},
    "compression": {"torch.distributed", "rich", "typer"},
}
LIGHT = [
    "",
    ".cli",
    ".methods.spec",
    ".scenario",
    ".results.files",
    ".results.record",
    ".results.summary",
    ".report.terminal.sweep",
    ".report.terminal.sweep_progress",
    ".report.terminal.result",
    ".report.export.html",
    ".report.export.recording_page",
    ".report.terminal.recording",
    ".results.gradient_energy",
    ".report.export.figures",
    ".link.tc.link",
    ".link.probe.probe",
    ".link.bucket.clock",
    ".ranks.launcher",
    ".steps.experiment",
    ".steps.runner",
    ".training.runner",
    ".tools.launch",
    ".tools.probe",
    ".tools.check.checks",
    ".tools.regress.measure",
    ".results.sides",
    ".link.options",
    ".sweep.runner",
    ".sweep.source",
]


@functools.cache
def imports(path: Path) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def floor_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


MODULES = [path for path in sorted(ROOT.rglob("*.py")) if floor_of(path) not in FREE]


def test_every_module_has_a_floor() -> None:
    assert {floor_of(path) for path in MODULES} == set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_from_a_floor_above(path: Path) -> None:
    here = floor_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "netsim_ddp" or len(parts) == 1 or parts[1] not in LEVEL or parts[1] == here:
            continue
        below = LEVEL[parts[1]] <= LEVEL[here]
        assert below, f"{path.relative_to(ROOT)} imports {name}"
        if here == "report":
            assert LEVEL[parts[1]] <= LEVEL["results"], f"report imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_what_its_floor_must_not_know(path: Path) -> None:
    for name in imports(path):
        for forbidden in FORBIDDEN.get(floor_of(path), ()):
            assert name != forbidden, f"{path.relative_to(ROOT)} imports {name}"
            assert not name.startswith(forbidden + "."), f"{path.relative_to(ROOT)} imports {name}"


def test_the_light_floors_do_not_load_torch() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {LIGHT}:\n"
        "    importlib.import_module('netsim_ddp' + name)\n"
        "    assert 'torch' not in sys.modules, f'netsim_ddp{name} loads torch'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


TYPED = ("empty", "eye", "full", "linspace", "normal", "ones", "rand", "randn", "tensor", "zeros")
MAKERS = {
    **{name: {"dtype", "device"} for name in TYPED},
    **{name: {"device"} for name in ("arange", "randint", "randperm")},
}
"""What of torch's makes a tensor of the default type, or on the default device, unless it is told otherwise."""


def test_no_tensor_is_made_by_a_program_s_defaults() -> None:
    """``torch.set_default_dtype`` and ``set_default_device`` are the user's, for the model."""
    found = []
    for path in [*(ROOT / "communication").rglob("*.py"), *(ROOT / "compression").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in MAKERS:
                assert isinstance(node, ast.Call)
                of_torch = isinstance(called.value, ast.Name) and called.value.id == "torch"
                told = {keyword.arg for keyword in node.keywords}
                if of_torch and not MAKERS[called.attr] <= told:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} torch.{called.attr}")
    assert found == [], "say what type and device"


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_no_longer_than_a_reader_takes_in(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


def test_no_function_takes_more_arguments_than_a_caller_can_keep_apart() -> None:
    kernels = ROOT / "compression" / "native"
    long = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and kernels not in path.parents:
                count = len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])
                if count > 12:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} takes {count}")
    assert long == []
