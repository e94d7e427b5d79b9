"""The recorder: a training ends with the same bits as unwatched, and its moments are those that it measures itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netsim_ddp
from netsim_ddp.errors import UsageError
from netsim_ddp.results.recording import Recording
from netsim_ddp.results.recording_file import read_gradients
from netsim_ddp.workloads.recording.ddp import Exchanges
from netsim_ddp.workloads.recording.exchanges import has_hooks
from netsim_ddp.workloads.recording.fsdp2 import ReduceScatters
from tests.distributed.ranks import on_ranks
from tests.recorded_training import ALL, DDP, FSDP2, PLAIN, STEPS, Kept, train, watched

CLOSE_S = 0.003
"""A scheduler's whim on a machine that is shared, for which a test must not fail; moments differ by far less."""


def under_ddp(rank: int, _: int, names: Sequence[str]) -> dict[str, Any]:
    found = {}
    for name in names:
        same, kept, log = watched(name, rank)
        found[name] = same, kept.recording, [len(each) for each in kept.sets], kept.reason, log
    return found


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return on_ranks(under_ddp, 2, DDP)


@pytest.fixture(scope="module")
def three() -> list[dict[str, Any]]:
    return on_ranks(under_ddp, 3, ("ddp", "hook", "view"))


def steps_of(log: Sequence[Any]) -> list[list[Any]]:
    """What the script noted, by step."""
    begins = [at for at, entry in enumerate(log) if entry[0] == "step"]
    return [list(log[here:after]) for here, after in pairwise([*begins, len(log)])]


def agrees(recording: Recording, log: Sequence[Any]) -> None:
    """Every moment lies where the script's own clock has it, and in the quietest step close to it: a moment later
    than the script's own only by what lies between."""
    own = steps_of(log)
    apart: dict[Any, list[float]] = {}
    for step in recording.ranks[0].steps:
        moments: dict[Any, float] = dict(own[step.number])
        last = step.passes[-1]
        at = {
            "forward": last.forward_s,
            "backward": last.backward_s,
            "after": last.end_s,
            "end": step.end_s,
            **{number: full for number, full in enumerate(step.full_s) if number in moments},
        }
        for what, moment in at.items():
            late = step.begin_s + moment - moments[what]
            assert (late > 0) == (what in ("forward", "backward")), what
            apart.setdefault(what, []).append(abs(late))
        for what, lates in apart.items():
            length = moments["end"] - moments["step"]
            if len(lates) > 1:  # of one alone the process may have lost its core between the two marks
                assert min(lates) < max(0.05 * length, CLOSE_S), (what, lates)


@pytest.mark.parametrize("name", DDP)
def test_ddp_ends_with_the_same_bits(name: str, two: list[dict[str, Any]]) -> None:
    for rank, results in enumerate(two):
        same, recording, sets, reason, log = results[name]
        assert same
        assert recording is not None, reason
        agrees(recording, log)
        assert recording.source == "ddp"
        assert recording.world_size == 2
        assert recording.ranks[0].rank == rank
        assert [step.number for step in recording.ranks[0].steps] == [3, 3 + 2 * STEPS + 1]
        if name != "static":  # which keeps what it made before the first step
            assert len(recording.buckets) > 1
        whole = [recording.numel] * 3
        assert sets == (whole if rank == 0 else [])
        assert recording.gradients.kind == ("full" if rank == 0 else "none")


@pytest.mark.skipif(not has_hooks(), reason="FSDP2 is recorded from torch 2.14 on")
@pytest.mark.parametrize("workers", [2, 3])
def test_fsdp2_ends_with_the_same_bits_and_shows_its_reduce_scatters(workers: int) -> None:
    for rank, results in enumerate(on_ranks(under_ddp, workers, FSDP2)):
        for name in FSDP2:
            same, recording, sets, reason, log = results[name]
            assert same, name
            assert recording is not None, reason
            agrees(recording, log)
            assert (recording.source, recording.world_size, recording.model) == ("fsdp2", workers, "Net")
            assert recording.ranks[0].rank == rank
            assert [bucket.parameters for bucket in recording.buckets] == [
                ["last.weight", "last.bias"],
                ["first.weight", "first.bias"],
            ]
            assert [bucket.numel for bucket in recording.buckets] == [257 * 4, 33 * 256]
            assert {bucket.dtype for bucket in recording.buckets} == {
                "bfloat16" if name == "fsdp2 mixed" else "float32"
            }
            assert (recording.gradients.kind, sets) == ("synthetic", [])
            assert any("gathering parameters" in note for note in recording.notes)
            for step in recording.ranks[0].steps:
                assert len(step.passes) == (3 if name == "fsdp2 no_sync" else 1)
                begun, ended = step.passes[-1].backward_s, step.passes[-1].end_s
                for full, done in zip(step.full_s, step.done_s, strict=True):
                    assert full is not None
                    assert done is not None
                    assert begun <= full <= done <= ended
                assert step.full_s == sorted(step.full_s)


def with_faults(rank: int, _: int) -> list[tuple[bool, bool, str]]:
    found = []
    for name, watcher in (("ddp", Exchanges), ("fsdp2", ReduceScatters)):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(watcher, "_begins", lambda *_: 1 / 0)
            same, kept, _ = watched(name, rank)
        found.append((same, kept.recording is None, kept.reason))
    return found


@pytest.mark.skipif(not has_hooks(), reason="process groups have hooks from torch 2.14 on")
def test_a_fault_in_a_process_groups_hook_ends_the_recording_and_not_the_training() -> None:
    for results in on_ranks(with_faults, 2):
        for same, nothing, reason in results:
            assert same
            assert nothing
            assert "the recorder failed: " in reason
            assert "division by zero" in reason


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "fsdp1",
            "FullyShardedDataParallel (FSDP1), which is not recorded (shard it with torch.distributed.fsdp.",
        ),
        ("dtensor", "first.weight is sharded (a DTensor), and not by FSDP2"),
    ],
)
def test_what_is_sharded_otherwise_is_refused_by_name(name: str, said: str) -> None:
    [results] = on_ranks(under_ddp, 1, (name,))
    same, recording, _, reason, _ = results[name]
    assert same
    assert recording is None
    assert said in reason


@pytest.mark.skipif(not has_hooks(), reason="FSDP2 is recorded from torch 2.14 on")
def test_one_rank_of_fsdp2_has_nothing_to_record() -> None:
    [results] = on_ranks(under_ddp, 1, ("fsdp2",))
    same, recording, _, reason, _ = results["fsdp2"]
    assert same
    assert recording is None
    assert "reduced no gradients" in reason
    assert "two ranks" in reason


@pytest.mark.parametrize("name", ["ddp", "hook", "view"])
def test_three_ranks_end_with_the_same_bits(name: str, three: list[dict[str, Any]]) -> None:
    """Where a division and a multiplication by the inverse differ."""
    assert all(results[name][0] for results in three)


@pytest.mark.parametrize("name", ["ddp", "hook", "builtin", "no_sync"])
def test_exchanges_are_seen_to_their_end(name: str, two: list[dict[str, Any]]) -> None:
    for results in two:
        recording = results[name][1]
        for step in recording.ranks[0].steps:
            for full, done in zip(step.full_s, step.done_s, strict=True):
                assert done is not None
                assert full is None or done >= full


def test_the_users_hook_is_called_and_named(two: list[dict[str, Any]]) -> None:
    names = {name: two[0][name][1].hook for name in DDP}
    assert names["hook"] == names["no_sync"] == "own_hook"
    assert names["late hook"] == "fp16_compress_hook"
    assert names["builtin"] == "BuiltinCommHookType.FP16_COMPRESS"
    assert names["ddp"] is None
    calls = [number for number, _ in two[0]["hook"][4] if isinstance(number, int)]
    buckets = len(two[0]["hook"][1].buckets)
    assert len(calls) >= buckets * ALL


def test_what_takes_no_part_in_a_step_is_never_full(two: list[dict[str, Any]]) -> None:
    recording = two[0]["ddp"][1]
    never = [number for number, full in enumerate(recording.ranks[0].steps[0].full_s) if full is None]
    names = {name for number in never for name in recording.buckets[number].parameters}
    assert names <= {"other.weight", "other.bias"}
    assert names


@pytest.mark.parametrize("name", PLAIN)
def test_a_script_without_ddp_ends_with_the_same_bits(name: str) -> None:
    same, kept, log = watched(name, 0)
    assert same
    recording = kept.recording
    assert recording is not None, kept.reason
    assert recording.source == "plain"
    assert recording.model == "Net"
    assert recording.batch_size == 8
    assert [each.name for each in recording.parameters][:2] == ["first.weight", "first.bias"]
    if name != "closure":
        agrees(recording, log)
    passes = {"accumulated": 3, "closure": 2}.get(name, 1)
    assert {len(step.passes) for step in recording.ranks[0].steps} == {passes}
    assert bool(recording.notes) == (name in ("evaluated", "scaler"))
    left_out = {"evaluated": 5, "scaler": 4}.get(name)
    numbers = [*recording.gradients.steps, *(step.number for step in recording.ranks[0].steps)]
    assert left_out not in numbers
    assert len(recording.gradients.steps) == 3


def test_the_gradient_is_the_ranks_own(two: list[dict[str, Any]]) -> None:
    """Not the average: what a method of compression would get."""
    del two
    gradients = on_ranks(own_gradients, 2)
    assert np.allclose(gradients[0][0], gradients[0][1], rtol=2e-3, atol=1e-6)


def own_gradients(rank: int, _: int) -> tuple[Any, Any]:
    import torch
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    from netsim_ddp.workloads.recording.recorder import Recorder
    from netsim_ddp.workloads.recording.session import Settings

    kept, own = Kept(), []
    recorder = Recorder(Settings(1), kept)
    recorder.start()
    torch.manual_seed(0)
    net = nn.Linear(3, 2, bias=False)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(10):
        inputs = torch.full((1, 3), float(rank + 1)) * torch.tensor([1.0, 2.0, 3.0])
        own.append(torch.autograd.grad(net(inputs).square().sum(), net.weight)[0].reshape(-1).numpy())
        model(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    recorder.finish()
    if kept.recording is None or rank:
        return 0, 0
    [scale] = kept.recording.gradients.scales[0]
    return kept.sets[0].astype(np.float64) * scale, own[kept.recording.gradients.steps[0]]


def test_a_script_records_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.netsim"
    with netsim_ddp.record(path, steps=STEPS, gradients="none"):
        train("accumulated", 0, ALL, [])
    recording, sets = read_gradients(path)
    assert not sets
    assert len(recording.ranks[0].steps) == STEPS
    assert recording.ranks[0].steps[0].begin_s == 0
    assert recording.environment["torch"]
    path.unlink()
    with netsim_ddp.record(path):
        pass
    assert capsys.readouterr().err.startswith("netsim: nothing was recorded: no step was seen")
    assert not path.exists()


@pytest.mark.parametrize(
    ("steps", "missing"),
    [
        (ALL, None),
        (ALL - 1, "1 of 3 sets of gradients"),
        (ALL - 2, "1 of 2 watched steps, 1 of 3 sets of gradients"),
        (
            5,
            "1 of 2 watched steps, 2 of 2 unwatched ones (for what watching costs), 2 of 3 sets of gradients",
        ),
    ],
)
def test_what_a_short_program_leaves_out_is_named(steps: int, missing: str | None) -> None:
    recording = watched("plain", 0, steps)[1].recording
    assert recording is not None
    assert recording.notes == ([f"the program ended early; missing: {missing}"] if missing else [])


def test_a_script_that_asks_for_what_is_not_there(tmp_path: Path) -> None:
    def refused(message: str, *words: Any, **options: Any) -> None:
        with pytest.raises(UsageError, match=message), netsim_ddp.record(*words, **options):
            pass

    refused("steps is 0", tmp_path / "a", steps=0)
    refused("gradients is 'some'", tmp_path / "a", gradients="some")
    refused("cannot write", tmp_path)
    refused("cannot write", tmp_path / "none" / "a")
    with netsim_ddp.record(tmp_path / "a"):
        refused("a recording goes on already", tmp_path / "b")
