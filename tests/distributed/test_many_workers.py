"""Many workers on one host: ``netsim run`` starts them and measures, or says beforehand how many fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from netsim_ddp.errors import LinkOffTarget
from netsim_ddp.link.mechanisms import HostLink
from netsim_ddp.results.files import load
from netsim_ddp.results.limits import is_limited
from netsim_ddp.results.record import Cell
from netsim_ddp.scenario import Scenario, build
from netsim_ddp.steps import runner
from netsim_ddp.steps.host_memory import KEPT, worker_bytes
from tests.commands import answer, measuring
from tests.forking import forking

WORKERS, PARAMETERS = 16, 1_078_666
EMULATED = ["--compute", "20ms", "--link", "bucket", "--bandwidth", "100mbps", "--baseline", "none"]


def test_sixteen_workers_end_a_step_with_the_same_bits_and_the_bytes_of_the_formula(tmp_path: Path) -> None:
    words = [
        "--workers",
        str(WORKERS),
        *EMULATED,
        "--execution",
        "replayed",
        "--repeats",
        "1",
        "--steps",
        "1",
    ]
    words += ["--method", "topk,overlap=off", "--warmup", "0", "--json", "out.json"]
    done = measuring(["run", *words], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (cell,) = load(tmp_path / "out.json").cells
    ranks = cell.repeats[0].ranks
    assert len(ranks) == WORKERS
    assert len({rank.parameters_sha256 for rank in ranks}) == 1
    formula = 2 * (WORKERS - 1) / WORKERS * 0.01 * PARAMETERS * 5.05
    for rank in ranks:
        assert formula < rank.tx_bytes < 1.2 * formula, "headers come on top"


def test_workers_that_do_not_fit_are_refused_with_how_many_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "available_bytes", lambda: 2 * 10**9)
    with forking():
        done = answer(["run", "--workers", "64", *EMULATED], tmp_path)
        assert done.returncode == 2
        said = done.stderr.splitlines()[-1]
        assert said.startswith("netsim: 64 workers with 1,078,666 parameters need about ")
        assert "and 2 GB are free" in said
        fit = re.search(r"write --workers (\d+), ", said)
        assert fit is not None
        assert 2 < int(fit[1]) < 64


@pytest.mark.parametrize(
    ("more", "vectors"),
    [
        ({"compute": "50ms", "methods": ["dense"]}, 2 + 3),
        ({"methods": ["dense"]}, 2),
        ({"methods": ["dense"], "momentum": 0.9}, 2 + 1),
        ({"methods": ["dense"], "optimizer": "adam"}, 2 + 2),
        ({"methods": ["dense", "powersgd"]}, 2 + 3),
    ],
)
def test_a_worker_s_memory_is_that_of_its_vectors(more: dict[str, object], vectors: int) -> None:
    scenario = build(Scenario, {"baseline": "none", "workers": 8, **more}).resolved()
    small, large = worker_bytes(0, scenario), worker_bytes(10**8, scenario)
    assert large - small == pytest.approx(KEPT * 4e8 * vectors)


def test_what_all_ranks_send_to_all_grows_with_their_number() -> None:
    def each(workers: int, method: str) -> float:
        return worker_bytes(
            10**8,
            build(Scenario, {"workers": workers, "methods": [method], "baseline": "none"}).resolved(),
        )

    assert each(64, "topk-allgather") > each(8, "topk-allgather") + 56 * 10**6 * 5
    assert each(64, "topk") < 1.1 * each(8, "topk")


class HostOfTwo(runner.Steps):
    """Where the ranks' own probe found what it says."""

    def take(self, together_mbps: float, alone_mbps: float | None) -> Cell:
        with HostLink(self.scenario.link_spec(), "bucket") as self.link:
            cell = self._cell(self.scenario.methods[0], None)
            fact = {"backend": "netsim", "device": "cpu", "parameters": 1, "unused": [], "differed": False}
            alone_bps = None if alone_mbps is None else alone_mbps * 1e6
            self._take_facts(cell, [{**fact, "probed_bps": together_mbps * 1e6, "alone_bps": alone_bps}])
        return cell


def probed() -> HostOfTwo:
    scenario = build(Scenario, {"bandwidth": "100mbps", "workers": 2, "methods": ["topk"]}).resolved()
    return HostOfTwo(scenario, command=[], report=lambda _: None, save=lambda _: None)


def test_a_bucket_that_one_pair_fills_and_all_at_once_do_not_is_limited_by_the_host() -> None:
    steps = probed()
    assert is_limited(steps.take(70, 95))
    assert any("all ranks sending at once get 70 Mbit/s" in said for said in steps.result.warnings)
    assert not is_limited(probed().take(95, None))
    with pytest.raises(LinkOffTarget):
        probed().take(70, 80)
