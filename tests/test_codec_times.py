"""``netsim bench compress``: its rows, its table, its file, and what may be read from it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from netsim_ddp.cli.bench import INDICES, INPUTS, VALUES, _size
from netsim_ddp.communication.segments import CodecWork
from netsim_ddp.compression.codec import INDEX_FORMATS, VALUE_FORMATS, Codec
from netsim_ddp.errors import EnvironmentFault, UsageError
from netsim_ddp.report.terminal.codec import render_codec_times
from netsim_ddp.results.codec import CodecRow, CodecTimes, load, substitute
from netsim_ddp.results.fields import Tool
from netsim_ddp.results.files import load as load_result
from netsim_ddp.results.files import to_json
from netsim_ddp.results.labels import label
from netsim_ddp.scenario import Scenario, build_scenario
from netsim_ddp.steps.execution import substituted_seconds
from netsim_ddp.tools import codec_bench
from tests.commands import answer, command, complaint, measuring


def row(**changes: object) -> CodecRow:
    samples = {name: [0.002, 0.004] for name in ("encode_s", "decode_s", "add_s")}
    fields = {
        "device": "cpu", "threads": 1, "input": "normal", "numel": 1000, "ratio": 0.01, "entries": 10,
        "message_bytes": 51, "floor_s": [0.01, 0.02], "select_s": [0.02, 0.05], **samples,
    }  # fmt: skip
    return CodecRow(**(fields | changes))


def times(*rows: CodecRow) -> CodecTimes:
    return CodecTimes(
        tool=Tool(version="1"), created_utc="", environment={}, command="", values="fp32", indices="packed",
        rows=list(rows),
    )  # fmt: skip


def test_the_command_line_names_what_there_is():
    assert set(VALUES) == set(VALUE_FORMATS)
    assert set(INDICES) == set(INDEX_FORMATS)
    assert INPUTS == codec_bench.INPUTS


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_are_what_their_names_say_and_repeat(name):
    recording = torch.arange(7.0)
    one, two = (codec_bench.make_input(name, 5000, recording) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == (5000,)
    assert torch.isfinite(one).all()
    found = {
        "normal": abs(one.std() - 1) < 0.1,
        "heavy": one.abs().max() > 20 * one.abs().median(),
        "equal": one.unique().numel() == 1,
        "zeros": 0 < one.count_nonzero() < 50,
        "sorted": torch.equal(one, one.sort().values) and one.unique().numel() > 4000,
        "recorded": torch.equal(one, torch.arange(5000.0) % 7),
    }
    assert found[name]


def test_a_run_measures_every_combination_and_the_same_rounds_of_each(tmp_path: Path):
    words = "bench compress --sizes 20k,70001 --ratios 1%,0.5 --inputs normal,zeros --threads 1,2 --rounds 4"
    done = answer([*words.split(), "--values", "int8", "--json", "times.json"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    saved = load(tmp_path / "times.json")
    assert {(r.threads, r.input, r.numel, r.ratio) for r in saved.rows} == {
        (t, i, n, r)
        for t in (1, 2)
        for i in ("normal", "zeros")
        for n in (20_000, 70_001)
        for r in (0.01, 0.5)
    }
    for r in saved.rows:
        assert r.entries == math.ceil(r.numel * r.ratio)
        assert r.message_bytes <= Codec("int8").capacity(r.entries, r.numel)
        parts = ("floor_s", "select_s", "encode_s", "decode_s", "add_s")
        assert {len(getattr(r, name)) for name in parts} == {4}
        assert len(r.topk_s) == len(r.argpartition_s) == codec_bench.SLOW_ROUNDS
        assert r.copy_s == []


def test_stdout_is_one_document(tmp_path: Path):
    words = "bench compress --sizes 1k --ratios 0.1 --rounds 1 --json -"
    done = command(words.split(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert CodecTimes.model_validate(json.loads(done.stdout)).rows[0].numel == 1000


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--sizes", "0"], "--sizes '0'"),
        (["--sizes", "1M,big"], "--sizes 'big'"),
        (["--sizes", "9G"], "--sizes '9G'"),
        (["--sizes", "nan"], "--sizes 'nan'"),
        (["--ratios", "2"], "--ratios '2'"),
        (["--threads", "0"], "--threads '0'"),
        (["--inputs", "normal,odd"], "--inputs 'odd'"),
        (["--device", "tpu"], "--device 'tpu'"),
        (["--values", "fp8"], "--values 'fp8'"),
        (["--json", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_bad_flags_are_named_before_anything_is_measured(arguments, named, tmp_path: Path):
    assert named in complaint(["bench", "compress", *arguments], tmp_path)


def test_sizes_as_people_write_them():
    assert [_size(text) for text in ("25557032", "25.6M", "10k", "1.5G")] == [
        25557032, 25_600_000, 10_000, 1_500_000_000,
    ]  # fmt: skip


def test_a_device_or_memory_that_is_not_there_is_the_environments_fault():
    plan = codec_bench.Plan(("cpu",), (1,), (10**15,), (0.1,), ("normal",), 1, Codec())
    with pytest.raises(EnvironmentFault, match="GB"):
        next(codec_bench.measure(plan, print))
    if not torch.cuda.is_available():
        plan = codec_bench.Plan(("cuda",), (1,), (10,), (0.1,), ("normal",), 1, Codec())
        with pytest.raises(EnvironmentFault, match="GPU"):
            next(codec_bench.measure(plan, print))


def test_the_topk_and_argpartition_jobs_do_the_same_as_the_kernel():
    gradient = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    bench = codec_bench._Bench(
        gradient, 0.02, codec_bench.Plan(("cpu",), (1,), (5000,), (0.02,), ("x",), 1, Codec())
    )
    left = []
    for job in (bench._select, bench._topk, bench._argpartition):
        bench._reset()
        bench.values.zero_()
        job()
        left.append((bench.work.clone(), bench.values.sort().values.clone()))
    for work, values in left[1:]:
        assert torch.equal(work, left[0][0])
        assert torch.equal(values, left[0][1])


def test_factors_are_medians_of_ratios_within_a_round():
    one = row(floor_s=[1.0, 10.0, 2.0], select_s=[2.0, 30.0, 5.0], topk_s=[20.0, 600.0])
    assert one.floors == 2.5
    assert one.topk_times == 15.0  # of the two rounds that have both


def test_the_table_fits_80_columns_and_shows_what_is_missing_as_a_dash():
    out = io.StringIO()
    slow = row(numel=2**31 - 1, select_s=[9.99, 9.99], floor_s=[0.0999, 0.0999], topk_s=[999.0, 999.0],
               argpartition_s=[99.9, 99.9], encode_s=[9.999, 9.999], decode_s=[9.9, 9.9], copy_s=[9.9, 9.9],
               peak_bytes=2**34)  # fmt: skip
    render_codec_times(times(slow, row(device="cuda")), Console(file=out, width=80, soft_wrap=True))
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 80
    table = [line.split() for line in lines if line.strip().startswith(("2.15G", "1k"))]
    assert table[0][:5] == ["2.15G", "0.01", "99.9", "9990", "100.00x"]
    assert table[1].count("–") == 4, "no copies, topk, argpartition or memory were measured"


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    path = tmp_path / "file.json"
    good = json.loads(to_json(times(row())))
    for text, named in [
        ("{", "not JSON"),
        ("[]", "no codec times"),
        ('{"schema_version": 1}', "no codec times"),
        (json.dumps(good | {"rows": []}), "no row"),
        (json.dumps(good | {"rows": [good["rows"][0] | {"select_s": []}]}), "select_s"),
        (json.dumps(good | {"rows": [good["rows"][0] | {"encode_s": [-1]}]}), "encode_s"),
    ]:
        path.write_text(text)
        with pytest.raises(UsageError, match=named):
            load(path)
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path / "missing.json")
    path.write_text(to_json(times(row())))
    assert load(path) == times(row())


def test_a_substitute_reads_between_its_points():
    found = substitute(
        times(
            row(numel=1000, entries=10, select_s=[0.5]),  # of the CPU, which an accelerator outranks
            row(device="cuda", numel=1000, entries=10, select_s=[0.001], encode_s=[0.01], copy_s=[0.002]),
            row(
                device="cuda",
                numel=3000,
                entries=30,
                select_s=[0.003, 0.003, 9],
                encode_s=[0.03],
                copy_s=[0.002],
            ),
            row(
                device="cuda",
                numel=1000,
                ratio=0.1,
                entries=100,
                select_s=[0.007],
                encode_s=[0.1],
                copy_s=[0.002],
            ),
        ),
        "gpu.json",
        threads=2,
    )
    assert found.name == "cuda, from gpu.json"
    assert found.select_seconds(2000, 20) == pytest.approx(0.002)
    assert found.select_seconds(6000, 60) == pytest.approx(0.006)
    assert found.select_seconds(10, 1) == pytest.approx(0.007), (
        "the nearest ratio; a small tensor costs its launch"
    )
    assert found.encode_seconds(20) == pytest.approx(0.02 + 0.001)
    assert found.encode_seconds(200) == pytest.approx(0.2 + 0.002)
    assert found.decode_seconds(10) == pytest.approx(0.003 + 0.003 + 0.001)
    assert found.decode_seconds(0) == 0


def test_a_substitute_takes_the_nearest_threads_and_recorded_gradients():
    found = substitute(
        times(
            row(threads=1, select_s=[1.0]),
            row(threads=4, select_s=[2.0]),
            row(threads=4, input="recorded", select_s=[3.0]),
        ),
        "a.json",
        threads=3,
    )
    assert (found.threads, found.select_seconds(1000, 10)) == (4, 3.0)
    assert found.name == "cpu, 4 threads, from a.json"


@pytest.mark.parametrize("method", ["topk,collective=split", "topk-allgather"])
def test_a_run_with_substituted_times_shows_them_and_says_so(method, tmp_path: Path):
    """The times of the file are such as no codec here takes, so the phases tell which were used."""
    ranks = 2
    times_there = row(
        device="cuda",
        numel=10**6,
        entries=1000,
        select_s=[0.04],
        encode_s=[0.02],
        decode_s=[0.003],
        add_s=[0.002],
    )
    (tmp_path / "gpu.json").write_text(to_json(times(times_there)))
    words = f"run --link none --workers {ranks} --steps 2 --warmup 1 --repeats 1 --ratio 0.00001 --codec-from gpu.json"
    words += " --baseline none"
    done = measuring(
        [*words.split(), "--method", "dense,overlap=off", "--method", method, "--json", "r.json"], tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "codec SUBSTITUTED: cuda, from gpu.json" in done.stdout
    dense, sparse = load_result(tmp_path / "r.json").cells
    assert label(sparse, [sparse]).endswith("substituted")
    assert label(sparse, [sparse]) in done.stdout
    assert sparse.substituted == "cuda, from gpu.json"
    assert sparse.execution == "replayed"
    assert dense.substituted is None
    assert "substituted" not in label(dense, [dense])
    split = method.startswith("topk,")
    # Every message is below the file's smallest, and takes its time. A sleeper wakes late, never early.
    select = 0.04 * load_result(tmp_path / "r.json").model_parameters / 10**6
    encode = 0.02 * (ranks if split else 1)
    decode = 0.005 * ranks + (0.04 + 0.02 + 0.005 * ranks if split else 0)  # an owner selects from its half
    for rank in sparse.repeats[0].ranks:
        for step in rank.steps:
            assert step.compress_s >= select + encode
            assert step.decompress_s >= decode


def test_a_piece_takes_what_its_parts_take():
    found = substitute(times(row(select_s=[1.0], encode_s=[0.1], decode_s=[0.01], add_s=[0.01])), "a.json", 1)
    assert substituted_seconds(found, CodecWork((1000, 10), (10, 10, 10), (10, 10))) == pytest.approx(1.34)
    assert substituted_seconds(found, CodecWork(decoded=(20,))) == pytest.approx(0.04)


def test_a_saved_run_replays_its_substituted_times_without_their_file(tmp_path: Path):
    path = tmp_path / "gpu.json"
    path.write_text(to_json(times(row(device="cuda"))))
    scenario = build_scenario({"codec_from": str(path)}, None)
    path.unlink()
    again = Scenario.model_validate(json.loads(scenario.resolved().model_dump_json()))
    assert again.codec_from == scenario.codec_from
    assert scenario.resolved().execution == "replayed"
    assert again.codec_from.select_seconds(1000, 10) == pytest.approx(0.035)


def test_substituted_times_need_a_good_file_and_replay(tmp_path: Path):
    (tmp_path / "gpu.json").write_text(to_json(times(row())))
    (tmp_path / "other.json").write_text("{}")
    words = ["run", "--codec-from", "gpu.json", "--execution", "concurrent"]
    assert "--execution replayed" in complaint(words, tmp_path)
    assert "netsim bench compress" in complaint(["run", "--codec-from", "other.json"], tmp_path)
    assert "cannot read no.json" in complaint(["run", "--codec-from", "no.json"], tmp_path)
