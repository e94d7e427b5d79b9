"""Every reader of a file, on files that are not what they were: an answer or one line, and never a link of nothing.

``NETSIM_FUZZ=100000 pytest tests/test_fuzz.py`` tries more than the usual 2,000 inputs for each reader, and
``NETSIM_FUZZ_SEED=7`` others.
"""

from __future__ import annotations

import io
import json
import math
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from netsim_ddp.errors import NetsimError
from netsim_ddp.link.bucket.clock import LinkClock
from netsim_ddp.link.measured.profile import read_measurement
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.link.tc.plan import Shapes, script
from netsim_ddp.methods.spec import MethodSpec
from netsim_ddp.report.collection import Collection, Source
from netsim_ddp.report.export.markdown import document
from netsim_ddp.report.terminal.result import render_result
from netsim_ddp.results import codec
from netsim_ddp.results.compare import Rules, compare
from netsim_ddp.results.files import load, to_json
from netsim_ddp.results.sides import side_of
from netsim_ddp.scenario import TrainScenario, build, build_scenario
from netsim_ddp.sweep.source import read_plan
from netsim_ddp.training.checkpoint import Checkpoints, Manifest
from tests.mutations import mutated
from tests.test_codec_times import row, times
from tests.test_iperf3 import a_test, stream, twice
from tests.test_nccl_tests import HEADERS, Run
from tests.test_probe import record

INPUTS = int(os.environ.get("NETSIM_FUZZ", "2000"))
SEED = int(os.environ.get("NETSIM_FUZZ_SEED", "0"))
FIXTURES = Path(__file__).parent / "fixtures"
ROOT = Path(__file__).parent.parent


def is_a_link(spec: LinkSpec) -> None:
    """Positive and finite, and fit for both mechanisms."""
    for _, now in spec.stretches():
        for rank in range(spec.workers):
            assert 1 <= now.up(rank) <= 1e15
            assert 1 <= now.down(rank) <= 1e15
    assert 0 <= spec.jitter_s <= spec.delay_s <= 10
    assert 0 <= spec.loss < 1
    assert spec.period_s is None or 0 < spec.period_s < math.inf
    LinkClock(spec)
    Shapes.of(spec)
    script(spec)


def measurement(path: Path) -> None:
    values = read_measurement(path).profile()
    link = {key: value for key, value in values.items() if key not in ("about", "source")}
    is_a_link(build_scenario(link).link_spec())


def trace(path: Path) -> None:
    is_a_link(build_scenario({"trace": str(path), "workers": 2}).link_spec())


def timeline(path: Path) -> None:
    is_a_link(build_scenario({"timeline": str(path), "workers": 2}).link_spec())


def profile(path: Path) -> None:
    is_a_link(build_scenario({"link_profile": str(path), "workers": 2}).link_spec())


def scenario(path: Path) -> None:
    is_a_link(build_scenario({}, path).link_spec())


def training(path: Path) -> None:
    is_a_link(build(TrainScenario, {}, path).link_spec())


def matrix(path: Path) -> None:
    for run in read_plan(str(path))[3]:
        is_a_link(run.settings.link_spec())


def result(path: Path) -> None:
    found = load(path)
    for cell in found.cells:
        for rate in (cell.bandwidth_bps, cell.link.requested_bps, cell.link.ceiling_bps):
            assert rate is None or 0 < rate < math.inf
    side = side_of(path)
    compare(side, side, Rules())
    render_result(found, Console(file=io.StringIO(), width=100))
    document(Collection([Source("a.json", found)]))


def benchmarks(path: Path) -> None:
    side = side_of(path)
    compare(side, side, Rules())


def codec_times(path: Path) -> None:
    found = codec.substitute(codec.load(path), "file", 2)
    for count in (1, 10, 10**6):
        for seconds in (
            found.select_seconds(10**6, count),
            found.encode_seconds(count),
            found.decode_seconds(count),
        ):
            assert 0 <= seconds < math.inf


def checkpoint(path: Path) -> None:
    slot = Checkpoints(Path("checkpoints"), MethodSpec(name="topk"), 0)
    if not slot.folder.exists():
        (slot.folder / "step-000005").mkdir(parents=True)
        (slot.folder / "latest").write_text("step-000005")
    (slot.folder / "step-000005" / "manifest.json").write_bytes(path.read_bytes())
    found = slot.latest()
    assert found is not None
    assert 0 < found[1].learning_rate < math.inf


def _manifest() -> str:
    return Manifest(
        method="topk", params={"ratio": 0.01}, seed=0, learning_rate=0.1, world_size=2, threads=1, epoch=1, step=5,
        global_step=5, settings={"model": "simple_cnn"}, tx_epoch=[1, 2], tx_total=[1, 2], rx_total=[1, 2],
        payload=[1, 2], files={},
    ).model_dump_json()  # fmt: skip


def _tables() -> list[str]:
    found = [
        Run(95e6, 1e-3).table((8, 1 << 20, 1 << 24)),
        Run(9.4e9, 0, "all_gather", 4).table((1 << 20, 1 << 27)),
    ]
    for header, how in HEADERS.items():
        run = Run(9.4e9)
        rows = [run.row(size, **how) for size in (8, 1 << 20, 1 << 27)]  # type: ignore[arg-type]
        found.append("\n".join([*run.top(), f"#  {header.removeprefix('# ').removesuffix(' #')}", *rows]))
        found.append("\n".join([*run.top(), *rows]))
    return found


TIMES = [0.001 * (1 + number % 7) for number in range(30)]
BENCHMARKS = {
    "machine_info": {"cpu": {"brand_raw": "a"}, "python_version": "3"},
    "benchmarks": [
        {"fullname": f"t::{n}", "stats": {"data": TIMES}, "extra_info": {"bytes": 5}} for n in range(3)
    ],
}
READERS: dict[str, tuple[Callable[[Path], None], Sequence[str]]] = {
    "nccl-tests": (measurement, _tables()),
    "nccl-tests report": (measurement, [json.dumps(Run(95e6, 1e-3, "all_gather", 4).report(), indent=1)]),
    "iperf3": (
        measurement,
        [
            json.dumps(a_test(20e6, [19e6, 21e6]), indent=1),
            twice(a_test(), a_test(19e6)),
            "\n".join(stream(a_test())),
        ],
    ),
    "probe": (measurement, [to_json(record())]),
    "trace": (trace, ["".join(f"{ms * 3}\n" for ms in range(500)), "1\n", "5\n5\n2000\n2600\n"]),
    "timeline": (
        timeline,
        ["changes:\n- {at: 10s, bandwidth: 20mbps}\n- {at: 1min, bandwidth: 50mbps:5mbps}\nrepeat: 90s\n"],
    ),
    "link profile": (
        profile,
        [
            "name: ours\nbandwidth: 100mbps:20mbps\nslow_rank: [1=5mbps]\ndelay: 3ms\njitter: 1ms\nloss: 0.1%\n"
            "queue: 100ms\ncongestion: bbr\ntimeline:\n- {at: 1s, bandwidth: 5mbps}\n- {at: 2s, bandwidth: 1gbps}\n",
            '{"bandwidth": "1gbps", "peak": "10gbps", "credit": "4GB", "delay": "5ms"}',
        ],
    ),
    "scenario": (
        scenario,
        [
            "model: simple_cnn\nworkers: 4\nbandwidth: 100mbps\nslow_rank: 1=5mbps\ndelay: 5ms\nsteps: 5\nratio: 1%\n"
            "methods: [dense, topk, {name: topk, params: {ratio: 0.05}}]\nrepeats: 3\ntimeout: 60s\nseed: 7\n",
            json.dumps(
                {"schema_version": 2, "scenario": build_scenario({}).model_dump(mode="json")}, indent=1
            ),
        ],
    ),
    "training scenario": (
        training,
        ["epochs: 3\noptimizer: adam\nlearning_rate: 0.1\nseed: 3\nbandwidth: 1gbps\n"],
    ),
    "matrix": (matrix, [(ROOT / "scenarios" / "quick.yaml").read_text()]),
    "result, version 1": (result, [(FIXTURES / "result-v1.json").read_text()]),
    "result, version 2": (result, [(FIXTURES / "result-v2.json").read_text()]),
    "benchmarks": (benchmarks, [json.dumps(BENCHMARKS)]),
    "codec times": (codec_times, [to_json(times(row(), row(numel=10**6), row(ratio=0.1)))]),
    "checkpoint": (checkpoint, [_manifest()]),
}


def in_memory(folder: Path) -> int:
    """The descriptor of a file that costs no disk anything, where there is such a thing."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fuzz")
    return os.open(folder / "file", os.O_RDWR | os.O_CREAT)


def rewrite(handle: int, content: bytes) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, content, 0)


@pytest.mark.parametrize("name", READERS)
def test_no_damaged_file_breaks_its_reader_or_becomes_a_link_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    read, originals = READERS[name]
    handle = in_memory(tmp_path)
    path = Path(f"/dev/fd/{handle}")
    taken = 0
    for content in originals:
        rewrite(handle, content.encode())
        read(path)
    for number in range(INPUTS):
        rng = random.Random(f"{SEED} {name} {number}")
        content = mutated(rng.choice(originals).encode(), rng)
        rewrite(handle, content)
        said = ""
        try:
            read(path)
            taken += 1
        except NetsimError as error:
            said = f"{error.message} ({error.hint})"
        except Exception as error:
            kept = Path(os.environ.get("NETSIM_FUZZ_KEEP", tmp_path)) / f"{name.replace(' ', '-')}-{number}"
            kept.write_bytes(content)
            raise AssertionError(
                f"input {number} of {name!r}, seed {SEED}, kept as {kept}: {error!r}"
            ) from error
        assert said.isprintable(), f"input {number} of {name!r}: {said!r}"
    os.close(handle)
    assert 0 < taken < INPUTS
