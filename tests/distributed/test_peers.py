"""``python reports/peers.py`` runs every kind of method on a real link, and its page has every figure of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torchvision

from reports import peers, peers_worker
from reports.form import keep
from tests.distributed.test_run import tc_or_skip

METHODS = "none,ddp+onebucket,fp16,powersgd+batched+views,flat,backend,hook+views,hook+overlap"


@pytest.mark.alone
@pytest.mark.privileged
def test_a_quick_run_has_every_figure(capfd: pytest.CaptureFixture[str]) -> None:
    tc_or_skip()
    before = [path.exists() and path.read_bytes() for path in (peers.FILE, peers.PAGE)]
    peers.main(["--quick", "--methods", METHODS])
    assert [path.exists() and path.read_bytes() for path in (peers.FILE, peers.PAGE)] == before
    page = capfd.readouterr().out
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"
    ]
    found = {(name, variant): figures for name, variant, *figures in rows[2:]}
    assert list(found) == [peers.titled(name) for name in METHODS.split(",")]
    sent = dict(zip(METHODS.split(","), (float(figures[5]) for figures in found.values()), strict=True))
    assert sent["ddp+onebucket"] == pytest.approx(2 * sent["fp16"], rel=0.1)
    assert 0 <= sent["none"] < sent["backend"] < sent["flat"] < sent["ddp+onebucket"] / 20
    with_calls = [
        name for name, figures in zip(METHODS.split(","), found.values(), strict=True) if figures[6] != "-"
    ]
    assert with_calls == ["fp16", "hook+views", "hook+overlap"]
    assert all("-" not in figures[:6] for figures in found.values())


def test_the_model_has_resnet50_s_parameters_and_every_method_a_name() -> None:
    model = torchvision.models.resnet50()
    assert peers_worker.resnet50_shapes() == [tuple(parameter.shape) for parameter in model.parameters()]
    assert set(peers_worker.METHODS) == set(peers.NAMES)


def test_some_methods_alone_write_no_file_and_unknown_ones_are_refused() -> None:
    assert not peers.arguments(["--workers", "8"]).print_only
    assert peers.arguments(["--methods", "backend,hook+views"]).print_only
    for words in (["--methods", "hooks"], ["--methods", "hook+view"]):
        with pytest.raises(SystemExit, match="2"):
            peers.arguments(words)
    with pytest.raises(SystemExit, match="0"):
        peers.arguments(["--help"])


def test_figures_are_of_rounds_then_of_repeats_and_the_file_holds_them(tmp_path: Path) -> None:
    def turn(step: float, cpu: float) -> dict[str, object]:
        return {
            "step_ms": [step, step + 1, 2 * step],
            "call_ms": [0.0],
            "cpu_ms": cpu,
            "sent_bytes": 2_000_000,
        }

    # The machine is slower by half in the second round, which ratios do not show.
    launches = [
        [
            {
                "none": turn(99 * slow, 10),
                "backend": turn(199 * slow, 30),
                "hook": turn((299 + more) * slow, 50),
            }
            for slow in (1, 1.5, 1)
        ]
        for more in (0, 40, 20)
    ]
    kept = {"launches": {"8": [{"others": 0.0, "rounds": each} for each in launches]}}
    keep(tmp_path / "kept.json", kept)
    assert json.loads((tmp_path / "kept.json").read_text()) == kept
    figures = peers.row(launches, "hook").split(" | ")
    assert figures[2:7] == ["320 (300..340)", "1.60 (1.50..1.70)", "220 (200..240)", "50", "2.00"]
