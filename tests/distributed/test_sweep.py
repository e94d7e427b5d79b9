"""``netsim sweep`` with real workers: stopped, continued, a cell that fails and is tried again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from netsim_ddp.errors import LinkUnavailable
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.ranks.pool import Pool
from netsim_ddp.results.files import load
from netsim_ddp.results.record import Result
from netsim_ddp.scenario import Scenario
from netsim_ddp.steps.runner import run
from tests.commands import FORKED, ROOT
from tests.forking import ADDRESS, address
from tests.links import is_sent, usable

DEADLINE_S = 240
MATRIX = """
title: Small
question: Does it pay?
link: bucket
workers: 2
steps: 2
warmup: 0
repeats: 2
methods: ["dense,overlap=off", "frail:build"]
baseline: none
matrix:
  bandwidth: [50mbps, 100mbps]
"""
# A user's method that is broken until a file appears.
FRAIL = """
import pathlib

from netsim_ddp.communication.methods.dense import DenseAllReduce


def build(flat, group):
    if not pathlib.Path("repaired").exists():
        raise RuntimeError("not written yet")
    return DenseAllReduce(flat, group)
"""


def sweep(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*FORKED, "sweep", "small.yaml", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80", ADDRESS: address()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


def repeats(result: Result) -> dict[str, int]:
    return {cell.id: len(cell.repeats) for cell in result.cells}


def test_a_sweep_is_stopped_continued_and_repaired(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(MATRIX, encoding="utf-8")
    (tmp_path / "frail.py").write_text(FRAIL, encoding="utf-8")
    file = tmp_path / ".netsim" / "sweep-small.json"

    process = sweep(tmp_path, "-k", "dense")
    assert process.stderr is not None
    seen = ""
    while " 1/4 bandwidth=50mbps/dense" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    process.send_signal(signal.SIGINT)
    code, _, err = finished(process)
    assert code == 130, err
    assert f"saved {file.relative_to(tmp_path)}; the same command goes on" in err
    stopped = load(file)
    assert stopped.status == "partial"
    assert 1 <= sum(repeats(stopped).values()) < 4
    assert json.loads((tmp_path / ".netsim" / "last.json").read_text()) == json.loads(file.read_text())

    code, out, err = finished(sweep(tmp_path))
    assert code == 3, err
    assert "netsim: kept" in err
    assert "netsim: 2 of 4 cells failed (the same command tries them again)" in err
    assert "Failed: bandwidth=100mbps/frail:build: method 'frail:build' failed while building" in " ".join(
        out.split()
    )
    marked = load(file)
    assert repeats(marked) == {
        "bandwidth=50mbps/dense,overlap=off": 2,
        "bandwidth=50mbps/frail:build": 0,
        "bandwidth=100mbps/dense,overlap=off": 2,
        "bandwidth=100mbps/frail:build": 0,
    }
    assert [cell.error is not None for cell in marked.cells] == [False, True, False, True]
    before = {cell.id: cell.repeats for cell in marked.cells}
    assert before["bandwidth=50mbps/dense,overlap=off"][:1] == stopped.cells[0].repeats[:1]

    (tmp_path / "repaired").touch()
    code, out, err = finished(sweep(tmp_path, "--lf"))
    assert code == 0, err
    assert "/dense" not in "".join(line for line in err.splitlines() if "/4 " in line)  # only what had failed
    whole = load(file)
    assert whole.status == "complete"
    assert set(repeats(whole).values()) == {2}
    for cell in whole.cells:
        assert cell.error is None
        assert cell.repeats[: len(before[cell.id])] == before[cell.id]
        assert cell.axes == {"bandwidth": cell.id.partition("/")[0].removeprefix("bandwidth=")}
        assert (cell.model, cell.dataset, cell.link.mechanism) == ("simple_cnn", "digits", "bucket")
    assert "replay: netsim sweep .netsim/sweep-small.json" in out


@pytest.mark.alone
@pytest.mark.privileged
def test_two_links_and_one_interpreter_serve_several_runs() -> None:
    try:
        with usable():
            pass
    except LinkUnavailable as error:
        pytest.skip(f"tc links cannot be made here: {error.message}")
    rates = (100_000_000, 400_000_000)
    notes: list[str] = []

    def measure(pool: Pool, rate: int) -> Any:
        settings: dict[str, Any] = {
            "link": "tc",
            "workers": 2,
            "bandwidth_bps": rate,
            "steps": 2,
            "warmup": 1,
        }
        scenario = Scenario(**settings, repeats=1, methods=("dense,overlap=off",))  # type: ignore[arg-type]
        result = run(
            scenario,
            command=["netsim"],
            report=lambda event: notes.append(event.text) if event.kind == "note" else None,
            save=lambda _: None,
            pool=pool,
        )
        return result.cells[0]

    with Pool([(LinkSpec(2, rate), "tc") for rate in rates]) as pool:
        cells = [measure(pool, rate) for rate in (*rates, rates[0])]
    assert notes.count("importing torch once for all workers") == 1
    assert notes.count("probing the link") == 2
    for cell, rate in zip(cells, (*rates, rates[0]), strict=True):
        assert cell.link.measured_bps == pytest.approx(rate * 1448 / 1514, rel=0.05)
        for rank in cell.repeats[0].ranks:  # each link counts its own bytes
            assert rank.predicted_tx_bytes is not None
            assert is_sent(rank.tx_bytes, rank.predicted_tx_bytes, cell.link.retransmits)
    assert cells[0].summary.communicate_s > 2 * cells[1].summary.communicate_s
