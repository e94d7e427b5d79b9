"""``netsim predict``: what it says, what it refuses, and that its cells go where a run's cells go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from netsim_ddp.errors import UsageError
from netsim_ddp.predict import message_cost
from netsim_ddp.predict.runner import predict
from netsim_ddp.predict.validation import _rate
from netsim_ddp.report.choices import choices
from netsim_ddp.report.costs import epoch_table
from netsim_ddp.results.prediction_errors import errors_of
from netsim_ddp.results.record import Interval, Result
from netsim_ddp.results.validation import ValidatedCell, Validation, typical
from netsim_ddp.scenario.files import validate_as
from netsim_ddp.scenario.predict import PredictScenario
from tests.commands import answer, command, complaint, measuring
from tests.planted_recordings import file
from tests.results_factory import make_cell


def _predicted(**values: Any) -> Result:
    said = {"model": "simple_cnn", "compute": "20ms", "bandwidth": "100mbps", "workers": 4, **values}
    said = {key: value for key, value in said.items() if value is not None}
    scenario = validate_as(PredictScenario, said, None)
    return predict(scenario, command=["netsim"], report=lambda _: None, save=lambda _: None)


def test_a_step_takes_its_bytes_at_the_rate_and_its_compute() -> None:
    result = _predicted(methods=["dense", "topk"])
    cells = {cell.id: cell for cell in result.cells}
    dense = cells["dense,overlap=off"].summary
    assert dense is not None
    assert dense.step_s.median >= 0.02 + dense.tx_bytes_per_step * 8 / 1e8
    assert dense.step_s.median == pytest.approx(0.02 + dense.tx_bytes_per_step * 8 / 1e8, rel=0.1)
    assert dense.compute_s == pytest.approx(0.02)
    assert all(cell.execution == "predicted" and cell.link.mechanism == "model" for cell in result.cells)
    topk = next(cell for cell in result.cells if cell.method == "topk")
    assert topk.summary is not None
    assert topk.summary.speedup is not None
    assert topk.summary.speedup > 5
    assert "split" in str(topk.params["collective"])
    assert topk.ready


def test_more_delay_more_workers_and_less_bandwidth_take_longer() -> None:
    def step(**values: Any) -> float:
        (cell,) = _predicted(methods=["dense,overlap=off"], baseline="none", **values).cells
        assert cell.summary is not None
        return cell.summary.step_s.median

    base = step()
    assert step(workers=16) > base
    assert step(delay="20ms") > base + 2 * 0.02
    assert step(bandwidth="10mbps") > 5 * base


def test_a_host_costs_something_for_each_message_and_each_round() -> None:
    costs = message_cost.measured()
    assert 0 < costs["allreduce"].round_s < 0.1
    assert 0 < costs["alltoall"].round_s < 0.1
    assert 0 <= costs["alltoall"].message_s < 0.05


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"compute": None}, "what a step computes must be known"),
        ({"loss": "1%"}, "loses packets"),
        ({"peak": "1gbps", "credit": "1GB"}, "whose rate changes"),
        ({"workers": 100_000}, "workers"),
    ],
)
def test_what_cannot_be_predicted_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _predicted(**values)


def test_the_command_writes_a_result_that_reports_read(tmp_path: Path) -> None:
    words = (
        "predict --model simple_cnn --compute 20ms --workers 2,300 --bandwidth 1gbps,100mbps --json p.json"
    )
    told = command(words.split(), tmp_path)
    assert told.returncode == 0, told.stderr
    assert "PREDICTED" in told.stdout
    cells = json.loads((tmp_path / "p.json").read_text())["cells"]
    assert {(cell["workers"], cell["bandwidth_bps"]) for cell in cells} == {
        (workers, rate) for workers in (2, 300) for rate in (10**9, 10**8)
    }
    shown = answer(["report", "p.json"], tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "p.json holds predictions" in complaint(["predict", "--validate", "p.json"], tmp_path)


def test_the_command_says_what_it_lacks(tmp_path: Path) -> None:
    assert "or --compute 50ms" in complaint(["predict", "--workers", "8"], tmp_path)


def test_what_was_measured_is_predicted_and_held_against_it(tmp_path: Path) -> None:
    run = "run --model simple_cnn --compute 20ms --bandwidth 50mbps --workers 2 --link bucket --repeats 1 --steps 5"
    told = measuring([*run.split(), "--json", "run.json"], tmp_path)
    assert told.returncode == 0, told.stderr
    told = command(["predict", "--validate", "run.json", "--json", "validation.json"], tmp_path)
    assert told.returncode == 0, told.stderr
    assert "the median error is" in told.stdout
    cells = Validation.model_validate_json((tmp_path / "validation.json").read_text()).cells
    dense = next(cell for cell in cells if cell.id == "dense,overlap=off")
    assert dense.error is not None
    assert abs(dense.error) < 0.1  # 0.7 s of line; a busy host adds milliseconds
    assert "leave --workers away" in complaint(
        ["predict", "--validate", "run.json", "--workers", "2"], tmp_path
    )


def _cell(measured_s: float, predicted_s: float | None, *, host_limited: bool = False) -> ValidatedCell:
    return ValidatedCell(
        id="topk", source="a.json", method="topk", model="resnet18", workers=2, bandwidth_bps=1e9, delay_s=0.0,
        execution="concurrent", mechanism="tc", predicted_s=predicted_s, host_limited=host_limited,
        measured_s=Interval(median=measured_s, ci_low=measured_s, ci_high=measured_s),
    )  # fmt: skip


def test_errors_are_of_cells_that_the_link_set_the_pace_of() -> None:
    cells = [_cell(1.0, 1.0 + error / 100) for error in range(20)]
    assert typical([*cells, _cell(1.0, 9.0, host_limited=True), _cell(1.0, None)]) == pytest.approx(
        (0.095, 0.18)
    )
    assert typical([_cell(1.0, None)]) is None


def test_a_recorded_training_is_predicted_with_its_own_moments_and_types(tmp_path: Path) -> None:
    file(tmp_path / "r.netsim")
    said = {"recording": str(tmp_path / "r.netsim"), "bandwidth": "10gbps", "workers": 64, "baseline": "none"}
    scenario = validate_as(PredictScenario, {**said, "methods": ["dense"]}, None)
    result = predict(scenario, command=["netsim"], report=lambda _: None, save=lambda _: None)
    plain, overlapped = (cell.summary for cell in result.cells)
    assert plain is not None
    assert overlapped is not None
    assert plain.compute_s == pytest.approx(0.03, rel=0.01)  # forward and backward; 4 ms of data come first
    assert plain.optimizer_s == pytest.approx(0.006, rel=0.01)
    assert plain.payload_bytes_per_step == 4 * 5400
    assert overlapped.hidden_s > 0
    half = validate_as(
        PredictScenario, {**said, "scale_compute": 0.5, "methods": ["dense,overlap=off"]}, None
    )
    (cell,) = predict(half, command=["netsim"], report=lambda _: None, save=lambda _: None).cells
    assert cell.summary is not None
    assert cell.summary.compute_s == pytest.approx(0.015, rel=0.01)


def test_a_link_on_tc_is_predicted_at_what_tcp_got_of_it_when_all_sent_at_once() -> None:
    link = make_cell("dense", [10.0]).link.model_copy(
        update={"mechanism": "tc", "together_bps": 90e6, "ceiling_bps": 95.6e6, "measured_bps": 95e6}
    )
    cell = make_cell("dense", [10.0]).model_copy(update={"link": link})
    assert _rate(cell, {"bandwidth_bps": 10**8})["bandwidth_bps"] == pytest.approx(1e8 * 90 / 95.6, abs=1)
    assert _rate(cell, {"bandwidth_bps": 10**8, "slow_ranks": [1]}) == {}
    unknown = cell.model_copy(update={"link": link.model_copy(update={"together_bps": None})})
    assert _rate(unknown, {"bandwidth_bps": 10**8}) == {}
    more = cell.model_copy(update={"link": link.model_copy(update={"together_bps": 99e6})})
    assert _rate(more, {"bandwidth_bps": 10**8}) == {"bandwidth_bps": 10**8}


def _validation(*cells: ValidatedCell) -> Validation:
    return Validation(
        tool={"version": "0"},
        created_utc="",
        environment={},
        command="netsim",
        cells=list(cells),  # type: ignore[arg-type]
    )


def test_an_error_stands_beside_each_figure_and_what_lies_beyond_the_validation_is_named(
    tmp_path: Path,
) -> None:
    path = tmp_path / "validation.json"
    cells = [_cell(1.0, 1 + each / 100).model_copy(update={"workers": 2 + each % 3}) for each in range(-4, 6)]
    path.write_text(_validation(*cells).model_dump_json())
    words = [
        "predict",
        "--model",
        "simple_cnn",
        "--compute",
        "20ms",
        "--workers",
        "4,32",
        "--bandwidth",
        "1gbps",
    ]
    words += ["--method", "topk,overlap=off", "--baseline", "none"]
    done = measuring([*words, "--errors", str(path), "--json", "-"], tmp_path)
    assert done.returncode == 0, done.stderr
    result = Result.model_validate(json.loads(done.stdout))
    for cell in result.cells:
        assert cell.summary is not None
        assert cell.prediction_error is not None
        step = cell.summary.step_s
        assert (step.ci_low, step.ci_high) == pytest.approx((step.median / 1.05, step.median / 0.96))
    said = " ".join(choices(result))
    assert "± holds 90%" in said
    assert "32 workers (validated: " in said
    assert "4 workers (validated: " not in said


def test_netsims_own_validation_stands_beside_predictions_unless_none_is_wanted() -> None:
    result = _predicted(methods=["topk"])
    (cell,) = [cell for cell in result.cells if cell.method == "topk"]
    assert cell.prediction_error is not None
    assert "reports/validation.md" in cell.prediction_error.source
    assert cell.summary is not None
    assert cell.summary.step_s.ci_low < cell.summary.step_s.median < cell.summary.step_s.ci_high
    assert any("± holds 90%" in line for line in choices(result))
    assert any("is not known" in line for line in choices(_predicted(methods=["topk"], errors="none")))


def test_a_file_that_is_no_validation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("{}")
    words = ["predict", "--compute", "20ms", "--errors", str(path)]
    assert "holds no validation" in complaint(words, tmp_path)


def test_few_cells_of_a_method_leave_the_errors_of_all() -> None:
    many = [_cell(1.0, 1.1) for _ in range(6)]
    other = _cell(1.0, 2.0).model_copy(update={"method": "powersgd"})
    found = errors_of(_validation(*many, other), "v.json")
    assert found.of("powersgd").high == pytest.approx(1.0)
    assert found.of(many[0].method).high == pytest.approx(0.1)
    with pytest.raises(UsageError, match="no cell"):
        errors_of(_validation(_cell(1.0, None)), "v.json")


def test_what_an_epoch_takes_and_costs() -> None:
    result = _predicted(
        methods=["dense,overlap=off"],
        baseline="none",
        batch_size=8,
        examples_per_epoch=1000,
        price_per_hour=3.6,
    )
    table = epoch_table(result)
    assert table is not None
    (row,) = table.rows
    (cell,) = result.cells
    assert cell.summary is not None
    assert row[2] == "32"  # 1000 examples, 4 workers with 8 each in a step
    assert float(row[4]) == pytest.approx(4 * 32 * cell.summary.step_s.median * 3.6 / 3600, rel=0.01)
    assert epoch_table(_predicted(methods=["topk"])) is None


def test_a_price_needs_the_examples_of_an_epoch() -> None:
    with pytest.raises(UsageError, match="how many examples"):
        _predicted(price_per_hour=2.0)
