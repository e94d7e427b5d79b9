"""``python reports/peers.py`` runs every kind of method on a real link, and its page has every figure of each."""

from __future__ import annotations

import json

import pytest
import torchvision

from reports import peers, peers_worker
from tests.distributed.test_run import tc_or_skip

METHODS = "none,ddp+onebucket,fp16,bf16+views,powersgd+batched+views,flat,backend,hook+views,hook+overlap"


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
    assert with_calls == ["fp16", "bf16+views", "hook+views", "hook+overlap"]
    for (name, _), figures in found.items():
        missing = [place for place, figure in enumerate(figures[:6]) if figure == "-"]
        assert missing == ([2, 4] if name == peers.NAMES["none"] else [])


def test_the_model_has_resnet50_s_parameters_and_every_method_a_name() -> None:
    model = torchvision.models.resnet50()
    assert peers_worker.resnet50_shapes() == [tuple(parameter.shape) for parameter in model.parameters()]
    assert set(peers_worker.METHODS) == set(peers.NAMES)


def test_the_page_holds_samples_of_all_repeats_and_survives_its_file() -> None:
    def sample(step: float, cpu: float) -> dict[str, list[float]]:
        return {"step_ms": [step], "call_ms": [0.0], "cpu_ms": [cpu], "sent_bytes": [2_000_000]}

    launches = [
        {"none": sample(100, 10), "backend": sample(200 + more, 30), "hook": sample(300 + more, 50)}
        for more in (0, 40, 20)
    ]
    kept = {"launches": {"8": [{"others": 0.0, "methods": each} for each in launches]}}
    assert json.loads(peers.dumped(kept)) == kept
    figures = peers.row(launches, "hook").split(" | ")
    assert figures[2:7] == ["320 (300..340)", "1.45 (1.42..1.50)", "220 (200..240)", "50", "2.00"]
