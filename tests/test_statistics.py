"""Statistics: what they say is what a slow count finds, and they change nothing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from netsim_ddp.compression.budget import SelectionOptions
from netsim_ddp.compression.codec import Codec
from netsim_ddp.compression.selection import Selection
from netsim_ddp.compression.statistics import Statistics, measure
from netsim_ddp.report.terminal.selections import render_selections
from netsim_ddp.results.files import load

SHAPES = {
    "a": torch.Size([30, 20]),
    "empty": torch.Size([0]),
    "b": torch.Size([11]),
    "scalar": torch.Size([]),
}
N = 612


def step(
    residual: torch.Tensor | None, values: str = "fp32"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of selection and rounding: what was selected from, and the entries."""
    torch.manual_seed(2)
    gradient = torch.randn(N)
    chosen = Selection(list(SHAPES.values()), SelectionOptions(ratio=0.05), torch.device("cpu"))
    before = gradient.clone() if residual is None else residual + gradient
    sent, indices = chosen.run(gradient, residual)
    if residual is not None:
        codec = Codec(values)
        received = torch.empty_like(sent)
        codec.encode(sent, indices, torch.empty(codec.capacity(sent.numel(), N), dtype=torch.uint8), received)
        residual[indices.long()] = sent - (sent if codec.exact else received)
    return before, sent, indices


@pytest.mark.parametrize("values", ["fp32", "fp16", "int8"])
def test_energies_and_norms_are_those_of_a_slow_count(values):
    residual = torch.randn(N)
    before, sent, indices = step(residual, values)
    found = measure(sent, indices, residual, SHAPES, layers=True)
    assert found.entries == sent.numel() == 30 + 1 + 1
    assert found.ratio == pytest.approx(32 / N)
    assert found.energy_kept == pytest.approx(
        float(sent.double().square().sum() / before.double().square().sum())
    )
    assert found.residual_norm == pytest.approx(float(residual.double().norm()))
    start = 0
    for name, shape in SHAPES.items():
        stop = start + shape.numel()
        layer, here = found.layers[name], (indices >= start) & (indices < stop)
        assert layer.entries == int(here.sum())
        assert layer.numel == shape.numel()
        kept = sent[here].double().square().sum() / before[start:stop].double().square().sum()
        assert layer.energy_kept == pytest.approx(float(kept) if layer.numel else 1.0)
        assert layer.residual_norm == pytest.approx(float(residual[start:stop].double().norm()))
        start = stop


def test_without_feedback_there_is_no_energy_to_compare_with():
    _, sent, indices = step(None)
    found = measure(sent, indices, None, SHAPES, layers=True)
    assert found.energy_kept is None
    assert found.residual_norm is None
    assert found.sent_energy == pytest.approx(float(sent.square().sum()))


def test_buckets_add_up():
    one = Statistics(3, 10, 4.0, 8.0, 4.0, 30, {"a": Statistics(3, 10, 4.0, 8.0, 4.0)})
    other = Statistics(1, 10, 1.0, 2.0, 5.0, 10, {"b": Statistics(1, 10, 1.0, 2.0, 5.0)})
    both = one + other
    assert (both.entries, both.ratio, both.energy_kept, both.residual_norm) == (4, 0.2, 0.5, 3.0)
    assert both.payload_bytes == 40
    assert list(both.layers) == ["a", "b"]


def test_a_run_records_them_and_shows_them(tmp_path: Path) -> None:
    """Per step and layer in the file, a line per method in the table, and nothing where they are off."""
    words = [
        "--workers",
        "2",
        "--link",
        "none",
        "--steps",
        "2",
        "--warmup",
        "1",
        "--repeats",
        "1",
        "--timeout",
        "60s",
        "--baseline",
        "none",
    ]
    methods = ["--method", "dense,overlap=off", "--method", "topk,overlap=on,values=fp16"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "netsim_ddp",
            "run",
            *words,
            *methods,
            "--statistics",
            "layers",
            "--json",
            "out.json",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = load(tmp_path / "out.json")
    dense, topk = result.cells
    assert all(rank.selection is None for rank in dense.repeats[0].ranks)
    for rank in topk.repeats[0].ranks:
        assert rank.selection is not None
        assert len(rank.selection.steps) == 2
        for row in rank.selection.steps:
            assert 0.01 <= row.ratio < 0.011
            assert row.energy_kept is not None
            assert 0.01 < row.energy_kept < 1
        assert sum(row.payload_bytes for row in rank.selection.steps) == rank.payload_bytes
        entries = sum(layer.entries for layer in rank.selection.layers.values())
        assert entries == pytest.approx(sum(row.entries for row in rank.selection.steps) / 2)
    assert "energy kept" in done.stdout

    text = io.StringIO()
    render_selections(result, Console(file=text, width=80))
    assert max(map(len, text.getvalue().splitlines())) <= 80
    assert "topk" in text.getvalue()
    assert "dense" not in text.getvalue()
    bare = json.loads((tmp_path / "out.json").read_text())
    for cell in bare["cells"]:
        for rank in cell["repeats"][0]["ranks"]:
            rank["selection"] = None
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    text = io.StringIO()
    render_selections(load(tmp_path / "bare.json"), Console(file=text, width=80))
    assert text.getvalue() == ""
