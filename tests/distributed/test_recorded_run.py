"""``netsim run --recording``: recorded steps on real ranks, with any method on any link."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pytest

from netsim_ddp import FlatGradients, get_model
from netsim_ddp.communication.executor import ddp_buckets
from netsim_ddp.results.files import load
from netsim_ddp.results.record import Cell, Result
from netsim_ddp.results.recording import Bucket, Gradients, Parameter, Recording
from netsim_ddp.results.recording_file import write
from netsim_ddp.workloads.emulated import record_gradient_sets
from netsim_ddp.workloads.recording.gradients import packed
from netsim_ddp.workloads.workload import build_workload
from tests.commands import measuring
from tests.planted_recordings import file, recording

DEADLINE_S = 240
ONE_THREAD = ["--threads", "1", "--repeats", "1", "--warmup", "1"]


def ran(folder: Path, *words: str) -> tuple[Result, str]:
    done = measuring(
        ["run", *ONE_THREAD, *words, "--json", str(folder / "out.json")], folder, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return load(folder / "out.json"), done.stdout


def payload(cell: Cell) -> int:
    return max(rank.payload_bytes for rank in cell.repeats[0].ranks)


def of_methods(*methods: str) -> list[str]:
    return [word for method in methods for word in ("--method", method)]


@pytest.mark.parametrize("execution", ["concurrent", "replayed"])
def test_every_method_plays_the_recorded_moments(tmp_path: Path, execution: str) -> None:
    file(tmp_path / "train.netsim", recording(ranks=2))
    result, shown = ran(
        tmp_path,
        *("--recording", "train.netsim", "--workers", "2", "--link", "bucket", "--bandwidth", "200mbps"),
        *("--steps", "4", "--execution", execution, "--scale-compute", "0.5"),
        *of_methods("dense", "topk", "powersgd,rank=2", "topk-allgather,overlap=off"),
    )
    assert "compute recorded in train.netsim: ddp" in " ".join(shown.split())
    assert [cell.overlap for cell in result.cells] == [False, True, True, True, True, False]
    for cell in result.cells:
        assert cell.model is not None
        assert cell.model.startswith("Net@")
        steps = [step for rank in cell.repeats[0].ranks for step in rank.steps]
        assert len(steps) == 2 * 4
        if execution == "concurrent":  # 4 ms of data, half of 30 and of 6: a rank wakes late, and never early
            assert min(step.other_s for step in steps) > 0.004 - 1e-4
            assert min(step.wall_s for step in steps) > 0.022 - 1e-4
        assert len({rank.parameters_sha256 for rank in cell.repeats[0].ranks}) == 1
    again, _ = ran(tmp_path, "--config", "out.json", "--steps", "1", "--method", "dense,overlap=on")
    assert again.scenario["recording"] == result.scenario["recording"]


def test_it_sends_what_the_model_itself_sends(tmp_path: Path) -> None:
    methods = of_methods(
        "dense,overlap=on",
        "fp16,overlap=on",
        "powersgd,rank=2,overlap=on",
        "topk,overlap=on",
        "topk,overlap=off",
    )
    link = ["--workers", "2", "--link", "bucket", "--bandwidth", "200mbps", "--steps", "3", *methods]
    _plant(tmp_path / "cnn.netsim")
    played, _ = ran(tmp_path, "--recording", "cnn.netsim", *link)
    trained, _ = ran(tmp_path, "--model", "simple_cnn", *link)
    for one, other in zip(played.cells, trained.cells, strict=True):
        assert one.id == other.id
        # How many entries a method sends is the model's; what their positions take is the gradients'.
        assert payload(one) == pytest.approx(payload(other), rel=0.02 if one.method == "topk" else 0), one.id


def _plant(path: Path) -> None:
    """A recording of simple_cnn, in DDP's buckets."""
    workload = build_workload(model="simple_cnn", batch_size=8)
    flat = FlatGradients(get_model("simple_cnn", 10).named_parameters())
    parts = [flat.part(*bucket) for bucket in ddp_buckets(flat)]
    held = [packed([each.reshape(-1) for each in one]) for one in record_gradient_sets(workload, 3)]
    known = [each for each in held if each is not None]
    of = recording(
        ranks=2,
        parameters=[Parameter(name=name, shape=list(shape)) for name, shape in flat.shapes.items()],
        buckets=[Bucket(parameters=part.names, numel=part.numel) for part in parts],
        gradients=Gradients(
            kind="full",
            steps=[3, 5, 7],
            kept=[each.numel() for each in flat.parameters],
            scales=[scales for _, scales in known],
        ),
    )
    write(path, of, [values for values, _ in known])


def test_sizes_without_names_or_gradients_in_two_types(tmp_path: Path) -> None:
    """As FSDP2 or a trace shows them: one message for each bucket in its own type, and gradients are made up."""
    buckets: Sequence[Bucket] = [
        Bucket(parameters=[], numel=30_000, dtype="bfloat16"),
        Bucket(parameters=[], numel=50_000),
    ]
    of = recording(source="trace", parameters=[], buckets=buckets, gradients=Gradients(kind="synthetic"))
    file(tmp_path / "trace.netsim", of)
    result, shown = ran(
        tmp_path,
        *(
            "--recording",
            "trace.netsim",
            "--workers",
            "2",
            "--link",
            "bucket",
            "--bandwidth",
            "200mbps",
            "--steps",
            "2",
        ),
        *of_methods("dense", "topk"),
        *("--baseline", "none"),
    )
    assert "gradients SYNTHETIC" in " ".join(shown.split())
    for cell in result.cells:
        if cell.method == "dense":
            assert payload(cell) == 2 * (2 * 30_000 + 4 * 50_000)
    assert median(rank.payload_bytes for rank in result.cells[-1].repeats[0].ranks) > 0


def _refused(folder: Path, of: Recording | None = None) -> str:
    """What a run says of a recording that it cannot play; that it took no other way out."""
    if of is not None:
        file(folder / "train.netsim", of)
    words = [
        "run",
        "--recording",
        "train.netsim",
        "--workers",
        "2",
        "--link",
        "bucket",
        "--bandwidth",
        "1gbps",
    ]
    done = measuring(words, folder, timeout=DEADLINE_S)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("netsim: ")
    assert "Traceback" not in done.stderr
    return last


def test_parameters_in_64_bits_are_refused_in_one_line(tmp_path: Path) -> None:
    buckets = [
        Bucket(parameters=["last.weight"], numel=2100, dtype="float64"),
        Bucket(parameters=["first.weight", "first.bias"], numel=3300),
    ]
    assert "last.weight is float64" in _refused(tmp_path, recording(buckets=buckets))


def test_a_model_that_fits_nowhere_is_refused_in_one_line(tmp_path: Path) -> None:
    buckets = [Bucket(parameters=[], numel=10**12)]
    of = recording(source="trace", parameters=[], buckets=buckets, gradients=Gradients(kind="none"))
    assert "1,000,000,000,000 parameters" in _refused(tmp_path, of)


def test_gradients_that_are_damaged_are_refused_in_one_line(tmp_path: Path) -> None:
    path = file(tmp_path / "train.netsim")
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"NUMPY") + 2000] ^= 1
    path.write_bytes(whole)
    assert "is damaged: gradients/0.npy" in _refused(tmp_path)
