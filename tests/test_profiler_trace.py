"""A recording from a profiler's trace: sizes and moments of NCCL's reductions, and nothing that it does not say."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from netsim_ddp.errors import UsageError
from netsim_ddp.results.recording_file import read
from netsim_ddp.scenario.files import validate_as
from netsim_ddp.scenario.steps import Scenario
from netsim_ddp.workloads.recording.profiler_trace import recording_of
from tests.commands import answer, complaint

STEP_US = 100_000.0


def _reduction(ts: float, dur: float, numel: int, dtype: str = "Float", **args: Any) -> dict[str, Any]:
    said = {
        "Collective name": "allreduce",
        "In msg nelems": numel,
        "dtype": dtype,
        "Group size": 8,
        "Rank": 3,
    }
    name = "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
    return {"ph": "X", "cat": "kernel", "name": name, "ts": ts, "dur": dur, "args": {**said, **args}}


def trace(steps: int = 3, begin: float = 5e6) -> dict[str, Any]:
    """Of each step two buckets, full at 40 and 70 ms; the second one's exchange ends at 90 of 100 ms. The first step
    has one bucket of everything, as before DDP cuts them anew."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name"},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm"},
    ]
    for step in range(steps):
        at = begin + step * STEP_US
        for category, early in (("gpu_user_annotation", 0.0), ("user_annotation", 30_000.0)):
            mark = {
                "ph": "X",
                "cat": category,
                "name": f"ProfilerStep#{step}",
                "ts": at - early,
                "dur": STEP_US,
            }
            events.append(mark)
        if step == 0:
            events.append(_reduction(at + 70_000, 20_000, 3_000_000))
            continue
        events += [_reduction(at + 40_000, 15_000, 1_000_000), _reduction(at + 70_000, 20_000, 2_000_000)]
    return {"traceEvents": events, "deviceProperties": [{"name": "NVIDIA H100"}]}


def _file(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_a_trace_gives_sizes_and_moments(tmp_path: Path) -> None:
    recording = recording_of(_file(tmp_path / "t.json", trace()))
    assert [(bucket.numel, bucket.dtype) for bucket in recording.buckets] == [
        (10**6, "float32"),
        (2 * 10**6, "float32"),
    ]
    assert recording.source == "trace"
    assert recording.gradients.kind == "synthetic"
    assert (recording.world_size, recording.ranks[0].rank, recording.ranks[0].device) == (8, 3, "NVIDIA H100")
    first, second = recording.ranks[0].steps
    assert first.full_s == pytest.approx([0.04, 0.07])
    assert first.done_s == pytest.approx([0.055, 0.09])
    assert (first.computed_s, first.exposed_s, first.after_s) == pytest.approx((0.07, 0.02, 0.01))
    assert second.begin_s == pytest.approx(0.1)
    assert any("left out: 1 of 3 steps" in note for note in recording.notes)


def test_a_packed_trace_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "t.json.gz"
    path.write_bytes(gzip.compress(json.dumps(trace()).encode()))
    assert len(recording_of(path).buckets) == 2
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UsageError, match="damaged"):
        recording_of(path)


def test_buckets_that_waited_for_each_other_are_told(tmp_path: Path) -> None:
    content = trace()
    for event in content["traceEvents"]:
        if event.get("cat") == "kernel" and event["dur"] == 15_000:
            event["dur"] = 29_999
    assert any("were full before" in note for note in recording_of(_file(tmp_path / "t.json", content)).notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda events: [each for each in events if each.get("cat") != "kernel"],
            "holds no reduction of NCCL's",
        ),
        (lambda events: [each for each in events if "ProfilerStep" not in each["name"]], "where a step ends"),
        (lambda events: [*events, _reduction(1.0, 1.0, 5, "Int")], "no type of gradients"),
        (lambda events: [*events, _reduction(-1.0, 1.0, 5)], "without its time or size"),
        (lambda events: [*events, _reduction(1.0, 1.0, 0)], "without its time or size"),
    ],
)
def test_a_trace_that_does_not_say_enough_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    content = trace()
    content["traceEvents"] = change(content["traceEvents"])
    with pytest.raises(UsageError, match=message) as caught:
        recording_of(_file(tmp_path / "t.json", content))
    assert "\n" not in str(caught.value)


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no traceEvents"):
        recording_of(_file(tmp_path / "t.json", {"schema_version": 4}))


def test_the_command_makes_a_recording_that_a_run_takes(tmp_path: Path) -> None:
    _file(tmp_path / "t.json", trace())
    told = answer(["record", "--trace", "t.json", "-o", "r.netsim"], tmp_path)
    assert told.returncode == 0, told.stderr
    assert read(tmp_path / "r.netsim").numel == 3_000_000
    scenario = validate_as(Scenario, {"recording": str(tmp_path / "r.netsim")}, None)
    assert scenario.recording is not None
    assert "SYNTHETIC" in scenario.recording.gradients_described
    assert "nothing to record" in complaint(["record"], tmp_path)
    assert "leave one of them away" in complaint(["record", "--trace", "t.json", "--", "python"], tmp_path)


def test_a_trace_of_a_job_without_nccl_says_what_to_do(tmp_path: Path) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        torch.ones(2, 2).matmul(torch.ones(2, 2))
    profiled.export_chrome_trace(str(tmp_path / "t.json"))
    told = complaint(["record", "--trace", "t.json"], tmp_path)
    assert "a job on Gloo" in told
    assert "netsim record -- python train.py" in told
