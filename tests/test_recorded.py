"""A recording in a scenario: what it stands for, what goes with it, what it is called and compared with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from netsim_ddp.communication.flat import FlatGradients
from netsim_ddp.communication.methods.dense import DenseAllReduce
from netsim_ddp.communication.segments import CodecWork, Group, Wire
from netsim_ddp.errors import UsageError
from netsim_ddp.link.probe.probe import MESSAGE_SIZES
from netsim_ddp.results.identity import planned
from netsim_ddp.results.recording import Pass, Step
from netsim_ddp.scenario import build_scenario
from netsim_ddp.scenario.matrix import expand, override, parse
from netsim_ddp.scenario.settings import ADAM_DENSE_BELOW
from netsim_ddp.scenario.steps import Scenario
from netsim_ddp.steps.execution import Execution, Play
from netsim_ddp.steps.phases import HostClock, Phase, StepSample, StepTimer
from netsim_ddp.steps.recorded_program import RecordedTraining, schedule_of
from netsim_ddp.sweep.estimate import repeat_seconds
from netsim_ddp.sweep.plan import Unit, plan
from netsim_ddp.tools.probe import message_sizes
from netsim_ddp.workloads.recording.model import RecordedModel, layout
from tests.commands import answer, complaint
from tests.one_process import alone
from tests.planted_recordings import file, recording, step


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return file(tmp_path / "train.netsim")


def test_it_stands_for_the_model_and_its_data(recorded: Path) -> None:
    scenario = build_scenario({"recording": str(recorded)}).resolved()
    assert scenario.recording is not None
    assert scenario.model == f"Net@{scenario.recording.key}"
    assert scenario.dataset is None
    assert scenario.recording.step_s == pytest.approx(0.04)
    assert all(method.params.get("overlap") for method in scenario.methods if method.name == "topk")
    assert Scenario.model_validate(scenario.model_dump(mode="json")) == scenario  # as ranks get it


def test_another_recording_of_one_model_is_another_model(tmp_path: Path, recorded: Path) -> None:
    other = file(tmp_path / "other.netsim", recording(optimizer="Adam"))
    one, two = (build_scenario({"recording": str(path)}) for path in (recorded, other))
    assert one.model != two.model


def test_what_adam_trained_is_sent_as_under_adam(tmp_path: Path) -> None:
    for optimizer, below in (("SGD", None), ("AdamW", ADAM_DENSE_BELOW)):
        path = file(tmp_path / f"{optimizer}.netsim", recording(optimizer=optimizer))
        cells = build_scenario({"recording": str(path)}).cells()
        (topk,) = (cell for cell in cells if cell.name == "topk")
        assert topk.params.get("dense_below") == below


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--model", "resnet18"], "--model and --recording"),
        (["--dataset", "digits"], "--dataset and --recording"),
        (["--batch-size", "32"], "--batch-size and --recording"),
        (["--compute", "50ms"], "--scale-compute 0.2"),
        (["--ready-from", "a.json"], "--ready-from and --recording"),
        (["--lr", "0.1"], "--learning-rate and --recording"),
        (["--momentum", "0.9"], "--momentum and --recording"),
        (["--text", "book.txt"], "--text and --recording"),
        (["--scale-compute", "0"], "must be more than 0"),
        (["--scale-compute", "nan"], "must be a number"),
    ],
)
def test_what_says_the_same_or_has_no_use_is_refused(
    tmp_path: Path, recorded: Path, words: list[str], what: str
) -> None:
    assert what in complaint(["run", "--recording", recorded.name, *words], tmp_path)


def test_a_recording_of_one_step_is_played_with_a_warning(tmp_path: Path) -> None:
    ranks = recording().ranks
    one = [rank.model_copy(update={"steps": rank.steps[:1]}) for rank in ranks]
    file(tmp_path / "one.netsim", recording().model_copy(update={"ranks": one}))
    done = answer(["predict", "--recording", "one.netsim", "-n", "2", "--method", "dense"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning: one.netsim holds one step, which is played again and again" in done.stderr
    file(tmp_path / "one.netsim")
    done = answer(["predict", "--recording", "one.netsim", "-n", "2", "--method", "dense"], tmp_path)
    assert "one step" not in done.stderr


def test_what_only_a_recording_has_is_refused_without_one(tmp_path: Path) -> None:
    assert "--recording" in complaint(["run", "--scale-compute", "0.5"], tmp_path)
    assert "--recording" in complaint(["run", "--model", "Net@0123456789ab"], tmp_path)
    assert "--recording" in complaint(["train", "--model", "Net@0123456789ab"], tmp_path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b"\x80\x04pickle", "is a pickle"),
        (b'{"schema_version": 4}', "is JSON"),
        (b"PK\x03\x04", "its end is missing"),
    ],
)
@pytest.mark.parametrize("command", ["run", "probe"])
def test_a_file_that_is_none_gets_one_line(
    tmp_path: Path, content: bytes | None, what: str, command: str
) -> None:
    if content is not None:
        (tmp_path / "x.netsim").write_bytes(content)
    assert what in complaint([command, "--recording", "x.netsim"], tmp_path)


def test_a_scenario_names_it_beside_itself_and_a_flag_where_you_are(
    tmp_path: Path, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "scenarios"
    folder.mkdir()
    shutil.copy(recorded, folder / "near.netsim")
    (folder / "run.yaml").write_text("recording: near.netsim\nworkers: 2\n")
    monkeypatch.chdir(tmp_path)
    found = build_scenario({}, folder / "run.yaml").recording
    assert found is not None
    assert Path(found.path) == folder / "near.netsim"
    with pytest.raises(UsageError, match="No such file"):
        build_scenario({"recording": "near.netsim"}, folder / "run.yaml")
    assert build_scenario({"model": "simple_cnn"}, folder / "run.yaml").recording is None


def test_a_result_finds_it_again_and_no_other(
    tmp_path: Path, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scenario = build_scenario({"recording": recorded.name, "workers": "2"}).resolved()
    (tmp_path / ".netsim").mkdir()
    saved = tmp_path / ".netsim" / "last.json"
    saved.write_text(json.dumps({"schema_version": 4, "scenario": scenario.model_dump(mode="json")}))
    assert build_scenario({}, saved).resolved() == scenario
    assert build_scenario({"workers": "3"}, saved).workers == 3
    assert build_scenario({"model": "resnet18"}, saved).resolved().model == "resnet18"
    file(recorded, recording(optimizer="Adam"))
    with pytest.raises(UsageError, match="another recording") as caught:
        build_scenario({}, saved)
    assert "\n" not in str(caught.value)
    again = build_scenario({"recording": recorded.name}, saved)
    assert again.recording is not None
    assert again.recording != scenario.recording


def test_a_sweep_takes_it_in_place_of_its_files_model(tmp_path: Path, recorded: Path) -> None:
    data: dict[str, Any] = {
        "model": "resnet50",
        "compute": "60ms",
        "matrix": {"bandwidth": ["100mbps", "1gbps"], "batch_size": [8]},
    }
    matrix = override(parse(data, "crossover.yaml"), {"recording": str(recorded)})
    points = expand(matrix, Scenario)
    assert len(points) == 2
    assert all(point.settings.recording is not None and point.settings.compute_s is None for point in points)
    (run, _) = plan(points)
    moved = tmp_path / "moved.netsim"
    shutil.move(recorded, moved)
    there = build_scenario({"recording": str(moved), "bandwidth": "100mbps"})
    dumped = there.resolved().model_dump(mode="json")
    assert planned(dumped, "dense") == planned(run.settings.model_dump(mode="json"), "dense")
    unit = Unit(run, run.cells[0], (0,))
    steps = run.settings.steps + run.settings.warmup  # type: ignore[attr-defined]
    assert repeat_seconds(unit) > steps * 0.04


def test_scaling_leaves_what_is_no_computation() -> None:
    plain = schedule_of(step(), 1.0)
    assert plain.forward_s == 0.004
    assert plain.ready_s == pytest.approx([0.022, 0.034])
    assert plain.after_s == pytest.approx(0.006)
    faster = schedule_of(step(exposed_s=0.1), 0.5)
    assert faster.forward_s == 0.004
    assert faster.ready_s == pytest.approx([0.004 + 0.009, 0.004 + 0.015])
    assert faster.after_s == pytest.approx(0.003)


def test_data_between_two_passes_is_not_scaled() -> None:
    two = Step(
        begin_s=0,
        passes=[
            Pass(forward_s=0.01, backward_s=0.02, end_s=0.04),
            Pass(forward_s=0.05, backward_s=0.06, end_s=0.08),
        ],
        full_s=[0.07, None],
        done_s=[0.08, None],
        optimizer_s=0.08,
        end_s=0.1,
    )  # fmt: skip
    found = schedule_of(two, 0.1)
    assert found.ready_s == pytest.approx([0.01 + 0.003 + 0.01 + 0.002] * 2)


def test_a_probe_tries_the_messages_that_buckets_make(recorded: Path) -> None:
    scenario = build_scenario({"recording": str(recorded), "workers": "2"})
    assert message_sizes(scenario) == [4 * 2100 // 2, 4 * 3300 // 2]
    assert list(message_sizes(build_scenario({}))) == list(MESSAGE_SIZES)


def test_the_sweep_command_takes_it(tmp_path: Path, recorded: Path) -> None:
    (tmp_path / "it's.yaml").write_text("model: resnet50\ncompute: 60ms\nmatrix: {workers: [2, 4]}\n")
    done = answer(["sweep", "it's.yaml", "--recording", recorded.name, "--dry-run"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "workers=4/dense" in done.stdout
    assert "No such file" in complaint(["sweep", "it's.yaml", "--recording", "it's none"], tmp_path)


class _Told(Execution):
    """Keeps what a program asks for, and when (seconds since the step began); nothing takes time."""

    def __init__(self) -> None:
        super().__init__(StepTimer(HostClock()))
        self.asked: list[tuple[str, float]] = []

    def step(self, play: Play) -> StepSample:
        play(self)
        return StepSample([])

    def local(self, phase: Phase, run: Callable[[], None], work: CodecWork | None = None) -> None:
        del run, work
        self.asked.append((phase, 0.0))

    def compute(self, run: Callable[[], None]) -> None:
        del run
        raise AssertionError("a recording computes nothing")

    def until(self, offset: float) -> None:
        self.asked.append(("until", offset))

    def waits_for_data(self, seconds: float) -> None:
        self.asked.append(("data", seconds))

    def takes(self, phase: Phase, seconds: float) -> None:
        self.asked.append((phase, seconds))

    def start(self, wire: Wire) -> None:
        del wire
        self.asked.append(("start", 0.0))

    def finish(self, wire: Wire) -> None:
        del wire
        self.asked.append(("finish", 0.0))


@pytest.mark.parametrize(
    ("parts", "as_ddp", "expected"),
    [
        (1, False, ["until 34", "start", "finish", "decompress"]),
        (
            2,
            False,
            ["until 22", "start", "until 34", "start", "finish", "decompress", "finish", "decompress"],
        ),
        (2, True, ["until 22", "start", "until 34", "start", "finish", "finish"]),
    ],
)
def test_a_step_is_the_recorded_one(parts: int, as_ddp: bool, expected: list[str]) -> None:
    of = recording()
    parameters, ranges = layout(of)
    flat = FlatGradients(RecordedModel(parameters, torch.device("cpu")).named_parameters())
    gradients = [[torch.full(each.shape, 6.0) for each in parameters]]
    told, steps = _Told(), [step(), step(full_s=[0.03, 0.03])]
    with alone():
        flats = [flat.part(*each) for each in ranges] if parts == 2 else [flat]
        methods = [DenseAllReduce(each, Group(0, 3)) for each in flats]
        program = RecordedTraining(
            flat,
            Group(0, 3),
            methods,
            gradients,
            [schedule_of(each, 1.0) for each in steps],
            lambda: 2,  # the third step that counts plays the first one again
            lambda _: None,
            as_ddp=as_ddp,
            divided=as_ddp,
        )
        program.step(told)
    found = [what + (f" {1e3 * when:.0f}" if when else "") for what, when in told.asked]
    assert found == ["data 4", *expected, "optimizer 6"]
    assert float(flat.data[0]) == (2.0 if as_ddp else 6.0)  # DDP divides before it sums
