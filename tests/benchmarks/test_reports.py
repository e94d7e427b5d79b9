"""Microbenchmarks of reports: a file of 200 cells, from reading it to the finished text. The bar is 3 s."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netsim_ddp.report.collection import Collection, Source
from netsim_ddp.report.export import html, markdown, tidy
from netsim_ddp.results.files import load, save
from tests.results_factory import sweep


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 cells with 5 repeats of 20 steps: 92,000 raw samples, 40 MB."""
    path = tmp_path_factory.mktemp("reports") / "sweep.json"
    rates = tuple(round(10**7 * 10 ** (step / 2)) for step in range(5))
    save(sweep(bandwidths=rates, workers=(2, 3, 4, 6, 8), repeats=5, steps=20), path)
    return path


@pytest.mark.parametrize("build", [html.page, markdown.document, tidy.table], ids=["html", "markdown", "csv"])
def test_report_of_200_cells(benchmark: Any, file: Path, build: Callable[[Collection], str]) -> None:
    def whole() -> str:
        return build(Collection([Source(file.name, load(file))]))

    text = benchmark.pedantic(whole, rounds=5, warmup_rounds=1)
    benchmark.extra_info["bytes"] = len(text.encode())
